"""Training images of a source, whichever way its profile names (paper 3.4): drawn by a model, crawled, or made."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from usam import classes, crawl, fetch, generate, images, runs
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
    before = _count(folder)
    with runs.timed() as spent:
        if source.generate:
            table = generate.generate(folder, class_names, source.generate, source.per_class)
            rejected = _exploded(table)
        elif source.crawl:
            table, rejected = _crawled(folder, class_names, source.crawl, source.per_class)
        else:
            table = images.collect(folder, class_names, source)
            rejected = pd.DataFrame(columns=["class", "reason"])
    new = _count(folder) - before
    cost = _add_cost(folder.with_name(f"{folder.name}.cost.json"), new, spent["seconds"])
    content = [table["file"].tolist(), table.get("sha256", pd.Series(dtype=str)).tolist()]
    return TrainingImages(folder, table, rejected, cost, runs.stage_key([key, content]), new == 0)


def source_key(source: SourceConfig) -> str:
    """Changes with all that decides how an image looks."""
    if source.generate:
        return runs.stage_key(source.generate, (classes, images, generate), generate.model_files(source.generate.model))
    if source.crawl:
        server = images.sources_of(source.crawl.server) if source.crawl.server else ()
        return runs.stage_key(source.crawl, (classes, crawl, fetch), server)
    return runs.stage_key([source.maker], (classes, images), images.sources_of(source.maker))


def _crawled(
    folder: Path, class_names: list[str], config: CrawlConfig, per_class: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The kept images of a crawl's manifest, in the order of classes and files; and what was thrown away."""
    serve = images.imported(config.server) if config.server else lambda *_: nullcontext()
    with serve(class_names, per_class, urlsplit(config.api).port):
        manifest = crawl.crawl(folder, class_names, config, per_class)
    manifest = manifest[manifest["class"].isin(class_names)]
    kept = manifest[manifest["status"] == "kept"].sort_values(["class", "file"])
    kept = kept.groupby("class").head(per_class)  # a profile may ask for fewer than an earlier one
    index = kept.groupby("class").cumcount()
    kept = kept.assign(index=index, prompt=kept["class"].map(classes.prompt)).reset_index(drop=True)
    rejected = manifest.loc[manifest["status"] == "rejected", ["class", "reason"]].reset_index(drop=True)
    rejected["reason"] = rejected["reason"].str.replace(r"^(\w+ duplicate) of .*", r"\1", regex=True)
    return kept, rejected


def _exploded(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each reason in the generator's column `rejected`."""
    reasons = table.loc[table["rejected"] != "", ["class", "rejected"]]
    reasons = reasons.assign(reason=reasons["rejected"].str.split(", ")).explode("reason")
    return reasons[["class", "reason"]].reset_index(drop=True)


def _add_cost(file: Path, images_made: int, seconds: float) -> dict[str, float]:
    """What all runs spent, this one included if it made something; kept beside the folder."""
    try:
        cost = json.loads(file.read_text())
    except (OSError, ValueError):
        cost = {"images": 0, "seconds": 0.0}
    if images_made > 0:
        cost = {"images": cost["images"] + images_made, "seconds": cost["seconds"] + seconds}
        runs.write_atomically(file, json.dumps(cost))
    return cost


def _count(folder: Path) -> int:
    return sum(1 for file in folder.glob("[!.]*/*") if not file.name.startswith("."))
