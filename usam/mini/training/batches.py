"""What the small SAM learns from: pairs of pictures of the same individuals, clicks on them, and what a click means.

No class label is in a batch. Individuals and parts are numbers that hold within the batch alone.
"""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from usam.mini.sam import IMAGE_SIZE
from usam.mini.shapes import Part
from usam.mini.splits import rng_of
from usam.mini.world import DRAWINGS, Picture, draw, scene

SCENES, VIEWS, CLICKS = 8, 2, 5  # a batch: 8 scenes, two pictures of each, five clicks a picture
SHAPE_SIZE = 24
SIZES = ((128, 128), (96, 128), (128, 96), (112, 128), (128, 112))


def neutral_drawing(parts: list[Part]) -> np.ndarray:
    """Outline and part borders of a fitted drawing: (2, SHAPE_SIZE, SHAPE_SIZE) float32 in [0, 1]."""
    side = 2 * SHAPE_SIZE
    labels = np.zeros((side, side), np.uint8)
    for k, part in enumerate((p for p in parts if not p.detail), 1):
        cv2.fillPoly(labels, [np.round((c + 1) / 2 * (side - 1)).astype(np.int32) for c in part.contours], k)
    borders = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    layers = np.stack([labels > 0, borders], -1).astype(np.float32)
    return cv2.resize(layers, (SHAPE_SIZE, SHAPE_SIZE), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)


def click_targets(picture: Picture, y: int, x: int) -> np.ndarray:
    """What a click may mean, as (4, H, W) bool: [whole, part, group, whole], the order of SAM's four masks.

    A click beside all objects means the background, four times.
    """
    part, thing = picture.parts[y, x], picture.objects[y, x]
    whole = picture.objects == thing
    if part == 0:
        return np.stack([whole] * 4)
    mates = [k for k, owner in enumerate(picture.part_of, 1) if owner == picture.part_of[part - 1]]
    return np.stack([whole, picture.parts == part, np.isin(picture.parts, mates), whole])


def _clicks(picture: Picture, rng: np.random.Generator) -> list[tuple[int, int]]:
    """CLICKS points (y, x): four on objects (each object in turn, a random visible part), the rest beside them."""
    visible = [k for k in range(1, len(picture.names) + 1) if (picture.objects == k).sum() >= 30]
    named = [k for k in visible if picture.names[k - 1] is not None]
    points = []
    for n in range(4 if named else 0):
        thing = named[n % len(named)]
        ids, areas = np.unique(picture.parts[picture.objects == thing], return_counts=True)
        part = rng.choice(ids, p=np.sqrt(areas) / np.sqrt(areas).sum())
        points.append(_pixel((picture.parts == part) & (picture.objects == thing), rng))
    blobs = [k for k in visible if picture.names[k - 1] is None]
    if blobs and rng.random() < 0.5:
        points.append(_pixel(picture.objects == rng.choice(blobs), rng))
    while len(points) < CLICKS:
        background = picture.objects == 0
        points.append(_pixel(background if background.any() else picture.objects > 0, rng))
    return points


def _pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    ys, xs = np.nonzero(mask)
    k = rng.integers(len(ys))
    return int(ys[k]), int(xs[k])


def _pad(array: np.ndarray) -> np.ndarray:
    """Zeros to the right and below up to IMAGE_SIZE, as Sam.preprocess does."""
    height, width = array.shape[-2:]
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, IMAGE_SIZE - height), (0, IMAGE_SIZE - width)])


def make_batch(index: int, split: str = "sam") -> dict[str, Tensor]:
    """Batch `index` of a stream: SCENES scenes, VIEWS pictures of each, CLICKS clicks on each picture."""
    rng = rng_of(split, index)
    batch: dict[str, list] = {k: [] for k in ("images", "points", "targets", "owners", "owner_map", "part_map")}
    shapes: list[np.ndarray] = []
    for _ in range(SCENES):
        count = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.25, 0.1]))
        individuals = [(str(len(shapes) + k), _anyone(rng)) for k in range(count)]  # a number in place of a name
        shapes += [neutral_drawing(parts) for _, parts in individuals]
        for _ in range(VIEWS):
            look = "any" if rng.random() < 0.7 else "scene"
            _add(batch, scene(individuals, rng, SIZES[rng.integers(len(SIZES))], look, clutter=3), rng)
    return {
        "images": torch.from_numpy(np.stack(batch["images"])),  # (16, 3, 128, 128) float32
        "points": torch.tensor(batch["points"], dtype=torch.float32).view(-1, 1, 2),  # (80, 1, 2) x, y
        "targets": torch.from_numpy(np.stack(batch["targets"])),  # (80, 4, 64, 64) float16, share of a mask pixel
        "owners": torch.tensor(batch["owners"]),  # (80,) the individual clicked, -1 for blobs and background
        "owner_map": torch.from_numpy(np.stack(batch["owner_map"])),  # (16, 64, 64) the same at each mask pixel
        "part_map": torch.from_numpy(np.stack(batch["part_map"])),  # (16, 64, 64) part number, 0 background
        "shapes": torch.from_numpy(np.stack(shapes)),  # (individuals, 2, 24, 24)
    }


def _anyone(rng: np.random.Generator) -> list[Part]:
    return draw(list(DRAWINGS)[rng.integers(len(DRAWINGS))], rng)


def _add(batch: dict[str, list], picture: Picture, rng: np.random.Generator) -> None:
    """One picture and the clicks on it."""
    owner = np.array([-1, *(-1 if name is None else int(name) for name in picture.names)])
    batch["images"].append(_pad(_normalised(picture.image)))
    batch["owner_map"].append((_pad(owner[picture.objects] + 1) - 1)[1::2, 1::2])
    batch["part_map"].append(_pad(picture.parts.astype(np.int64))[1::2, 1::2])
    for y, x in _clicks(picture, rng):
        batch["points"].append((x, y))
        batch["targets"].append(_halved(_pad(click_targets(picture, y, x))))
        batch["owners"].append(int(owner[picture.objects[y, x]]))


def _halved(masks: np.ndarray) -> np.ndarray:
    """Bool masks (N, H, W) at the decoder's resolution, (N, H/2, W/2) float16: how much of a pixel a mask covers.

    Shares, not yes or no: so the logits tell where within a pixel a border runs, and enlarging them is worth it.
    """
    count, height, width = masks.shape
    return masks.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float16)


def _normalised(image: np.ndarray) -> np.ndarray:
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    return ((image.astype(np.float32) - mean) / std).transpose(2, 0, 1)


class Stream(IterableDataset):
    """Endless batches from `start` on."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self):
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        index = self.start
        while True:
            yield make_batch(index)
            index += 1
