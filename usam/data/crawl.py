"""Images from the web for class names (paper 3.4): found, downloaded, checked, each with its licence and its fate.

Nothing that a stranger's server sends is believed: its address, size, time and content are checked. What is kept does
not depend on timing: downloads overlap, but are judged one by one, in the order of the source.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import imagehash
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from usam import paths
from usam.data import image_files
from usam.data.class_names import check_names
from usam.data.class_names import folder_name
from usam.errors import UserError
from usam.data.http import PASSING
from usam.data.http import Rejected
from usam.data.http import UNREACHABLE
from usam.data.http import Web
from usam.config import CrawlConfig
from usam.files import locked
from usam.files import read_csv
from usam.files import write_atomically

FOUND = ["class", "url", "page", "creator", "licence"]
NUMBERS = ["bytes", "width", "height"]
COLUMNS = [*FOUND, "sha256", *NUMBERS, "status", "reason", "file"]
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
FORMATS = [name for name in SUFFIXES if name != "MPO"]  # Pillow opens a phone's MPO as JPEG
WORKERS = 8  # downloads at a time, from different hosts
NEAR = 6  # of a perceptual hash's 64 bits: a copy at another quality or size differs in up to 4, another drawing in 12
GONE = "file is gone"
OFFLINE = 10  # so many in a row without a connection: it is us, not them
ANONYMOUS_PAGES = 12  # Openverse shows 240 results, 20 a page, to those without a token


def crawl(folder: Path, class_names: list[str], config: CrawlConfig, per_class: int) -> pd.DataFrame:
    """Fill `folder` with up to `per_class` images of each class; goes on where it was stopped.

    Args:
        folder: of this crawl alone, with these settings: `manifest.csv`, and images as `class_name/0000.jpg`, bytes
            as they came. Openverse's answers are kept in `.answers`, so that nothing is asked twice.
        class_names: letters, digits, blanks, "-" and "_".
        config: source, limits and manners.
        per_class: images of a class.

    Returns:
        The manifest, one row a candidate that was looked at: class, url, page, creator, licence, sha256, bytes,
        width, height (missing where unknown), status "kept" or "rejected", reason, file (relative to `folder`).

    Raises:
        UserError: a class name that is no folder name, a faulty source, a folder that is not a crawl's, no network,
            no image of a class.
    """
    check_names(class_names)
    with locked(folder), ThreadPoolExecutor(WORKERS) as pool, contextlib.closing(Web(config)) as web:
        candidates, read = _source(folder, class_names, config, web)
        shelf = _CrawlFolder(folder, config)
        start = sum(min(per_class, len(shelf.kept(name))) for name in class_names)
        whole = per_class * len(class_names)
        progress = dict(initial=start, desc="web images", unit="image", disable=start == whole)
        with tqdm(total=whole, **progress) as bar:
            for name in class_names:
                work = shelf.work(name, per_class, candidates(name))
                _fill(shelf, work, per_class - len(shelf.kept(name)), partial(pool.submit, read), web.reached, bar)
        last = shelf.silent[-1:]
        shelf.flush()
        if last and not web.reached:
            raise UserError(f"no network: not even {last[0]['url']} can be reached; connect and run again")
    _report({name: len(shelf.kept(name)) for name in class_names}, per_class, shelf.file)
    return read_manifest(folder)


def read_manifest(folder: Path) -> pd.DataFrame:
    """The manifest of a crawl's folder, as `crawl` returns it."""
    table = _table(folder / "manifest.csv")
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric, errors="coerce").astype("Int64")
    return table


