"""Captioned pictures of the drawn world, for the networks that read names: the small CLIP and Stable Diffusion."""

from collections.abc import Collection, Sequence

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm import tqdm

from miniature import world
from miniature.datasets import drawing_of
from miniature.splits import rng_of
from usam.data.class_names import COCO, SUPERCLASSES, VOC, prompt

# each name that a prompt may have: both data sets' own, and the paper's superclasses
CLASS_NAMES = tuple(sorted(name for name in {*VOC, *COCO.values()} if drawing_of(name) in world.DRAWINGS))
NAMES = (*CLASS_NAMES, *(name for name in SUPERCLASSES if name not in CLASS_NAMES))


def members(name: str) -> tuple[str, ...]:
    """The drawings that `name` may mean: its own, or all of a superclass."""
    return SUPERCLASSES.get(name) or (drawing_of(name),)


def names_of(drawing: str) -> tuple[list[str], list[str]]:
    """What a drawing is called: (its class names, its superclasses)."""
    own = [name for name in CLASS_NAMES if drawing_of(name) == drawing]
    return own, [name for name, drawings in SUPERCLASSES.items() if drawing in drawings and name not in own]


def caption(drawings: Sequence[str], rng: np.random.Generator, superclasses: float = 0.15) -> str:
    """ "a photo of a dog and a car", for the drawings on a picture; some are called by their superclass."""
    words = []
    for drawing in drawings:
        own, above = names_of(drawing)
        words.append(str(rng.choice(above if above and rng.random() < superclasses else own)))
    return prompt(" and a ".join(words))


def drawing(index: int) -> str:
    """The thing on picture `index`, the first if there are two: they take turns."""
    return list(world.DRAWINGS)[index % len(world.DRAWINGS)]


def picture(style_name: str, split: str, key: str, index: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Picture `index` of a style ("studio", "web", "any", "scene") and the drawings on it.

    "studio" and "web" show one thing; the others one or two, as in the small SAM's scenes.
    """
    rng = rng_of(split, key, style_name, index)
    first = drawing(index)
    if style_name in ("studio", "web"):
        return getattr(world, style_name)(first, rng).image, (first,)
    shown = (first,) if rng.random() < 0.5 else (first, str(rng.choice(list(world.DRAWINGS))))
    return world.scene([(name, world.draw(name, rng)) for name in shown], rng, style_name=style_name).image, shown


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The middle square of an image, `side` pixels wide."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = image[top : top + edge, left : left + edge]
    return cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA)


def turns(per_drawing: int, names: Collection[str] = tuple(world.DRAWINGS)) -> list[int]:
    """Indices of the first `per_drawing` pictures of each of `names`."""
    return [k for k in range(per_drawing * len(world.DRAWINGS)) if drawing(k) in names]


def render(
    style_names: Sequence[str], split: str, key: str, indices: Sequence[int], side: int
) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Pictures of each style: (len(indices) * len(style_names), 3, side, side) uint8, and the drawings on each."""
    jobs = [delayed(_rendered)(style_name, split, key, index, side) for index in indices for style_name in style_names]
    made = Parallel(n_jobs=2, batch_size=32, return_as="generator")(jobs)
    images, drawings = zip(*tqdm(made, total=len(jobs), desc="drawing", unit="image"), strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), list(drawings)


def _rendered(style_name: str, split: str, key: str, index: int, side: int) -> tuple[np.ndarray, tuple[str, ...]]:
    cv2.setNumThreads(1)  # two of these are at work
    image, drawings = picture(style_name, split, key, index)
    return square(image, side), drawings


def held_out(style_name: str, per_class: int, key: str, side: int = 160) -> tuple[Tensor, Tensor]:
    """Drawings of VOC's classes that no training has seen: (20 * per_class, 3, side, side) uint8, class by class."""
    images, drawings = render((style_name,), "val", key, turns(per_class, VOC), side)
    numbers = torch.tensor([VOC.index(name) for (name,) in drawings])
    order = numbers.argsort(stable=True)
    return images[order], numbers[order]
