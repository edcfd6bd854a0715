"""Images from the web for class names (paper 3.4): found, downloaded and checked, each with its licence and verdict.

Nothing that a server sends is trusted: its address, size, time and content are checked. What is accepted does not
depend on timing: downloads overlap, but are judged one by one, in the order of the source.
"""

import contextlib
import hashlib
import io
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

import imagehash
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from usam import paths
from usam.data import image_files, openverse
from usam.data.class_names import check_names, folder_name
from usam.data.http import BROKEN, TEMPORARY, UNREACHABLE, Rejected, Web
from usam.data.sources import CrawlConfig
from usam.errors import UserError
from usam.files import locked, no_formula, one_line, read_csv, write_atomically

FOUND = ["class", "url", "page", "creator", "licence"]
NUMBERS = ["bytes", "width", "height"]
COLUMNS = [*FOUND, "sha256", *NUMBERS, "status", "reason", "file"]
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
FORMATS = [name for name in SUFFIXES if name != "MPO"]  # Pillow opens a phone's MPO as JPEG
WORKERS = 8  # downloads at a time, from different hosts
NEAR = 6  # of a perceptual hash's 64 bits: a copy at another quality or size differs in up to 4, another drawing in 12
LOST = "file is gone"
OFFLINE = 10  # after this many candidates in a row without a connection, the network is down, not the servers


def crawl(folder: Path, class_names: list[str], config: CrawlConfig, per_class: int) -> pd.DataFrame:
    """Fill `folder` with up to `per_class` images of each class, starting from what is in it.

    Args:
        folder: for this crawl alone, with these settings: `manifest.csv`, and images as `class_name/0000.jpg`, with the
            bytes that were received. Openverse's answers are stored in `.answers`.
        class_names: letters, digits, blanks, "-" and "_".
        config: source, limits and pauses.
        per_class: images of a class.

    Returns:
        The manifest, with one row for each candidate that was judged: class, url, page, creator, licence, sha256,
        bytes, width, height (missing where unknown), status "accepted" or "rejected", reason, file (relative to
        `folder`).

    Raises:
        UserError: a class name that is no folder name, a faulty source, a folder that is not a crawl's, no network,
            no image of a class.
    """
    check_names(class_names)
    with locked(folder), ThreadPoolExecutor(WORKERS) as pool, contextlib.closing(Web(config)) as web:
        find, read = _source(folder, class_names, config, web)
        crawled = _CrawlFolder(folder, config)
        start = sum(min(per_class, len(crawled.accepted(name))) for name in class_names)
        total = per_class * len(class_names)
        with tqdm(total=total, initial=start, desc="web images", unit="image", disable=start == total) as bar:
            for name in class_names:
                found = itertools.starmap(partial(_candidate, name), find(name))
                remaining = crawled.remaining(name, per_class, found)
                missing = per_class - len(crawled.accepted(name))
                _fill(crawled, remaining, missing, partial(pool.submit, read), web.reached, bar)
        last = crawled.unwritten[-1:]
        crawled.flush()
        if last and not web.reached:
            raise UserError(f"no network: not even {last[0]['url']} can be reached; connect and run again")
    _report({name: len(crawled.accepted(name)) for name in class_names}, per_class, crawled.file)
    return read_manifest(folder)


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read the manifest of a crawl's folder, as `crawl` returns it."""
    table = _table(folder / "manifest.csv")
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric, errors="coerce").astype("Int64")
    return table


def _fill(
    crawled: "_CrawlFolder",
    remaining: Iterator[dict],
    missing: int,
    start: Callable[[str], Future],
    reached: set[str],
    bar: tqdm,
) -> None:
    """Complete one class, with no more downloads under way than images are missing, so that none is wasted."""
    under_way: deque[tuple[dict, Future]] = deque()
    while True:
        while len(under_way) < min(missing, WORKERS) and (candidate := next(remaining, None)):
            under_way.append((candidate, start(candidate["url"])))
        if not under_way:
            return
        row = crawled.judge(*under_way.popleft())
        _record(crawled, row, reached)
        missing -= row["status"] == "accepted"
        bar.update(row["status"] == "accepted")


