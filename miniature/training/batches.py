"""What the small SAM learns from: pairs of pictures of the same individuals, clicks on them, and what a click means.

No class label is in a batch. Individuals and parts are numbers that hold within the batch alone.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from miniature import datasets
from miniature.sam import IMAGE_SIZE
from miniature.shapes import Part
from miniature.splits import rng_of
from miniature.world import DRAWINGS, Picture, draw, scene

SCENES, VIEWS = 8, 2  # a batch: 8 scenes, two pictures of each
CLICKS, SAM_CLICKS = 15, 5  # on each picture; the first five go through SAM's own decoder, which is dear
CROWDED = 0.3  # of the scenes are as in the miniature's COCO, the rest as in its VOC
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


def click_targets(maps: Tensor, points: Tensor) -> Tensor:
    """What each click may mean, at the decoder's resolution and in the order of SAM's four masks.

    A click beside all objects means the background, four times.

    Args:
        maps: (B, 3, S, S) integers: number of the object, the group and the part at each pixel, -1 in the padding.
        points: (B, K, 2) of (x, y), whole pixels.

    Returns:
        (B * K, 4, S / 2, S / 2) float32, [whole, part, group, whole]: which share of a mask pixel belongs to it.
        Shares, not yes or no: so the logits tell where within a pixel a border runs, and enlarging them is worth it.
    """
    x, y = points.long().unbind(-1)  # (B, K)
    clicked = maps[torch.arange(len(maps), device=maps.device)[:, None], :, y, x]  # (B, K, 3)
    same = (maps[:, None] == clicked[..., None, None]).flatten(0, 1)  # (B * K, 3, S, S)
    return F.avg_pool2d(same.float(), 2)[:, [0, 2, 1, 0]]


def _clicks(picture: Picture, rng: np.random.Generator) -> list[tuple[int, int]]:
    """CLICKS points (y, x), in fives: four on objects (each in turn, a random visible part), one beside them."""
    visible = [k for k in range(1, len(picture.names) + 1) if (picture.objects == k).sum() >= 30]
    named = [k for k in visible if picture.names[k - 1] is not None]
    blobs = [k for k in visible if picture.names[k - 1] is None]
    background = picture.objects == 0
    points = []
    for n in range(CLICKS):
        if named and n % 5 < 4:
            thing = named[(n - n // 5) % len(named)]
            ids, areas = np.unique(picture.parts[picture.objects == thing], return_counts=True)
            part = rng.choice(ids, p=np.sqrt(areas) / np.sqrt(areas).sum())
            points.append(_pixel((picture.parts == part) & (picture.objects == thing), rng))
        elif blobs and rng.random() < 0.5:
            points.append(_pixel(picture.objects == rng.choice(blobs), rng))
        else:
            points.append(_pixel(background if background.any() else picture.objects > 0, rng))
    return points


def _pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    ys, xs = np.nonzero(mask)
    k = rng.integers(len(ys))
    return int(ys[k]), int(xs[k])


def _pad(array: np.ndarray, value: int = 0) -> np.ndarray:
    """`value` to the right and below up to IMAGE_SIZE, as Sam.preprocess does with zeros."""
    height, width = array.shape[-2:]
    space = [(0, 0)] * (array.ndim - 2) + [(0, IMAGE_SIZE - height), (0, IMAGE_SIZE - width)]
    return np.pad(array, space, constant_values=value)


def make_batch(index: int, split: str = "sam") -> dict[str, Tensor]:
    """Batch `index` of a stream: SCENES scenes, VIEWS pictures of each, CLICKS clicks on each picture."""
    rng = rng_of(split, index)
    batch: dict[str, list] = {k: [] for k in ("images", "points", "maps", "owners", "owner_map")}
    shapes: list[np.ndarray] = []
    for _ in range(SCENES):
        kind = datasets.SCENES["coco" if rng.random() < CROWDED else "voc"]
        count = int(rng.choice(len(kind.chances), p=kind.chances)) + 1
        individuals = [(str(len(shapes) + k), _anyone(rng)) for k in range(count)]  # a number in place of a name
        shapes += [neutral_drawing(parts) for _, parts in individuals]
        for _ in range(VIEWS):
            style_name = rng.choice(["any", "scene"])
            _add(batch, scene(individuals, rng, SIZES[rng.integers(len(SIZES))], style_name, kind.layout), rng)
    return {
        "images": torch.from_numpy(np.stack(batch["images"])),  # (16, 3, 128, 128) float32
        "points": torch.tensor(batch["points"], dtype=torch.float32),  # (16, CLICKS, 2) x, y
        "maps": torch.from_numpy(np.stack(batch["maps"])),  # (16, 3, 128, 128) object, group, part; padding -1
        "owners": torch.tensor(batch["owners"]),  # (16, CLICKS) the individual clicked, -1 for blobs and background
        "owner_map": torch.from_numpy(np.stack(batch["owner_map"])),  # (16, 64, 64) the same at each mask pixel
        "shapes": torch.from_numpy(np.stack(shapes)),  # (individuals, 2, 24, 24)
    }


def _anyone(rng: np.random.Generator) -> list[Part]:
    return draw(list(DRAWINGS)[rng.integers(len(DRAWINGS))], rng)


def _add(batch: dict[str, list], picture: Picture, rng: np.random.Generator) -> None:
    """One picture and the clicks on it."""
    owner = np.array([-1, *(-1 if name is None else int(name) for name in picture.names)])
    numbers = {who: n for n, who in enumerate(dict.fromkeys(picture.part_of), 1)}
    group = np.array([0, *(numbers[who] for who in picture.part_of)], np.uint8)
    clicks = _clicks(picture, rng)
    batch["images"].append(_pad(_normalised(picture.image)))
    batch["owner_map"].append(_pad(owner[picture.objects], -1)[1::2, 1::2])
    batch["maps"].append(_pad(np.int16([picture.objects, group[picture.parts], picture.parts]), -1))
    batch["points"].append([(x, y) for y, x in clicks])
    batch["owners"].append([int(owner[picture.objects[y, x]]) for y, x in clicks])


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
