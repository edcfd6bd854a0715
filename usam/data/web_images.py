"""Web images as a source of training images (paper 3.4): a crawl's manifest, read as tables."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from usam.config import CrawlConfig
from usam.data import crawl
from usam.data.class_names import prompt
from usam.data.sources import ImageSource
from usam.errors import UserError
from usam.files import locked, write_atomically
from usam.registry import imported, source_folder

# settings that do not decide which images are accepted: with others a crawl goes on in the same folder
RATE_LIMITS = {
    "allow_hosts", "timeout", "seconds_per_image", "seconds_between_requests", "seconds_between_api_requests",
    "candidates_per_image",
}  # fmt: skip


def _make(
    folder: Path, class_names: list[str], config: CrawlConfig, per_class: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The accepted images of a crawl's manifest, in the order of classes and files; and what was thrown away.

    A class that was crawled to its end with these rate limits is not asked for again, even if it came short: what later
    stages read must not grow under them.
    """
    limits = json.dumps(config.model_dump(mode="json", include=RATE_LIMITS), sort_keys=True)
    log = folder.with_name(f"{folder.name}.ended.json")
    manifest = crawl.read_manifest(folder) if (folder / "manifest.csv").exists() else None
    ended = _read(log).get(limits, {})
    if (
        manifest is None
        or not all((folder / file).is_file() for file in manifest["file"] if file)
        or any(ended.get(name, 0) < per_class for name in class_names)
    ):
        with _serving(config, class_names):
            manifest = crawl.crawl(folder, class_names, config, per_class)
        with locked(log):
            known = _read(log)
            known[limits] = known.get(limits, {}) | {name: per_class for name in class_names}
            write_atomically(log, json.dumps(known))
    manifest = manifest[manifest["class"].isin(class_names)]
    accepted = manifest[manifest["status"] == "kept"].sort_values(["class", "file"])
    accepted = accepted.groupby("class").head(per_class)  # a profile may ask for fewer than an earlier one
    index = accepted.groupby("class").cumcount()
    accepted = accepted.assign(index=index, prompt=accepted["class"].map(prompt)).reset_index(drop=True)
    rejected = manifest.loc[manifest["status"] == "rejected", ["class", "reason"]].reset_index(drop=True)
    rejected["reason"] = rejected["reason"].str.replace(r"^(\w+ duplicate) of .*", r"\1", regex=True)
    return accepted, rejected


def _read(log: Path) -> dict[str, dict[str, int]]:
    """Rate limits -> class -> the number of images that was asked for when it ended."""
    try:
        return json.loads(log.read_text())
    except (OSError, ValueError):
        return {}


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
    return imported(config.server)(class_names, port)


def _decides(config: CrawlConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=RATE_LIMITS)
    server = [source_folder(config.server)] if config.server else []
    return dict(parameters=[settings, crawl.local_state(config)], code=server)


SOURCE = ImageSource(CrawlConfig, "web crawl", _make, _decides, found="manifest.csv")