def _record(crawled: "_CrawlFolder", row: dict, reached: set[str]) -> None:
    """Write a row; one without a connection, or whose connection broke, is held back until it is clear that our own
    network is not down.

    If it is down, rows of hosts that answered before are dropped: the next run tries these candidates again.
    """
    crawled.unwritten.append(row)
    if row["reason"] not in (UNREACHABLE, BROKEN):
        return crawled.flush()
    held = [(urlsplit(row["url"]).hostname, row) for row in crawled.unwritten]
    silent = [host for host, row in held if row["reason"] == UNREACHABLE]
    if len({host for host in silent if host not in reached}) + sum(host in reached for host in silent) >= OFFLINE:
        crawled.unwritten = [row for host, row in held if host not in reached]
        crawled.flush()
        raise UserError(f"no network: {row['url']} and others cannot be reached; connect and run again")


def _report(found: dict[str, int], per_class: int, manifest: Path) -> None:
    for name, count in found.items():
        if 0 < count < per_class:
            print(f"warning: only {count} of {per_class} web images of '{name}': {manifest} lists the reasons")
    if names := ", ".join(f"'{name}'" for name, count in found.items() if not count):
        raise UserError(f"no web image of {names}: {manifest} lists the reasons; use another name or source")


def _table(manifest: Path) -> pd.DataFrame:
    table = read_csv(manifest, dtype=str, keep_default_na=False)
    if list(table.columns) != COLUMNS:
        raise UserError(f"{manifest} is no crawl's manifest: restore it, or delete the folder and run again")
    return table


class _CrawlFolder:
    """A crawl's folder: the verdict on each candidate, and the accepted images."""

    def __init__(self, folder: Path, config: CrawlConfig):
        self.folder, self.config, self.file = folder, config, folder / "manifest.csv"
        if not self.file.exists():
            if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(f"{folder} has files, but no manifest.csv: choose an empty folder for the crawl")
            write_atomically(self.file, ",".join(COLUMNS) + "\n")
        self.rows = {(row["class"], row["url"]): row for row in _table(self.file).to_dict("records")}
        self.unwritten: list[dict] = []
        self.hashes: dict[str, imagehash.ImageHash] = {}  # by file
        for row in self.rows.values():
            if row["status"] == "accepted" and not self._is_complete(row):
                row |= {"status": "rejected", "reason": LOST, "file": ""}

    def _is_complete(self, row: dict) -> bool:
        file = self.folder / row["file"]
        return file.is_file() and str(file.stat().st_size) == row["bytes"]

    def accepted(self, name: str) -> list[dict]:
        return [row for row in self.rows.values() if row["class"] == name and row["status"] == "accepted"]

    def remaining(self, name: str, per_class: int, found: Iterator[dict]) -> Iterator[dict]:
        """Yield candidates to judge: those of lost images, new ones, and then those that failed for a time only."""
        old = [row for row in self.rows.values() if row["class"] == name]
        seen = {row["url"] for row in old}
        yield from [row for row in old if row["reason"] == LOST]
        for candidate in itertools.islice(found, self.config.candidates_per_image * per_class):
            if candidate["url"] not in seen:
                seen.add(candidate["url"])
                yield candidate
        yield from [row for row in old if row["reason"] in TEMPORARY]

    def judge(self, candidate: dict, download: Future) -> dict:
        """Return the candidate's row; an accepted image is on disk then."""
        name, url = candidate["class"], candidate["url"]
        row = dict.fromkeys(COLUMNS, "") | {key: candidate[key] for key in FOUND} | {"status": "accepted"}
        try:
            content = download.result()
            row |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            image, suffix = _decoded(content, self.config, row)
            phash = imagehash.phash(image)
            self._compare(name, row["sha256"], phash)
            row["file"] = self._store(name, content, suffix)
            self.hashes[row["file"]] = phash
        except Rejected as rejection:
            before = self.rows.get((name, url), row)["reason"]
            twice = ", twice" if before in TEMPORARY and rejection.reason in TEMPORARY else ""
            row |= {"status": "rejected", "reason": rejection.reason + twice}
        return row

    def _compare(self, name: str, sha256: str, phash: imagehash.ImageHash) -> None:
        for row in self.rows.values():
            if row["status"] == "accepted" and row["sha256"] == sha256:
                raise Rejected(f"exact duplicate of {row['file']}")
        for file in [row["file"] for row in self.accepted(name)]:
            if file not in self.hashes:  # accepted by an earlier run
                self.hashes[file] = imagehash.phash(Image.fromarray(image_files.read(self.folder / file)))
            if self.hashes[file] - phash <= NEAR:
                raise Rejected(f"near duplicate of {file}")

    def _store(self, name: str, content: bytes, suffix: str) -> str:
        taken = {Path(row["file"]).stem for row in self.accepted(name)}
        stem = next(stem for stem in map("{:04d}".format, itertools.count()) if stem not in taken)
        file = f"{folder_name(name)}/{stem}.{suffix}"
        write_atomically(self.folder / file, content)
        for stray in (self.folder / file).parent.glob(f"{stem}.*"):  # of a run that was killed before it wrote the row
            if stray.name != Path(file).name:
                stray.unlink()
        return file

    def flush(self) -> None:
        if self.unwritten:
            self.rows |= {(row["class"], row["url"]): row for row in self.unwritten}
            self.unwritten = []
            write_atomically(self.file, pd.DataFrame(self.rows.values(), columns=COLUMNS).to_csv(index=False))


