"""Captioned pictures of the drawn world, for the networks that read names: the small CLIP and Stable Diffusion."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usam.classes import COCO, PROMPT, SUPERCLASSES, VOC
from usam.mini import world
from usam.mini.data import drawing_of
from usam.mini.splits import rng_of

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
    return PROMPT.format(c=" and a ".join(words))


def drawing(index: int) -> str:
    """The thing on picture `index`, the first if there are two: they take turns."""
    return list(world.DRAWINGS)[index % len(world.DRAWINGS)]


def picture(look: str, split: str, key: str, index: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Picture `index` of a look ("studio", "web", "any", "scene") and the drawings on it.

    "studio" and "web" show one thing; the others one or two, as in the small SAM's scenes.
    """
    rng = rng_of(split, key, look, index)
    first = drawing(index)
    if look in ("studio", "web"):
        return getattr(world, look)(first, rng).image, (first,)
    shown = (first,) if rng.random() < 0.5 else (first, str(rng.choice(list(world.DRAWINGS))))
    return world.scene([(name, world.draw(name, rng)) for name in shown], rng, look=look).image, shown


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The middle square of an image, `side` pixels wide."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = image[top : top + edge, left : left + edge]
    return cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA)


def render(
    looks: Sequence[str], split: str, key: str, indices: Sequence[int], side: int, workers: int = 2
) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Pictures of each look: (len(indices) * len(looks), 3, side, side) uint8, and the drawings on each."""
    jobs = [(look, split, key, index) for index in indices for look in looks]
    make = partial(_rendered, side=side)
    if workers == 0:
        made = [make(job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            made = list(tqdm(pool.map(make, jobs, chunksize=64), total=len(jobs), desc="drawing", unit="image"))
    return torch.from_numpy(np.stack([image for image, _ in made])).permute(0, 3, 1, 2).contiguous(), [
        drawings for _, drawings in made
    ]


def _rendered(job: tuple[str, str, str, int], side: int) -> tuple[np.ndarray, tuple[str, ...]]:
    image, drawings = picture(*job)
    return square(image, side), drawings


def _one_thread() -> None:
    cv2.setNumThreads(1)


def held_out(look: str, per_class: int, key: str, side: int = 160) -> tuple[Tensor, Tensor]:
    """Drawings of VOC's classes that no training has seen: (20 * per_class, 3, side, side) uint8, class numbers."""
    made = [
        (square(getattr(world, look)(name, rng_of("val", key, look, name, k)).image, side), number)
        for number, name in enumerate(VOC)
        for k in range(per_class)
    ]
    images = torch.from_numpy(np.stack([image for image, _ in made])).permute(0, 3, 1, 2)
    return images, torch.tensor([number for _, number in made])
