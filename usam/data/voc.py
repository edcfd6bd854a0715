"""PASCAL VOC 2012: the reader, and its palette (paper 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as rle_tools

from usam.data import image_files
from usam.data.class_names import VOC
from usam.data.datasets import VOID, Example, ImageFiles, Instance, in_pixels
from usam.errors import UserError


def voc_palette() -> list[int]:
    """VOC's colours: the bits of the label, spread over R, G, B from the highest bit down."""
    labels = np.arange(256)
    colors = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.ravel().tolist()


class VocDataset(ImageFiles):
    """PASCAL VOC 2012 segmentation, read in place.

    Args:
        root: the folder that holds `JPEGImages`, `SegmentationClass`, `SegmentationObject` and `ImageSets`.
        split: a list of `ImageSets/Segmentation`, such as "val".
        class_names: the classes, in the order of their labels; all 20 by default. Others are background.

    Raises:
        UserError: unknown class; a folder, the list or a listed file is missing; on access, a file that cannot be used.
    """

    def __init__(self, root: Path, split: str, class_names: Sequence[str] | None = None) -> None:
        if not (root / "JPEGImages").is_dir():
            raise UserError(f"no PASCAL VOC data in {root}: name the folder that holds JPEGImages, or run 00_setup")
        names = _split_names(root, split)
        images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
        self._class_maps = [root / "SegmentationClass" / f"{name}.png" for name in names]
        self._object_maps = [root / "SegmentationObject" / f"{name}.png" for name in names]
        truth = self._class_maps + self._object_maps
        known = {name: number for number, name in enumerate(VOC, 1)}
        super().__init__(f"voc_{split}", "PASCAL VOC", known, class_names, names, images, truth)

    def __getitem__(self, i: int) -> Example:
        """Read picture, class map and object map of example `i`."""
        image = self.image(i)
        official = _palette_indices(self._class_maps[i], image.shape[:2])
        wrong = official[(official > len(VOC)) & (official != VOID)]
        if wrong.size:
            raise UserError(f"{self._class_maps[i]} holds the value {wrong[0]}: VOC knows 0 to 20 and 255 (void)")
        objects = _palette_indices(self._object_maps[i], image.shape[:2])
        numbers = [n for n in np.unique(objects) if n not in (0, VOID)]
        found = [self._instance(i, n, objects == n, official) for n in numbers]
        ours = np.zeros(256, np.uint8)
        ours[[*self._labels, VOID]] = [*(label + 1 for label in self._labels.values()), VOID]
        return Example(self.image_ids[i], image, ours[official], [one for one in found if one])

    def _instance(self, i: int, number: int, inside: np.ndarray, official: np.ndarray) -> Instance | None:
        """Object `number`, of the class that most of its pixels have; None if that class was not chosen."""
        inside = inside & (official != VOID)
        votes = np.bincount(official[inside], minlength=len(VOC) + 1)[1:]
        if not votes.any():
            raise UserError(
                f"object {number} of {self._object_maps[i]} has no class in {self._class_maps[i]}: correct one"
            )
        label = self._labels.get(int(votes.argmax()) + 1)
        if label is None:
            return None
        return Instance(label, rle_tools.encode(np.asfortranarray(inside, dtype=np.uint8)))


def _palette_indices(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The palette's indices, (H, W) uint8: converting to RGB would turn them into colours."""
    with image_files.opened(path) as picture:
        mode, indices = picture.mode, np.array(picture)
    if mode != "P":
        raise UserError(f"{path} is no palette PNG (mode {mode}): use VOC's original files, not re-saved ones")
    if indices.shape != shape:
        raise UserError(f"{path} is {in_pixels(indices.shape)} but its picture is {in_pixels(shape)}: fetch both again")
    return indices


def _split_names(root: Path, split: str) -> list[str]:
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.txt"))) or "none"
        raise UserError(f"no split list {file}: choose a split that is there ({known})")
    names = file.read_text(encoding="utf-8").split()
    if not names:
        raise UserError(f"{file} lists no image: fetch the data again")
    return names
