"""Published files that a profile needs and the repository does not contain: checkpoints, data sets, models of the hub.

A download continues where it stopped, is compared with what was published, and gets its name only when it is complete.
Everything is stored in one data folder; `USAM_DATA` moves it.
"""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import requests
import urllib3
from tqdm import tqdm

from usam import paths
from usam.config import SamConfig
from usam.config_rivals import AcrConfig, LeopartConfig, TransfguConfig
from usam.data import huggingface, imagenet
from usam.errors import UserError
from usam.files import check_disk, file_sha, locked, sha256, writing
from usam.profiles import Profile
from usam.registry import IMAGE_SOURCES


class Published(NamedTuple):
    """A file as its authors published it: address, bytes, and the SHA-256 of its content."""

    url: str
    size: int
    sha256: str


SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
VOC = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/"
COCO = "http://images.cocodataset.org/"
FILES = {  # by path in the data folder
    "checkpoints/sam_vit_h_4b8939.pth": Published(SAM + "sam_vit_h_4b8939.pth", 2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "checkpoints/sam_vit_l_0b3195.pth": Published(SAM + "sam_vit_l_0b3195.pth", 1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "checkpoints/sam_vit_b_01ec64.pth": Published(SAM + "sam_vit_b_01ec64.pth", 375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "VOCtrainval_11-May-2012.tar": Published(VOC + "VOCtrainval_11-May-2012.tar", 1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"),
    "val2017.zip": Published(COCO + "zips/val2017.zip", 815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "annotations_trainval2017.zip": Published(COCO + "annotations/annotations_trainval2017.zip", 252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
}  # fmt: skip
ANNOTATIONS = "annotations/instances_val2017.json"
ARCHIVES = {  # of a data set: archive, what is needed from it, and its path in the data set's folder
    "VOC2012": [("VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012", ".")],
    "COCO2017": [("val2017.zip", "val2017", "val2017"), ("annotations_trainval2017.zip", ANNOTATIONS, ANNOTATIONS)],
}
PIECE = 2**20  # bytes
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 6  # connections in a row that bring nothing
LONGEST_WAIT = 30  # seconds between them
WRONG_FILE = "the server sends another file under this address"  # its length or range is not that of the file
UNPACKED = 1.1  # size of pictures relative to their archive
MEMORY = 3  # memory that is needed to load a checkpoint, relative to its size


class Needed(NamedTuple):
    """A published file that a profile needs: where it is stored, where it or what is `inside` an archive belongs."""

    file: Path
    published: Published
    target: Path
    inside: str | None = None

    @property
    def part(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part")

    @property
    def received(self) -> int:
        return next((p.stat().st_size for p in (self.file, self.part) if p.is_file()), 0)

    @property
    def unpacking(self) -> Path:
        """Where an archive is unpacked, on the disk of its target."""
        return self.target.with_name(f"{self.file.stem}.unpacking")


def needed(profile: Profile) -> list[Needed]:
    """List the published files that the profile needs, whether they are here (`target` exists) or not."""
    found = []
    if profile.sam.checkpoint is None:
        file = _place(profile.sam.model)
        found.append(Needed(file, FILES[f"checkpoints/{file.name}"], file))
    for config in profile.datasets.values():
        for name, inside, place in ARCHIVES.get(config.published, []):
            found.append(Needed(paths.data() / name, FILES[name], paths.data() / config.root / place, inside))
    return found


def table(profile: Profile) -> pd.DataFrame:
    """Show `needed` as file, size, SHA-256, address, and whether it is here."""
    rows = [
        (one.file.name, f"{one.published.size / 2**20:,.0f}", one.published.sha256, one.published.url,
         "yes" if one.target.exists() else "no")
        for one in needed(profile)
    ]  # fmt: skip
    if acr := _pretrained(profile):
        rows.append(imagenet.table_row(acr.network, acr.weights))
    return pd.DataFrame(rows, columns=["file", "MiB", "SHA-256", "from", "here"])


def checkpoint(config: SamConfig) -> Path:
    """SAM's weights: the file that the profile names, else the published one in the data folder.

    Raises:
        UserError: it is not there, or has a published file's name and is not that file.
    """
    path = paths.resolve(config.checkpoint) if config.checkpoint else _place(config.model)
    if not path.is_file():
        how = "put the file there, or name another in the profile"
        raise UserError(f"SAM checkpoint {path} is missing: {how if config.checkpoint else 'run notebook 00_setup'}")
    check(path)
    return path


def _place(model: str) -> Path:
    """Where the published weights of "vit_h", "vit_l" or "vit_b" are stored.

    Raises:
        UserError: another model, for which there are no published weights.
    """
    name = next((name for name in FILES if name.startswith(f"checkpoints/sam_{model}_")), None)
    if name is None:
        raise UserError(f"sam.model '{model}' has no published weights: name a `checkpoint` in the profile")
    return paths.data() / name


def get(profile: Profile) -> None:
    """Download what the profile needs and is not here: see `get_files`, `huggingface.fetch` and `imagenet.load`."""
    get_files(profile)
    for model in sorted(models(profile)):
        huggingface.fetch(model)
    if acr := _pretrained(profile):
        imagenet.load(acr.network, acr.weights)


def _pretrained(profile: Profile) -> AcrConfig | None:
    """ACR's settings, if its network begins with torchvision's weights."""
    return profile.rivals.acr if profile.rivals and profile.rivals.acr.published else None


def models(profile: Profile) -> set[str]:
    """Name the models that the profile's sources, CLIP and rivals load: folders, or repositories on the Hugging Face
    hub."""
    drawing = {IMAGE_SOURCES.find(source.kind).model(source.settings) for source in profile.sources.values()}
    return (drawing - {None}) | {profile.clip.model} | (profile.rivals.backbones if profile.rivals else set())


def begins_with(rival: LeopartConfig | TransfguConfig | AcrConfig) -> tuple[Path, ...]:
    """The files on disk that decide what a rival begins with; for published weights, their name has to suffice."""
    if not isinstance(rival, AcrConfig):
        return huggingface.model_files(rival.backbone)
    return () if rival.weights is None or rival.published else (imagenet.place(rival.network, rival.weights)[0],)


def get_files(profile: Profile) -> None:
    """Download and unpack what is missing of `needed`, and complete what a killed run has left.

    Raises:
        UserError: too little disk space or memory, no network, a file that is not the published one. What was received
            stays, and the next call continues from there.
    """
    missing = [one for one in needed(profile) if not one.target.exists()]
    sizes = [one.published.size * (1 + UNPACKED if one.inside else 1) - one.received for one in missing]
    check_disk(paths.data(), max(sum(sizes), 0) / 2**30)
    if profile.sam.checkpoint is None:
        wanted = MEMORY * FILES[f"checkpoints/{_place(profile.sam.model).name}"].size
        available = psutil.virtual_memory().available
        if available < wanted:
            raise UserError(
                f"{available / 2**30:.1f} GiB of memory are free, about {wanted / 2**30:.1f} are needed to load SAM: "
                "stop other programs, or choose a smaller `model` in the profile's `sam` (vit_l, vit_b)"
            )
    for one in needed(profile):
        if one.target.exists() and not one.unpacking.exists():
            continue
        with locked(one.file):  # another run may be downloading or unpacking it
            if not one.target.exists():
                check(one.file) if one.file.is_file() else _download(one, missing)
            if one.inside:
                _unpack(one)


def check(file: Path) -> None:
    """Compare a file that has a published one's name with it; other files pass.

    Raises:
        UserError: it is cut off, damaged, or another file.
    """
    published = next((p for name, p in FILES.items() if Path(name).name == file.name), None)
    if published is None:
        return
    state = file.stat()
    if state.st_size != published.size or file_sha(file, state.st_mtime_ns, state.st_size) != published.sha256:
        raise UserError(
            f"{file} ({state.st_size:,} bytes) is not the published file ({published.size:,} bytes, another SHA-256): "
            f"delete it and run notebook 00_setup again, or get it from {published.url}"
        )


def _download(one: Needed, missing: list[Needed]) -> None:
    """Download a file; gives up after `ATTEMPTS` connections in a row that bring nothing.

    Raises:
        UserError: it cannot be downloaded, or is not what was published.
    """
    failures, best = 0, one.received
    while one.received < one.published.size:
        reason = _receive(one)
        if one.received > best:
            failures, best = 0, one.received
            continue
        failures += 1
        final = reason.startswith("HTTP 4") and reason not in ("HTTP 408", "HTTP 429")
        if final or failures == ATTEMPTS:
            raise UserError(_by_hand(one, missing, reason))
        pause = min(2**failures, LONGEST_WAIT)
        print(f"{one.file.name}: {reason}, trying again in {pause} s", flush=True)
        time.sleep(pause)
    if (one.received, sha256(one.part)) != (one.published.size, one.published.sha256):
        one.part.unlink()
        raise UserError(
            f"{one.published.url} sent another file than was published (size or SHA-256 differs); it was deleted: "
            f"start again, or put the right file at {one.file}"
        )
    os.replace(one.part, one.file)


def _by_hand(one: Needed, missing: list[Needed], reason: str) -> str:
    left = [other for other in missing if not other.target.exists() and not other.file.is_file()]
    files = [f"  {o.published.url} ({o.published.size:,} bytes)\n  -> {o.file}" for o in left]
    return (
        f"{one.file.name} cannot be downloaded ({reason}); {one.received:,} bytes of it are here, and the next run "
        "continues from there. Without a network, put these files there by hand:\n" + "\n".join(files)
    )


def _receive(one: Needed) -> str:
    """Append what one connection sends to the part of the file that is here; returns why it ended, if too early."""
    have, size = one.received, one.published.size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(one.published.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if not response.ok:
                return f"HTTP {response.status_code}"
            if response.status_code != 206:  # without ranges the server sends the whole file
                have = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return WRONG_FILE
            if int(response.headers.get("Content-Length", size - have)) != size - have:  # a login page, for instance
                return WRONG_FILE
            bar = tqdm(total=size, initial=have, desc=one.file.name, unit="B", unit_scale=True, unit_divisor=1024)
            with bar, writing(one.file), open(one.part, "ab" if have else "wb") as out:
                while have <= size and (piece := response.raw.read1(PIECE)):  # whatever has arrived: nothing is lost
                    have += out.write(piece)
                    bar.update(len(piece))
    except requests.Timeout:
        return "time-out"
    except requests.RequestException:
        return "no connection"
    except urllib3.exceptions.HTTPError:
        pass
    return "the connection broke"


def _unpack(one: Needed) -> None:
    """Unpack an archive; its content is moved into its place when it is complete, then the archive is deleted."""
    try:
        if not one.target.exists():
            print(f"unpacking {one.file.name}", flush=True)
            with writing(one.target):
                shutil.unpack_archive(one.file, one.unpacking)
                (one.unpacking / one.inside).rename(one.target)
        one.file.unlink(missing_ok=True)
    finally:
        shutil.rmtree(one.unpacking, ignore_errors=True)
