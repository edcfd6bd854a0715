"""Training images of a source, stored under a key of all that decides them (paper 3.4)."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from usam.config import SourceConfig
from usam.files import locked, read_csv, write_atomically
from usam.pipeline import cache
from usam.registry import IMAGE_SOURCES


@dataclass(frozen=True)
class TrainingImages:
    """Images of a source.

    Attributes:
        folder: in which they lie.
        table: one row an image: class, index, prompt, file (relative to the folder), and what else the source knows.
        rejected: one row an image that was looked at and thrown away: class, reason.
        cost: images made, and seconds they took, over all runs that made some of them.
        key: of everything that made them.
        hit: nothing had to be made.
    """

    folder: Path
    table: pd.DataFrame
    rejected: pd.DataFrame
    cost: dict[str, float]
    key: str
    hit: bool


def collect(parent: Path, name: str, config: SourceConfig, class_names: list[str]) -> TrainingImages:
    """Images of every class; those that are in the source's folder already stay.

    The folder lies in `parent`; it is named by the source's `name` in the profile ("web" for instance) and its key.

    Raises:
        UserError: see `generate.generate` and `crawl.crawl`.
    """
    key = source_key(config)
    folder = parent / f"{name}-{key}"
    before, start = _count(folder), time.perf_counter()
    try:
        table, rejected = IMAGE_SOURCES.find(config.kind).make(folder, class_names, config.settings, config.per_class)
    finally:
        new = _count(folder) - before
        cost = _cost(parent / f"{folder.name}.json", new, time.perf_counter() - start)
    content = [table["file"].tolist(), table.get("sha256", pd.Series(dtype=str)).tolist()]
    return TrainingImages(folder, table, rejected, cost, cache.key([key, content]), new == 0)


def source_key(config: SourceConfig) -> str:
    """Changes with all that decides how an image looks."""
    return cache.key(**IMAGE_SOURCES.find(config.kind).decides(config.settings))


def content_key(parent: Path, name: str, config: SourceConfig, class_names: Sequence[str]) -> str:
    """Changes with all that decides the images of some classes, and with what was found for them where that does not
    follow from it."""
    source, key = IMAGE_SOURCES.find(config.kind), source_key(config)
    table = parent / f"{name}-{key}" / source.found if source.found else None
    if table is None or not table.exists():
        return key
    found = read_csv(table, dtype=str, keep_default_na=False)
    return cache.key([key, found[found["class"].isin(class_names)].to_numpy().tolist()])


def _cost(log: Path, images: int, seconds: float) -> dict[str, float]:
    """Images and seconds of all runs that made some; those of this run are added to the log."""
    with locked(log):
        try:
            cost = json.loads(log.read_text())
        except (OSError, ValueError):
            cost = {"images": 0, "seconds": 0.0}
        if images:
            cost = {"images": cost["images"] + images, "seconds": cost["seconds"] + seconds}
            write_atomically(log, json.dumps(cost))
    return cost


def _count(folder: Path) -> int:
    return sum(1 for file in folder.glob("[!.]*/*") if not file.name.startswith("."))