def local_state(config: CrawlConfig) -> list:
    """Tells that a CSV or a folder was changed: its bytes, or each file's name, size and time; empty for the web."""
    if config.source == "openverse":
        return []
    place = paths.resolve(config.source)
    if place.is_file():
        return [hashlib.sha256(place.read_bytes()).hexdigest()]
    files = sorted(file for file in place.glob("*/[!.]*") if file.is_file())
    return [(str(f.relative_to(place)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _fill(
    shelf: "_Shelf", work: Iterator[dict], missing: int, start: Callable[[str], Future], reached: set[str], bar: tqdm
) -> None:
    """One class: no more downloads are under way than images are missing, so that none is made in vain."""
    under_way: deque[tuple[dict, Future]] = deque()
    while True:
        while len(under_way) < min(missing, WORKERS) and (candidate := next(work, None)):
            under_way.append((candidate, start(candidate["url"])))
        if not under_way:
            return
        row = shelf.judge(*under_way.popleft())
        _enter(shelf, row, reached)
        missing -= row["status"] == "kept"
        bar.update(row["status"] == "kept")


def _enter(shelf: "_Shelf", row: dict, reached: set[str]) -> None:
    """Write a row; one without a connection waits for a sign that it is not our network which is down.

    When it is, rows of hosts that answered before are forgotten: the next run looks at the same candidates again.
    """
    shelf.silent.append(row)
    if row["reason"] != UNREACHABLE:
        return shelf.flush()
    hosts = [urlsplit(row["url"]).hostname for row in shelf.silent]
    if len({host for host in hosts if host not in reached}) + sum(host in reached for host in hosts) >= OFFLINE:
        shelf.silent = [row for row, host in zip(shelf.silent, hosts, strict=True) if host not in reached]
        shelf.flush()
        raise UserError(f"no network: {row['url']} and others cannot be reached; connect and run again")


def _report(found: dict[str, int], per_class: int, manifest: Path) -> None:
    for name, count in found.items():
        if 0 < count < per_class:
            print(f"warning: only {count} of {per_class} web images of '{name}': {manifest} says why")
    if nothing := [f"'{name}'" for name, count in found.items() if not count]:
        names = ", ".join(nothing)
        raise UserError(f"no web image of {names}: {manifest} says why; use another name or source")


def _table(manifest: Path) -> pd.DataFrame:
    table = read_csv(manifest, dtype=str, keep_default_na=False)
    if list(table.columns) != COLUMNS:
        raise UserError(f"{manifest} is no crawl's manifest: restore it, or delete the folder and run again")
    return table


class _CrawlFolder:
    """A crawl's folder: what was decided on each candidate, and the images kept."""

    def __init__(self, folder: Path, config: CrawlConfig):
        self.folder, self.config, self.file = folder, config, folder / "manifest.csv"
        if not self.file.exists():
            if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(f"{folder} has files, but no manifest.csv: choose an empty folder for the crawl")
            write_atomically(self.file, ",".join(COLUMNS) + "\n")
        self.rows = {(row["class"], row["url"]): row for row in _table(self.file).to_dict("records")}
        self.silent: list[dict] = []  # rows that are not written yet
        self.prints: dict[str, imagehash.ImageHash] = {}
        for row in self.rows.values():
            if row["status"] == "kept" and not self._whole(row):
                row |= {"status": "rejected", "reason": GONE, "file": ""}

    def _whole(self, row: dict) -> bool:
        file = self.folder / row["file"]
        return file.is_file() and str(file.stat().st_size) == row["bytes"]

    def kept(self, name: str) -> list[dict]:
        return [row for row in self.rows.values() if row["class"] == name and row["status"] == "kept"]

    def work(self, name: str, per_class: int, found: Iterator[dict]) -> Iterator[dict]:
        """Candidates to look at: images that went lost, new ones, and at last those that an earlier run gave up."""
        old = [row for row in self.rows.values() if row["class"] == name]
        seen = {row["url"] for row in old}
        yield from [row for row in old if row["reason"] == GONE]
        for candidate in itertools.islice(found, self.config.candidates_per_image * per_class):
            if candidate["url"] not in seen:
                seen.add(candidate["url"])
                yield candidate
        yield from [row for row in old if row["reason"] in PASSING]

    def judge(self, candidate: dict, download: Future) -> dict:
        """The candidate's row; the image is on disk when it is kept."""
        name, url = candidate["class"], candidate["url"]
        row = dict.fromkeys(COLUMNS, "") | {key: candidate[key] for key in FOUND} | {"status": "kept"}
        try:
            content = download.result()
            row |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            image, suffix = _decoded(content, self.config, row)
            mark = imagehash.phash(image)
            self._compare(name, row["sha256"], mark)
            row["file"] = self._store(name, content, suffix)
            self.prints[row["file"]] = mark
        except Rejected as rejection:
            before = self.rows.get((name, url), row)["reason"]
            twice = ", twice" if before in PASSING and rejection.reason in PASSING else ""
            row |= {"status": "rejected", "reason": rejection.reason + twice}
        return row

    def _compare(self, name: str, sha256: str, mark: imagehash.ImageHash) -> None:
        for row in self.rows.values():
            if row["status"] == "kept" and row["sha256"] == sha256:
                raise Rejected(f"exact duplicate of {row['file']}")
        for file in [row["file"] for row in self.kept(name)]:
            if file not in self.prints:  # kept by an earlier run
                self.prints[file] = imagehash.phash(Image.fromarray(image_files.read(self.folder / file)))
            if self.prints[file] - mark <= NEAR:
                raise Rejected(f"near duplicate of {file}")

    def _store(self, name: str, content: bytes, suffix: str) -> str:
        taken = {Path(row["file"]).stem for row in self.kept(name)}
        stem = next(stem for stem in map("{:04d}".format, itertools.count()) if stem not in taken)
        file = f"{folder_name(name)}/{stem}.{suffix}"
        write_atomically(self.folder / file, content)
        for stray in (self.folder / file).parent.glob(f"{stem}.*"):  # of a run that was killed before its row was there
            if stray.name != Path(file).name:
                stray.unlink()
        return file

    def flush(self) -> None:
        if self.silent:
            self.rows |= {(row["class"], row["url"]): row for row in self.silent}
            self.silent = []
            write_atomically(self.file, pd.DataFrame(self.rows.values(), columns=COLUMNS).to_csv(index=False))


def _decoded(content: bytes, config: CrawlConfig, row: dict) -> tuple[Image.Image, str]:
    """The first frame as RGB, decoded to its end, and the file suffix of its format; notes the size in `row`."""
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
    except Exception:  # whatever a decoder trips over, nobody could train on it
        raise Rejected("truncated or damaged") from None


# -- sources: each yields candidates as dictionaries of FOUND, in an order that stays ------------------------------


def _source(
    folder: Path, class_names: list[str], config: CrawlConfig, web: Web
) -> tuple[Callable[[str], Iterator[dict]], Callable[[str], bytes]]:
    """How a class's candidates are found, and how one is read."""
    if config.source == "openverse":
        return partial(_openverse, folder / ".answers", web), web.fetch
    place = paths.resolve(config.source)
    if place.is_dir():
        return partial(_in_folder, place), partial(_local, place, config.largest_bytes)
    return _listed(place, class_names).__getitem__, web.fetch


def _candidate(class_name: str, *facts: object) -> dict:
    """Facts are url, page, creator, licence: strangers' text, made safe for a line of CSV."""
    printable = ("".join(c if c.isprintable() else " " for c in str(fact or "")) for fact in facts)
    return dict(zip(FOUND, [class_name, *(" ".join(text.split()) for text in printable)], strict=True))


def _in_folder(root: Path, name: str) -> Iterator[dict]:
    for folder in sorted({name, folder_name(name)}):
        for file in sorted((root / folder).glob("[!.]*")):
            if file.is_file() or file.is_symlink():
                yield _candidate(name, f"{folder}/{file.name}", "", "", "")


def _local(root: Path, largest: int, file: str) -> bytes:
    try:
        with open(root / file, "rb") as opened:
            content = opened.read(largest + 1)
    except OSError:
        raise Rejected("cannot be read") from None
    if len(content) > largest:
        raise Rejected(f"larger than {largest} bytes")
    return content


def _listed(file: Path, class_names: list[str]) -> dict[str, Iterator[dict]]:
    """A CSV's candidates by class."""
    if not file.is_file():
        raise UserError(f"no web images at {file}: `source` is 'openverse', a CSV file or a folder")
    table = read_csv(file, dtype=str, keep_default_na=False, index_col=False)
    if missing := [column for column in ("class", "url") if column not in table.columns]:
        raise UserError(f"{file} has no column '{missing[0]}': name it in the first line")
    if table.empty:
        raise UserError(f"{file} has no rows: write one line for each image, class and url")
    if unknown := sorted(set(table["class"]) - set(class_names)):
        raise UserError(f"{file} has images of '{unknown[0]}', a class not asked for: take them out or name the class")
    rows = table.reindex(columns=FOUND, fill_value="").fillna("").to_numpy()
    return {name: iter([_candidate(*row) for row in rows if row[0] == name]) for name in class_names}


def _openverse(answers: Path, web: Web, name: str) -> Iterator[dict]:
    token = os.environ.get("OPENVERSE_TOKEN", "").strip()
    for page in itertools.count(1):
        file = answers / folder_name(name) / f"{page:03d}.json"
        if not file.exists():
            query = urlencode({"q": name, "page": page, "page_size": 20, "mature": "false"})
            content = _ask(web, f"{web.config.api.rstrip('/')}/images/?{query}", token)
            write_atomically(file, content)
        answer = _parsed(file.read_bytes(), str(file))
        for item in answer["results"]:
            licence = f"{item.get('license') or ''} {item.get('license_version') or ''}"
            yield _candidate(name, item["url"], item.get("foreign_landing_url"), item.get("creator"), licence)
        if page >= answer["page_count"] or (page >= ANONYMOUS_PAGES and not token):
            return


def _ask(web: Web, url: str, token: str) -> bytes:
    """Openverse's answer, sound; else one line says whose fault it is. What is finished stays on disk."""
    try:
        content = web.fetch(url, token)
    except Rejected as rejection:
        mend = {
            "HTTP 401": "the token in OPENVERSE_TOKEN is wrong or missing: mend it or unset it",
            "HTTP 429": "too many requests: run again tomorrow, or set OPENVERSE_TOKEN; what is finished is kept",
            UNREACHABLE: "no network? connect and run again; what is finished is kept",
        }.get(rejection.reason, "run again later, or mend `api`; what is finished is kept")
        raise UserError(f"{url}: {rejection.reason}: {mend}") from None
    _parsed(content, url)
    return content


def _parsed(content: bytes, where: str) -> dict:
    try:
        answer = json.loads(content)
        if isinstance(answer["page_count"], int) and all(isinstance(item["url"], str) for item in answer["results"]):
            return answer
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UserError(f"{where} is no answer of Openverse (JSON with page_count and results): mend `api`, or run later")
