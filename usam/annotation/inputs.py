"""A user's pictures: which files they are, what they are called in the data set, how they are read."""

import hashlib
import itertools
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from usam.annotation.export import RECORDS
from usam.data import image_files
from usam.errors import UserError
from usam.pipeline import cache

LARGEST_SIDE = 32_766  # pixels; OpenCV warps no larger ones
LARGE = 2**24  # pixels
LONGEST = 150  # bytes of a name; a file's ends at 255


class InputImage(NamedTuple):
    """A picture to be annotated.

    Attributes:
        file: where it lies.
        original: its path seen from the folder in which all pictures of the run lie.
        name: of its files in the data set, without ending.
        size: in bytes.
        state: a key that changes when the file does.
    """

    file: Path
    original: str
    name: str
    size: int
    state: str


def beside(images: str | Path | Sequence[str | Path]) -> Path:
    """Where the data set goes if nothing is said: "photos" and "photos/*.jpg" -> "photos-labelled"."""
    if not isinstance(images, str | Path):
        raise UserError("name the folder `out`: pictures of a list need not lie together")
    place = _folder(Path(images).expanduser()).resolve()
    return place.with_name(f"{place.name}-labelled")


def _folder(place: Path) -> Path:
    """The folder itself, that of a file, or what comes before the signs of a pattern."""
    while not os.path.isdir(place):
        place = place.parent
    return place


def find(images: str | Path | Sequence[str | Path], out: Path) -> list[InputImage]:
    """The pictures that were asked for, each once, in the order of their paths.

    In a folder, these are the files whose ending says that they are; hidden ones, and what lies below `out`, are not
    looked at, and others are counted in a line. Files that are named or that match a pattern are all taken.

    Raises:
        UserError: nothing there.
    """
    found: dict[Path, None] = {}
    others: Counter[str] = Counter()
    for place in map(Path, [images] if isinstance(images, str | Path) else images):
        place = place.expanduser()
        taken = [Path(os.path.abspath(p)) for p in _taken(place, others)]
        taken = [p for p in taken if not Path(os.path.realpath(p)).is_relative_to(out)]
        if not taken and not os.path.lexists(place) and not set("*?[") & set(str(place)):
            raise UserError(f"{place} does not exist: name a folder, a pattern such as 'photos/*.jpg', or files")
        if not taken:
            raise UserError(f"no pictures in {place}: name a folder, a pattern such as 'photos/*.jpg', or files")
        found |= dict.fromkeys(taken)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        print(f"left alone, no endings of pictures that can be read: {kinds.encode(errors='replace').decode()}")
    return _named(sorted(found))


def _taken(place: Path, others: Counter[str]) -> list[Path]:
    """Files of a folder, a pattern or a file; kinds of those that are left alone go to `others`."""
    if os.path.isfile(place):
        return [place]
    folder = _folder(place)
    if folder != place:
        try:
            inside = sorted(folder.glob(str(place.relative_to(folder))))
        except ValueError as error:
            raise UserError(f"'{place}' is no pattern ({error}): try 'photos/*.jpg' or 'photos/**/*.jpg'") from error
        return [p for p in inside if os.path.isfile(p) and not _hidden(p.relative_to(folder))]
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    results = {mark.parent for mark in place.rglob(RECORDS)}  # of earlier runs
    taken = []
    for path in sorted(place.rglob("*")):
        ending = path.suffix.lower()
        if _hidden(path.relative_to(place)) or (os.path.isdir(path) and not path.is_symlink()):
            continue
        if results & set(path.parents):
            others["files of earlier results"] += 1
        elif os.path.isdir(path):
            others["links to folders"] += 1
        elif ending in endings:
            taken.append(path)
        else:
            others[ending or "without ending"] += 1
    return taken


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _named(files: Sequence[Path]) -> list[InputImage]:
    root, pictures, taken = Path(os.path.commonpath([file.parent for file in files])), [], set()
    for file in files:
        original = file.relative_to(root)
        name = re.sub(r"[^\w.\- ]", "_", original.with_suffix("").as_posix()).strip(" .") or "picture"
        if len(name.encode()) > LONGEST:
            digest = hashlib.sha256(os.fsencode(original)).hexdigest()[:16]
            name = f"{name.encode()[: LONGEST - 17].decode(errors='ignore')}-{digest}"
        copies = (name if k == 1 else f"{name}-{k}" for k in itertools.count(1))
        name = next(one for one in copies if one.lower() not in taken)  # some file systems do not tell A from a
        taken.add(name.lower())
        state = file.stat() if os.path.exists(file) else file.lstat()  # a link that leads nowhere is skipped, and said
        key = cache.key([os.fsencode(file).hex(), state.st_size, state.st_mtime_ns])
        pictures.append(
            InputImage(file, original.as_posix().encode(errors="replace").decode(), name, state.st_size, key)
        )
    return pictures


class Unreadable(UserError):
    """Why a picture cannot be annotated, in a few words."""


def read(file: Path) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB; see `images.rgb`.

    Raises:
        Unreadable: it is not.
    """
    try:
        image = image_files.read(file)
    except Exception as error:  # a damaged file can raise anything
        raise Unreadable(_words(error.__cause__ or error, file)) from error
    if max(image.shape) > LARGEST_SIDE:
        raise Unreadable(f"{max(image.shape)} pixels a side are more than {LARGEST_SIDE}: cut it or make it smaller")
    return image


def _words(error: BaseException, file: Path) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "cannot identify image file" in said:
        return "an empty file" if not file.stat().st_size else "no picture, or of a kind that Pillow cannot read"
    return " ".join(said.split()) or f"damaged ({type(error).__name__})"


_large = threading.Lock()


@contextmanager
def one_large_at_a_time(file: Path) -> Iterator[None]:
    """Several copies of 50 million pixels are memory enough: one thread at a time holds a picture of such a size."""
    try:
        with Image.open(file) as image:
            large = image.width * image.height > LARGE
    except Exception:  # whoever reads it will say why
        large = False
    with _large if large else nullcontext():
        yield
