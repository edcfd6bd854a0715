"""Training images of a source, whichever way its profile names (paper 3.4): drawn by a model, or crawled."""

import importlib.metadata
import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from usam import classes, crawl, generate, hub, images, runs
from usam.errors import UserError
from usam.profiles import CrawlConfig, SourceConfig


@dataclass(frozen=True)
class TrainingImages:
    """Images of a source.

    Attributes:
        folder: in which they lie.
        table: one row an image: class, index, prompt, file (relative to the folder), and what the source tells beside.
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


def collect(parent: Path, name: str, source: SourceConfig, class_names: list[str]) -> TrainingImages:
    """Images of every class; those that are in the source's folder already stay.

    Args:
        parent: of the source's folder, which is named by the source and its key.
        name: "synthetic" or "web".
        source: the settings.
        class_names: what the user asks for.

    Raises:
        UserError: see `generate.generate` and `crawl.crawl`.
    """
    key = source_key(source)
    folder = parent / f"{name}-{key}"
    log = _Log(folder.with_name(f"{folder.name}.json"))
    before, start = _count(folder), time.perf_counter()
    try:
        if source.generate:
            table = generate.generate(folder, class_names, source.generate, source.per_class)
            rejected = _exploded(table)
        else:
            table, rejected = _crawled(folder, class_names, source.crawl, source.per_class, log)
    finally:
        if new := _count(folder) - before:
            log.add(images=new, seconds=time.perf_counter() - start)
    content = [table["file"].tolist(), table.get("sha256", pd.Series(dtype=str)).tolist()]
    cost = {word: log.read()[word] for word in ("images", "seconds")}
    return TrainingImages(folder, table, rejected, cost, runs.stage_key([key, content]), new == 0)


# what a crawl minds beside which images it takes: with other manners it goes on in the same folder
MANNERS = {
    "allow_hosts", "timeout", "seconds_per_image", "seconds_between_requests", "seconds_between_api_requests",
    "candidates_per_image",
}  # fmt: skip


def source_key(source: SourceConfig) -> str:
    """Changes with all that decides how an image looks, the libraries that draw included."""
    if source.generate:
        versions = [importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")]
        files = hub.model_files(source.generate.model)
        return runs.stage_key([source.generate, versions], (classes, images, generate), files)
    settings = source.crawl.model_dump(mode="json", exclude=MANNERS)
    server = images.sources_of(source.crawl.server) if source.crawl.server else ()
    return runs.stage_key([settings, crawl.local_state(source.crawl)], files=server)


def content_key(parent: Path, name: str, source: SourceConfig) -> str:
    """`source_key`, and what was found where that does not follow from it: a crawl's manifest."""
    key = source_key(source)
    manifest = parent / f"{name}-{key}" / "manifest.csv"
    return runs.stage_key([key], files=(manifest,) if source.crawl and manifest.exists() else ())


def _crawled(
    folder: Path, class_names: list[str], config: CrawlConfig, per_class: int, log: "_Log"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The kept images of a crawl's manifest, in the order of classes and files; and what was thrown away.

    A class that was crawled to its end with these manners is not asked for again, even if it came short: what later
    stages read must not grow under them.
    """
    manners = runs.stage_key(config.model_dump(mode="json", include=MANNERS))
    manifest = crawl.read_manifest(folder) if (folder / "manifest.csv").exists() else None
    ended = log.read()["ended"].get(manners, {})
    if (
        manifest is None
        or not all((folder / file).is_file() for file in manifest["file"] if file)
        or any(ended.get(name, 0) < per_class for name in class_names)
    ):
        with _serving(config, class_names):
            manifest = crawl.crawl(folder, class_names, config, per_class)
        log.add(ended={manners: ended | {name: per_class for name in class_names}})
    manifest = manifest[manifest["class"].isin(class_names)]
    kept = manifest[manifest["status"] == "kept"].sort_values(["class", "file"])
    kept = kept.groupby("class").head(per_class)  # a profile may ask for fewer than an earlier one
    index = kept.groupby("class").cumcount()
    kept = kept.assign(index=index, prompt=kept["class"].map(classes.prompt)).reset_index(drop=True)
    rejected = manifest.loc[manifest["status"] == "rejected", ["class", "reason"]].reset_index(drop=True)
    rejected["reason"] = rejected["reason"].str.replace(r"^(\w+ duplicate) of .*", r"\1", regex=True)
    return kept, rejected


def _serving(config: CrawlConfig, class_names: list[str]) -> AbstractContextManager:
    """The server that the profile names, while it is crawled; nothing if it names none."""
    if not config.server:
        return nullcontext()
    try:
        port = urlsplit(config.api).port
    except ValueError:
        port = None
    if port is None:
        raise UserError(f"`api` is {config.api}: with `server`, name its port, such as http://127.0.0.1:8461/v1/")
    return images.imported(config.server)(class_names, port)


class _Log:
    """What all runs spent on a folder; with which manners of a crawl each class ended at how many images wanted."""

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> dict:
        try:
            return {"images": 0, "seconds": 0.0, "ended": {}} | json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {"images": 0, "seconds": 0.0, "ended": {}}

    def add(self, images: int = 0, seconds: float = 0.0, ended: dict[str, dict] | None = None) -> None:
        with runs.alone(self.file):
            old = self.read()
            new = dict(
                images=old["images"] + images, seconds=old["seconds"] + seconds, ended=old["ended"] | (ended or {})
            )
            runs.write_atomically(self.file, json.dumps(new))


def _exploded(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each reason in the generator's column `rejected`."""
    reasons = table.loc[table["rejected"] != "", ["class", "rejected"]]
    reasons = reasons.assign(reason=reasons["rejected"].str.split(", ")).explode("reason")
    return reasons[["class", "reason"]].reset_index(drop=True)


def _count(folder: Path) -> int:
    return sum(1 for file in folder.glob("[!.]*/*") if not file.name.startswith("."))