def _decoded(content: bytes, config: CrawlConfig, row: dict) -> tuple[Image.Image, str]:
    """Return the first frame as RGB and the file suffix of its format; writes the size to `row`."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            row["width"], row["height"] = image.size
            if image.width * image.height > config.largest_pixels:
                raise Rejected(f"more than {config.largest_pixels} pixels")
            if min(image.size) < config.smallest_side:
                raise Rejected(f"smaller than {config.smallest_side} pixels")
            return image_files.rgb(image), SUFFIXES[image.format]
    except Rejected:
        raise
    except UnidentifiedImageError:
        raise Rejected("no image") from None
    except Image.DecompressionBombError:
        raise Rejected(f"more than {config.largest_pixels} pixels") from None
    except Exception:  # a decoder can raise anything, and nobody could train on such an image
        raise Rejected("truncated or damaged") from None


# -- sources: each yields a class's candidates as tuples (url, page, creator, licence), always in the same order ------


def _source(
    folder: Path, class_names: list[str], config: CrawlConfig, web: Web
) -> tuple[Callable[[str], Iterable[tuple]], Callable[[str], bytes]]:
    """Return two functions: one finds the candidates of a class name, the other reads one at its url."""
    if config.source == "openverse":
        return partial(openverse.results, folder / ".answers", web), web.fetch
    source = paths.resolve(config.source)
    if source.is_dir():
        return partial(_in_folder, source), partial(_read_file, source, config.largest_bytes)
    return _in_csv(source, class_names).__getitem__, web.fetch


def _candidate(class_name: str, url: object, *about: object) -> dict:
    """Make a row of what was found: strangers' text, made safe for a line of CSV and for a spreadsheet."""
    about = (no_formula(one_line(str(text or ""))) for text in about)
    return dict(zip(FOUND, [class_name, one_line(str(url or "")), *about], strict=True))


def _in_folder(root: Path, name: str) -> Iterator[tuple]:
    for folder in sorted({name, folder_name(name)}):
        for file in sorted((root / folder).glob("[!.]*")):
            if file.is_file() or file.is_symlink():
                name = f"{folder}/{file.name}"
                plain = name == one_line(name) and "%" not in name
                yield name if plain else quote(os.fsencode(name)), "", "", ""


def _read_file(root: Path, largest: int, url: str) -> bytes:
    file = root / os.fsdecode(unquote_to_bytes(url))
    if file.exists() and not file.is_file():  # a pipe would wait for a writer, perhaps for ever
        raise Rejected("no regular file")
    try:
        with open(file, "rb") as opened:
            content = opened.read(largest + 1)
    except OSError:
        raise Rejected("cannot be read") from None
    if len(content) > largest:
        raise Rejected(f"larger than {largest} bytes")
    return content


def _in_csv(file: Path, class_names: list[str]) -> dict[str, list[tuple]]:
    if not file.is_file():
        raise UserError(f"no web images at {file}: `source` is 'openverse', a CSV file or a folder")
    table = read_csv(file, dtype=str, keep_default_na=False, index_col=False)
    if missing := [column for column in ("class", "url") if column not in table.columns]:
        raise UserError(f"{file} has no column '{missing[0]}': name it in the first line")
    if table.empty:
        raise UserError(f"{file} has no rows: write one line for each image, class and url")
    if unknown := sorted(set(table["class"]) - set(class_names)):
        raise UserError(f"{file} has images of '{unknown[0]}', which is not among the class names: add or remove it")
    rows = table.reindex(columns=FOUND, fill_value="").fillna("").to_numpy()
    return {name: [tuple(row[1:]) for row in rows if row[0] == name] for name in class_names}
