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

    Args:
        parent: of the source's folder, which is named by the source and its key.
        name: of the source in the profile, "synthetic" or "web" for instance.
        config: its settings.
        class_names: the classes.

    Raises:
        UserError: see `generate.generate` and `crawl.crawl`.
    """
    source, key = IMAGE_SOURCES.find(config.kind), source_key(config)
    folder = parent / f"{name}-{key}"
    log = folder.with_name(f"{folder.name}.json")
    before, start = _count(folder), time.perf_counter()
    try:
        table, rejected = source.make(folder, class_names, config.settings, config.per_class)
    finally:
        if new := _count(folder) - before:
            _add(log, new, time.perf_counter() - start)
    content = [table["file"].tolist(), table.get("sha256", pd.Series(dtype=str)).tolist()]
    return TrainingImages(folder, table, rejected, _read(log), cache.key([key, content]), new == 0)


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


def _read(log: Path) -> dict[str, float]:
    """Images and seconds of all runs so far."""
    try:
        return json.loads(log.read_text())
    except (OSError, ValueError):
        return {"images": 0, "seconds": 0.0}


def _add(log: Path, images: int, seconds: float) -> None:
    with locked(log):
        old = _read(log)
        total = {"images": old["images"] + images, "seconds": old["seconds"] + seconds}
        write_atomically(log, json.dumps(total))


def _count(folder: Path) -> int:
    return sum(1 for file in folder.glob("[!.]*/*") if not file.name.startswith("."))
