"""Web images as a source of training images (paper 3.4): reads a crawl's manifest as tables."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from usam import paths
from usam.data import crawl
from usam.data.class_names import prompt
from usam.data.sources import CrawlConfig, ImageSource
from usam.errors import UserError
from usam.files import locked, sha256, write_atomically
from usam.registry import imported, source_folder

# settings that do not decide which images are accepted: when they change, a crawl continues in the same folder
RATE_LIMITS = {
    "allow_hosts", "timeout", "seconds_per_image", "seconds_between_requests", "seconds_between_api_requests",
    "candidates_per_image",
}  # fmt: skip


def _make(
    folder: Path, class_names: list[str], config: CrawlConfig, per_class: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the accepted images of a crawl's manifest, in the order of classes and files, and the rejected ones."""
    manifest = _manifest(folder, class_names, config, per_class)
    manifest = manifest[manifest["class"].isin(class_names)]
    accepted = manifest[manifest["status"] == "accepted"].sort_values(["class", "file"])
    accepted = accepted.groupby("class").head(per_class)  # an earlier profile may have had a larger `per_class`
    index = accepted.groupby("class").cumcount()
    accepted = accepted.assign(index=index, prompt=accepted["class"].map(prompt)).reset_index(drop=True)
    rejected = manifest.loc[manifest["status"] == "rejected", ["class", "reason"]].reset_index(drop=True)
    rejected["reason"] = rejected["reason"].str.replace(r"^(\w+ duplicate) of .*", r"\1", regex=True)
    return accepted, rejected


def _manifest(folder: Path, class_names: list[str], config: CrawlConfig, per_class: int) -> pd.DataFrame:
    """Read a folder's manifest; crawls first if images are missing.

    A class that was crawled to its end with these rate limits is not crawled again, even if it has fewer images than
    wanted: what later stages have read must not grow.
    """
    limits = json.dumps(config.model_dump(mode="json", include=RATE_LIMITS), sort_keys=True)
    log = folder.with_name(f"{folder.name}.ended.json")
    ended = _read(log).get(limits, {})
    if (folder / "manifest.csv").exists() and all(ended.get(name, 0) >= per_class for name in class_names):
        manifest = crawl.read_manifest(folder)
        if all((folder / file).is_file() for file in manifest["file"] if file):
            return manifest
    with _serving(config, class_names):
        manifest = crawl.crawl(folder, class_names, config, per_class)
    with locked(log):
        known = _read(log)
        known[limits] = known.get(limits, {}) | {name: per_class for name in class_names}
        write_atomically(log, json.dumps(known))
    return manifest


def _read(log: Path) -> dict[str, dict[str, int]]:
    """Read a dictionary: rate limits -> class -> the number of images that was wanted when its crawl ended."""
    try:
        return json.loads(log.read_text())
    except (OSError, ValueError):
        return {}


def _serving(config: CrawlConfig, class_names: list[str]) -> AbstractContextManager:
    """Run the server that the profile names, if any, while it is crawled."""
    if not config.server:
        return nullcontext()
    try:
        port = urlsplit(config.api).port
    except ValueError:
        port = None
    if port is None:
        raise UserError(f"`api` is {config.api}: with `server`, name its port, such as http://127.0.0.1:8461/v1/")
    return imported(config.server)(class_names, port)


def _decides(config: CrawlConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=RATE_LIMITS)
    server = [source_folder(config.server)] if config.server else []
    return dict(parameters=[settings, _local_state(config)], code=server)


def _local_state(config: CrawlConfig) -> list:
    """Return what changes with a CSV file or a folder: its bytes, or each file's name, size and time."""
    if config.source == "openverse":
        return []
    source = paths.resolve(config.source)
    if source.is_file():
        return [sha256(source)]
    files = sorted(file for file in source.glob("*/[!.]*") if file.is_file())
    return [(str(f.relative_to(source)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


SOURCE = ImageSource(CrawlConfig, "web crawl", _make, _decides, found="manifest.csv")
