"""Single-object images cut out of labelled scenes: what training images in domain would be (`methods.in_domain`)."""

import functools
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle_codec

from usam.data.datasets import Dataset
from usam.errors import UserError

MARGIN = 1.3  # side of a crop, as a multiple of the longer side of the object's box
SMALLEST = 24  # pixels of that side; less shows nothing when it is enlarged to SAM's input


class Crop(NamedTuple):
    """A square around one object, cut at the border of its image.

    Attributes:
        image: place of the image in the data set.
        label: class index of the object, 0 to C - 1.
        rows, columns: (first, last + 1) pixel.
    """

    image: int
    label: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """This part of the image (H, W, 3)."""
        return image[slice(*self.rows), slice(*self.columns)]


@functools.lru_cache(maxsize=4)  # all annotations are read, for each seed of the heads
def object_crops(dataset: Dataset, per_class: int) -> tuple[Crop, ...]:
    """The first `per_class` objects of each class, in the order of the images; crowds and tiny objects are left out.

    Raises:
        UserError: there is no object.
    """
    found: list[Crop] = []
    count = np.zeros(len(dataset.class_names), int)
    for i in range(len(dataset)):
        for one in dataset[i].instances:
            x, y, width, height = rle_codec.toBbox(one.mask)
            side = max(width, height)
            if one.crowd or side < SMALLEST or count[one.label] == per_class:
                continue
            count[one.label] += 1
            rows = _around(y + height / 2, MARGIN * side, one.mask["size"][0])
            columns = _around(x + width / 2, MARGIN * side, one.mask["size"][1])
            found.append(Crop(i, one.label, rows, columns))
    if not found:
        raise UserError(f"{dataset.name} shows no object of its classes: choose other classes, or another split")
    return tuple(found)


def _around(centre: float, side: float, limit: int) -> tuple[int, int]:
    return max(round(centre - side / 2), 0), min(round(centre + side / 2), limit)
