"""A user's input: class names in several forms, and image files: how they are found, named and read."""

import hashlib
import itertools
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from usam.data import image_files
from usam.data.class_names import NOTHING, check_names
from usam.errors import UserError
from usam.pipeline import cache

RECORDS = ".records"  # folder in every data set that `annotate` writes
LARGEST_SIDE = 32_766  # pixels; OpenCV warps no larger images
LARGE = 2**24  # pixels of an image of which memory should hold one at a time
LONGEST_NAME = 150  # bytes; file systems allow 255
MOST_CLASSES = 254  # a VOC map has 256 values, two of which are background and void

ImageChoice = str | Path | Sequence[str | Path]
ClassChoice = str | Sequence[str] | Mapping[str, Sequence[str]]


def gathered_names(classes: ClassChoice, others: str | Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Class -> the names that it gathers; the class of `others`, `NOTHING`, comes last.

    Raises:
        UserError: fewer than two classes, or too many; a name that cannot be used, or is given twice.
    """
    given = _parsed(classes)
    pairs = [*given.items()] if isinstance(given, dict) else [(name, [name]) for name in given]
    check_names(list(dict(pairs)))
    if NOTHING in dict(pairs):
        raise UserError(f"the class name '{NOTHING}' is reserved for `others`: give those names as `others`")
    if left_alone := _parsed(others):
        pairs.append((NOTHING, list(left_alone)))
    names = [name for _, some in pairs for name in some]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"'{repeated[0]}' is named twice: use each name once, in one class or in `others`")
    if empty := [name for name, some in pairs if not some]:
        raise UserError(f"class '{empty[0]}' gathers no names: add some, or leave the class out")
    if len(pairs) < 2:
        raise UserError(
            f"one class alone, '{pairs[0][0]}', cannot be told from anything else: name two or more, separated by "
            "commas, or name as `others` what should be left alone"
        )
    if len(pairs) > MOST_CLASSES:
        raise UserError(f"{len(pairs)} classes are too many for a VOC map: name at most {MOST_CLASSES}")
    check_names(names)
    return {name: tuple(some) for name, some in pairs}


def _parsed(names: Any) -> list[str] | dict[str, list[str]]:
    """Names as they were given; text is read as YAML: "dog, bicycle", "[dog, bicycle]", "{animal: [cat, dog]}"."""
    if isinstance(names, str):
        try:
            names = yaml.safe_load(names) or []
        except yaml.YAMLError as error:
            how = "write 'dog, bicycle' or '{animal: [cat, dog]}'"
            raise UserError(f"class names {names!r} cannot be read: {how}") from error
    if isinstance(names, str):
        return [name.strip() for name in names.split(",") if name.strip()]
    if isinstance(names, Mapping):
        return {str(name): list(_parsed(some)) for name, some in names.items()}
    return [str(name).strip() for name in (names if isinstance(names, Iterable) else [names])]


class InputImage(NamedTuple):
    """An image to be annotated."""

    file: Path
    original: str  # its path from the folder that holds all images of the run
    name: str  # of its files in the data set, without ending
    size: int  # in bytes
    state: str  # a key that changes when the file does


def default_out(images: ImageChoice) -> Path:
    """Where the data set goes by default: "photos" and "photos/*.jpg" -> "photos-labelled"."""
    if not isinstance(images, str | Path):
        raise UserError("a list of images has no folder of its own: name the folder of the result as `out`")
    folder = _folder(Path(images).expanduser()).resolve()
    return folder.with_name(f"{folder.name}-labelled")


def _folder(place: Path) -> Path:
    """The folder itself, that of a file, or the part of a pattern before its wildcards."""
    while not os.path.isdir(place):
        place = place.parent
    return place


def find(images: ImageChoice, out: Path) -> list[InputImage]:
    """The images that were asked for, each once, sorted by path.

    From a folder, files with the ending of an image format are taken; hidden files and those below `out` are not, and
    a printed line counts the rest. Files that are named, or match a pattern, are taken whatever their ending.

    Raises:
        UserError: there are none.
    """
    found: set[Path] = set()
    ignored: Counter[str] = Counter()
    for place in map(Path, [images] if isinstance(images, str | Path) else images):
        files = {Path(os.path.abspath(file)) for file in _files(place.expanduser(), ignored)}
        files = {file for file in files if not Path(os.path.realpath(file)).is_relative_to(out)}
        if not files:
            raise UserError(f"no images found at {place}: name a folder, a pattern such as 'photos/*.jpg', or files")
        found |= files
    if ignored:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in ignored.most_common())
        print(f"ignored, not image files ({kinds.encode(errors='replace').decode()})")
    return _named(sorted(found))


def _files(place: Path, ignored: Counter[str]) -> list[Path]:
    """Files of a folder or a pattern, or the file itself; counts what it leaves out of a folder in `ignored`."""
    folder = _folder(place)
    if folder == place:
        return _files_below(folder, ignored)
    if os.path.lexists(place):
        return [place]
    try:
        matches = list(folder.glob(str(place.relative_to(folder))))
    except ValueError as error:
        raise UserError(f"'{place}' is no pattern ({error}): try 'photos/*.jpg' or 'photos/**/*.jpg'") from error
    return [path for path in matches if not os.path.isdir(path) and not _hidden(path.relative_to(folder))]


def _files_below(folder: Path, ignored: Counter[str]) -> list[Path]:
    endings = image_files.endings()
    results = {records.parent for records in folder.rglob(RECORDS)}
    files = []
    for path in folder.rglob("*"):
        if _hidden(path.relative_to(folder)) or (os.path.isdir(path) and not path.is_symlink()):
            continue
        kind = "links to folders" if os.path.isdir(path) else path.suffix.lower() or "without ending"
        if not results.isdisjoint(path.parents):
            ignored["files of earlier results"] += 1
        elif kind in endings:
            files.append(path)
        else:
            ignored[kind] += 1
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _named(files: Sequence[Path]) -> list[InputImage]:
    root, images, taken = Path(os.path.commonpath([file.parent for file in files])), [], set()
    for file in files:
        original = file.relative_to(root)
        name = re.sub(r"[^\w.\- ]", "_", original.with_suffix("").as_posix()).strip(" .") or "image"
        if len(name.encode()) > LONGEST_NAME:
            digest = hashlib.sha256(os.fsencode(original)).hexdigest()[:16]
            name = f"{name.encode()[: LONGEST_NAME - 17].decode(errors='ignore')}-{digest}"
        numbered = (f"{name}-{k}" if k > 1 else name for k in itertools.count(1))
        name = next(one for one in numbered if one.lower() not in taken)  # some file systems ignore case
        taken.add(name.lower())
        status = file.stat() if os.path.exists(file) else file.lstat()  # a broken link is skipped later, with a reason
        key = cache.key([os.fsencode(file).hex(), status.st_size, status.st_mtime_ns])
        printable = "".join(c if c.isprintable() else "?" for c in original.as_posix())
        images.append(InputImage(file, printable, name, status.st_size, key))
    return images


class Unreadable(UserError):
    """Says in a few words why an image cannot be annotated."""


def read(file: Path) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB; see `image_files.rgb`.

    Raises:
        Unreadable: it cannot be read, or is too large.
    """
    try:
        image = image_files.read(file)
    except Exception as error:  # a damaged file can raise anything
        raise Unreadable(_reason(error.__cause__ or error, file)) from error
    if max(image.shape) > LARGEST_SIDE:
        raise Unreadable(f"a side of {max(image.shape)} pixels; at most {LARGEST_SIDE} are possible: make it smaller")
    return image


def _reason(error: BaseException, file: Path) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "cannot identify image file" in reason:
        return "not an image, or of a kind that Pillow cannot read" if file.stat().st_size else "an empty file"
    return " ".join(reason.split()) or f"damaged ({type(error).__name__})"


_large = threading.Lock()


@contextmanager
def reading(file: Path) -> Iterator[np.ndarray]:
    """What `read` returns; inside, no other thread holds a large image: each takes several times its size in memory."""
    large = False
    if os.path.isfile(file):
        with suppress(Exception), image_files.opened(file) as image:  # `read` raises it again, as `Unreadable`
            large = image.width * image.height > LARGE
    with _large if large else nullcontext():
        yield read(file)
