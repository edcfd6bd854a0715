"""What a data set is: images, semantic maps and instances (paper 4); `usam.registry.DATASET_READERS` lists readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from usam.data import image_files
from usam.errors import UserError

VOID = 255  # neither background nor a class: no score counts these pixels


@dataclass(frozen=True)
class Instance:
    """One object of an image.

    Attributes:
        label: class index, 0 to C - 1.
        mask: COCO RLE of the image's own size, `{"size": [H, W], "counts": bytes}`.
        crowd: the mask covers a group; detections on it count neither for nor against.
    """

    label: int
    mask: dict[str, Any]
    crowd: bool = False


@dataclass(frozen=True, eq=False)  # == of arrays is an array
class Example:
    """One image with its ground truth.

    Attributes:
        image_id: VOC's name or COCO's number.
        image: (H, W, 3) uint8, RGB.
        semantic: (H, W) uint8; 0 background, label + 1 for the classes, 255 void.
        instances: the objects, crowds included.
    """

    image_id: str | int
    image: np.ndarray
    semantic: np.ndarray
    instances: list[Instance]


class Dataset(Protocol):
    """A test set, as the pipeline reads it.

    Attributes:
        name: fit for a file name.
        class_names: C names; a class's place is its label.
        category_ids: C official ids, in the same order.
        image_ids: in the order of the examples.
        files: of the pictures, in the same order.
        truth_files: all others that the examples are read from.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: list[Any]
    files: list[Path]
    truth_files: list[Path]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def image(self, i: int) -> np.ndarray: ...


class ImageFiles:
    """What the readers share: the classes and the files of a data set.

    Args:
        name: see `Dataset`; so are image_ids, files and truth_files.
        source: what is read, for messages.
        known: official ids of all classes of the source.
        class_names: those that are read, in the order of their labels; all by default.

    Raises:
        UserError: an unknown class, no class or one twice, a missing file.
    """

    def __init__(
        self,
        name: str,
        source: object,
        known: Mapping[str, int],
        class_names: Sequence[str] | None,
        image_ids: list[Any],
        files: list[Path],
        truth_files: list[Path],
    ) -> None:
        names = tuple(known if class_names is None else class_names)
        if unknown := [one for one in names if one not in known]:
            raise UserError(f"{source} has no class '{unknown[0]}': choose from {', '.join(known)}")
        if len(set(names)) < len(names) or not 0 < len(names) < VOID:
            raise UserError(f"{len(names)} classes of {source}: name 1 to {VOID - 1}, each once")
        wanted = files + truth_files
        if missing := [file for file in wanted if not file.is_file()]:
            raise UserError(
                f"{len(missing)} of {len(wanted)} files of {source} are missing, first {missing[0]}: add them"
            )
        self.name, self.class_names = name, names
        self.image_ids, self.files, self.truth_files = image_ids, files, truth_files
        self.category_ids = tuple(known[one] for one in names)
        self._labels = {category: label for label, category in enumerate(self.category_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, i: int) -> np.ndarray:
        """Picture `i` without its masks, (H, W, 3) uint8 RGB, as stored: annotations ignore EXIF orientation."""
        with image_files.opened(self.files[i]) as picture:
            return np.array(picture.convert("RGB"))


def in_pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
