"""What the paper's profile needs and the repository does not hold: checkpoints, data sets, models of the hub.

A download goes on where it stopped, is compared with what was published, and appears under its name only when it is
whole. All lies in one data folder; `USAM_DATA` moves it.
"""

import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import requests
import urllib3
from torchvision.datasets import VOCSegmentation
from tqdm import tqdm

from usam import paths
from usam.data import huggingface
from usam.files import check_disk
from usam.files import file_sha
from usam.files import locked
from usam.files import writing
from usam.errors import UserError
from usam.registry import IMAGE_SOURCES
from usam.config import Profile


class Published(NamedTuple):
    """A file as its makers published it: address, bytes, and the SHA-256 of its content."""

    url: str
    size: int
    sha256: str


SAM, COCO = "https://dl.fbaipublicfiles.com/segment_anything/", "http://images.cocodataset.org/"
FILES = {  # by their place in the data folder
    "checkpoints/sam_vit_h_4b8939.pth": Published(
        SAM + "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    "checkpoints/sam_vit_l_0b3195.pth": Published(
        SAM + "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "checkpoints/sam_vit_b_01ec64.pth": Published(
        SAM + "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "VOCtrainval_11-May-2012.tar": Published(
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
    "val2017.zip": Published(
        COCO + "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    "annotations_trainval2017.zip": Published(
        COCO + "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
}
BROKEN = "the connection broke"
PIECE, TIMEOUT = 2**20, 30  # bytes; seconds without one
ATTEMPTS, LONGEST_WAIT = 6, 30  # connections that bring nothing; seconds between them
UNPACKED = 1.1  # how much larger pictures are when they are out of their archive
MEMORY = 3  # times a checkpoint's size, while it is loaded


class OtherFile(requests.RequestException):
    """What a server is about to send has another length or place than what was asked for."""


class Needed(NamedTuple):
    """A published file that a profile needs: where it is put, where its content is wanted, and how it gets there."""

    file: Path
    published: Published
    target: Path
    unpack: Callable[[Path, Path, str], Path] | None = None


def needed(profile: Profile) -> list[Needed]:
    """The published files that the profile needs, whether they are here (`target` exists) or not."""
    found = []
    if profile.sam.checkpoint is None:
        file = checkpoint(profile.sam.model)
        found.append(Needed(file, FILES[f"checkpoints/{file.name}"], file))
    for config in profile.datasets.values():
        root = paths.data() / config.root
        if config.published == "VOC2012":
            found.append(_archive("VOCtrainval_11-May-2012.tar", root, _unpack_voc))
        if config.published == "COCO2017":
            found.append(_archive("val2017.zip", root / "val2017", _unpack_zip))
            inside = root / "annotations" / "instances_val2017.json"
            found.append(_archive("annotations_trainval2017.zip", inside, _unpack_zip))
    return found


def _archive(name: str, target: Path, unpack: Callable[[Path, Path, str], Path]) -> Needed:
    return Needed(paths.data() / name, FILES[name], target, unpack)


def table(profile: Profile) -> pd.DataFrame:
    """`needed` for reading: file, size, SHA-256, address, and whether it is here."""
    rows = [
        (one.file.name, f"{one.published.size / 2**20:,.0f}", one.published.sha256, one.published.url,
         "yes" if one.target.exists() else "no")
        for one in needed(profile)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["file", "MiB", "SHA-256", "from", "here"])


def checkpoint(model: str) -> Path:
    """Where the published weights of "vit_h", "vit_l" or "vit_b" lie.

    Raises:
        UserError: another model, whose weights nobody published.
    """
    name = next((name for name in FILES if name.startswith(f"checkpoints/sam_{model}_")), None)
    if name is None:
        raise UserError(f"sam.model '{model}' has no published weights: name a `checkpoint` in the profile")
    return paths.data() / name


def get(profile: Profile) -> None:
    """Download what the profile needs and does not find: files, data sets, models of the hub. Nothing is got twice.

    Raises:
        UserError: see `get_files`.
    """
    get_files(profile)
    for model in sorted(models(profile)):
        huggingface.fetch(model)


def models(profile: Profile) -> set[str]:
    """The models that the profile's sources and CLIP load: folders, or names on the Hugging Face hub."""
    drawing = {IMAGE_SOURCES.find(source.kind).model(source.settings) for source in profile.sources.values()}
    return (drawing - {None}) | {profile.clip.model}


def get_files(profile: Profile) -> None:
    """Download what of `needed` is not here.

    Raises:
        UserError: no room on the disk or in memory, no network, a file that is not what was published. What was
            received stays, and the next call goes on from there.
    """
    for one in needed(profile):
        if one.unpack and _beside(one).exists():
            with locked(one.file):  # not what another run is unpacking just now
                _clean_up(one)
    wanted = [one for one in needed(profile) if not one.target.exists()]
    sizes = [one.published.size * (1 if one.unpack is None else 1 + UNPACKED) for one in wanted]
    there = sum(_received(one.file) for one in wanted)
    check_disk(paths.data(), max(sum(sizes) - there, 0) / 2**30)
    if profile.sam.checkpoint is None:
        _check_memory(MEMORY * FILES[f"checkpoints/{checkpoint(profile.sam.model).name}"].size)
    for one in wanted:
        with locked(one.file):
            if one.target.exists():  # another run was faster
                continue
            if not one.file.is_file():
                _insist(one, wanted)
            if one.unpack:
                check(one.file)
                print(f"unpacking {one.file.name}", flush=True)
                with writing(one.target):
                    _unpack(one)


def check(file: Path) -> None:
    """Compare a file that has a published one's name with it; others pass.

    Raises:
        UserError: it is cut off, damaged, or another one.
    """
    published = next((p for name, p in FILES.items() if Path(name).name == file.name), None)
    if published is None:
        return
    state, what = file.stat(), None
    if state.st_size != published.size:
        what = f"has {state.st_size:,} bytes, not {published.size:,}"
    elif file_sha(file, state.st_mtime_ns, state.st_size) != published.sha256:
        what = "has another SHA-256 than was published"
    if what:
        raise UserError(f"{file} {what}: delete it and run notebook 00_setup again, or get it from {published.url}")


def _check_memory(needed: float) -> None:
    available = psutil.virtual_memory().available
    if available < needed:
        raise UserError(
            f"{available / 2**30:.1f} GiB of memory are free, about {needed / 2**30:.1f} are needed to load SAM: "
            "stop other programs, or choose a smaller `model` in the profile's `sam` (vit_l, vit_b)"
        )


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _received(file: Path) -> int:
    return next((p.stat().st_size for p in (file, _part(file)) if p.is_file()), 0)


def _insist(one: Needed, wanted: list[Needed]) -> None:
    """Download a file, with new connections as long as they bring something, and some more."""
    failures, best = 0, _received(one.file)
    while not one.file.is_file():
        reason, final = BROKEN, False
        try:
            _download(one.file, one.published)
        except requests.RequestException as error:
            reason, final = _reason(error)
        except urllib3.exceptions.HTTPError:
            pass
        except OSError:  # requests' errors are such, too
            with writing(one.file):
                raise
        if _received(one.file) > best:
            failures, best = 0, _received(one.file)
            continue
        failures += 1
        if final or failures == ATTEMPTS:
            raise UserError(_by_hand(one, wanted, reason))
        pause = min(2**failures, LONGEST_WAIT)
        print(f"{one.file.name}: {reason}, trying again in {pause} s", flush=True)
        time.sleep(pause)


def _reason(error: requests.RequestException) -> tuple[str, bool]:
    """In words, and whether it would be the same if asked again."""
    if error.response is not None:
        status = error.response.status_code
        return f"HTTP {status}", 400 <= status < 500 and status not in (408, 416, 429)
    if isinstance(error, OtherFile):
        return "the server sends something else under this address", False
    return "time-out" if isinstance(error, requests.Timeout) else "no connection", False


def _by_hand(one: Needed, wanted: list[Needed], reason: str) -> str:
    left = [other for other in wanted if not other.target.exists() and not other.file.is_file()]
    files = [f"  {o.published.url} ({o.published.size:,} bytes)\n  -> {o.file}" for o in left]
    return (
        f"{one.file.name} cannot be downloaded ({reason}); {_received(one.file):,} bytes of it are here, and the next "
        "start goes on from there. Without a network, put these files there by hand:\n" + "\n".join(files)
    )


def _download(file: Path, published: Published) -> None:
    """One connection, from where the last one ended; the file is in its place if it brought the rest.

    Raises:
        UserError: all is there, and it is not what was published.
    """
    part = _part(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    if have < published.size:
        have = _receive(part, published, have)
    if have < published.size:
        return
    with open(part, "rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if (have, sha256) == (published.size, published.sha256):
        os.replace(part, file)
        return
    part.unlink()
    raise UserError(
        f"{published.url} sent something else than was published (size or SHA-256 differs); it was thrown away: "
        f"start again, or put the right file at {file}"
    )


def _is_the_rest(response: requests.Response, have: int, size: int) -> bool:
    """Whether the server means to send bytes `have` to `size`: a login page, for instance, has another length."""
    if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return False
    return int(response.headers.get("Content-Length", size - have)) == size - have


def _receive(part: Path, published: Published, have: int) -> int:
    """Append what the server sends to `part`; returns how many bytes are there afterwards."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(published.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # there is no such part: it is another file
            part.unlink()
        response.raise_for_status()
        if response.status_code != 206:  # it sends all of it
            have = 0
        if not _is_the_rest(response, have, published.size):
            raise OtherFile
        bar = tqdm(total=published.size, initial=have, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, open(part, "ab" if have else "wb") as out:
            while piece := response.raw.read1(PIECE):  # what is there: of a connection that breaks nothing is lost
                have += out.write(piece)
                bar.update(len(piece))
                if have > published.size:
                    break
    return have


def _beside(one: Needed) -> Path:
    """Where an archive is unpacked: on the disk of its target."""
    return one.target.with_name(f"{one.file.stem}.unpacking")


def _clean_up(one: Needed) -> None:
    """After a run that was killed while it unpacked, or between that and what comes after."""
    if _beside(one).exists():
        shutil.rmtree(_beside(one))
        if one.target.exists():
            one.file.unlink(missing_ok=True)


def _unpack(one: Needed) -> None:
    """What is unpacked moves into its place when it is whole; then the archive goes."""
    beside = _beside(one)
    try:
        beside.mkdir(parents=True)
        one.unpack(one.file, beside, one.target.name).rename(one.target)
        one.file.unlink()
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack_voc(archive: Path, beside: Path, _: str) -> Path:
    """torchvision's data set class unpacks the archive; it finds it and need not download it."""
    try:
        os.link(archive, beside / archive.name)
    except OSError:  # another disk, or one that knows no links
        shutil.copy(archive, beside / archive.name)
    VOCSegmentation(beside, year="2012", image_set="val", download=True)
    return beside / "VOCdevkit" / "VOC2012"


def _unpack_zip(archive: Path, beside: Path, name: str) -> Path:
    """What the archive has under this name, a file or a folder."""
    with zipfile.ZipFile(archive) as content:
        members = [member for member in content.namelist() if name in Path(member).parts]
        content.extractall(beside, members)
    parts = Path(members[0]).parts
    return beside.joinpath(*parts[: parts.index(name) + 1])
