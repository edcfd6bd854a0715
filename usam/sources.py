"""Training images of a source, whichever way its profile names (paper 3.4): drawn by a model, crawled, or made."""

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
        key: of everything that made them.
        hit: nothing had to be made.
    """

    folder: Path
    table: pd.DataFrame
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
    if source.generate:
        table = generate.generate(folder, class_names, source.generate, source.per_class)
    elif source.crawl:
        table = _crawled(folder, class_names, source.crawl, source.per_class)
    else:
        table = images.collect(folder, class_names, source)
    content = [table["file"].tolist(), table.get("sha256", pd.Series(dtype=str)).tolist()]
    return TrainingImages(folder, table, runs.stage_key([key, content]), before == _count(folder))


def source_key(source: SourceConfig) -> str:
    """Changes with all that decides how an image looks."""
    if source.generate:
        return runs.stage_key(source.generate, (classes, images, generate), generate.model_files(source.generate.model))
    if source.crawl:
        server = images.sources_of(source.crawl.server) if source.crawl.server else ()
        return runs.stage_key(source.crawl, (classes, crawl, fetch), server)
    return runs.stage_key([source.maker], (classes, images), images.sources_of(source.maker))


def _crawled(folder: Path, class_names: list[str], config: CrawlConfig, per_class: int) -> pd.DataFrame:
    """The kept images of a crawl's manifest, in the order of classes and files."""
    serve = images.imported(config.server) if config.server else lambda *_: nullcontext()
    with serve(class_names, per_class, urlsplit(config.api).port):
        manifest = crawl.crawl(folder, class_names, config, per_class)
    kept = manifest[(manifest["status"] == "kept") & manifest["class"].isin(class_names)].sort_values(["class", "file"])
    kept = kept.groupby("class").head(per_class)  # a profile may ask for fewer than an earlier one
    index = kept.groupby("class").cumcount()
    return kept.assign(index=index, prompt=kept["class"].map(classes.prompt)).reset_index(drop=True)


def _count(folder: Path) -> int:
    return sum(1 for file in folder.glob("[!.]*/*") if not file.name.startswith("."))
