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
from usam.baselines.sam_clip import squared
from usam.data.class_names import COCO, SUPERCLASSES, VOC, prompt

# each name that a prompt may have: both data sets' own, and the paper's superclasses
CLASS_NAMES = tuple(sorted(name for name in {*VOC, *COCO.values()} if drawing_of(name) in world.DRAWINGS))
NAMES = (*CLASS_NAMES, *(name for name in SUPERCLASSES if name not in CLASS_NAMES))
DRAWN_STYLES = ("studio", "web", "any", "scene")
GROUNDS = ("landscape", "wall", "pattern", "shape")  # what a picture without things may be called


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
        if drawing in GROUNDS:
            words.append(drawing)
            continue
        own, above = names_of(drawing)
        words.append(str(rng.choice(above if above and rng.random() < superclasses else own)))
    return prompt(" and a ".join(words))


def drawing(index: int) -> str:
    """The thing on picture `index`, the first if there are two: they take turns."""
    return list(world.DRAWINGS)[index % len(world.DRAWINGS)]


def picture(style_name: str, split: str, key: str, index: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Picture `index` of a style and what is on it: drawings, or one of `GROUNDS`.

    "studio" and "web" show one thing; "any" and "scene" one or two, as in the small SAM's scenes. "cutout" is one thing
    of these, cut out along its true outline as the web has it (`cut_out`); "ground" is a background without things.
    """
    rng = rng_of(split, key, style_name, index)
    if style_name == "ground":
        return ground(rng)
    if style_name == "cutout":
        style = str(rng.choice(DRAWN_STYLES))
        drawn, shown = _drawn(style, drawing(index), rng)
        return cut_out(drawn, rng), shown[:1]
    drawn, shown = _drawn(style_name, drawing(index), rng)
    return drawn.image, shown


def _drawn(style_name: str, first: str, rng: np.random.Generator) -> tuple[world.Picture, tuple[str, ...]]:
    """One or two things in a style of `DRAWN_STYLES`, `first` always among them, and their names."""
    if style_name in ("studio", "web"):
        return getattr(world, style_name)(first, rng), (first,)
    shown = (first,) if rng.random() < 0.5 else (first, str(rng.choice(list(world.DRAWINGS))))
    return world.scene([(name, world.draw(name, rng)) for name in shown], rng, style_name=style_name), shown


def cut_out(drawn: world.Picture, rng: np.random.Generator) -> np.ndarray:
    """The first named thing of a picture on another ground: (s, s, 3) uint8.

    The ground is black, white, grey, any colour, or the picture out of focus. Half of the cut-outs keep their place in
    the frame; half are cropped to the thing with a margin of up to a quarter.
    """
    image = drawn.image
    number = next(k for k, name in enumerate(drawn.names, 1) if name is not None)
    mask = drawn.objects == number
    if not mask.any():  # hidden by what stands before it
        mask = drawn.objects > 0
    paper = _paper(rng)
    if rng.random() < 0.2:
        behind = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.05, 0.15) * max(image.shape[:2]))
    else:
        behind = np.broadcast_to(paper, image.shape)
    shown = np.where(mask[..., None], image, behind)
    if rng.random() < 0.5:
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        margin = int(rng.uniform(0, 0.25) * max(ys[-1] - ys[0], xs[-1] - xs[0]))
        shown = shown[max(ys[0] - margin, 0) : ys[-1] + 1 + margin, max(xs[0] - margin, 0) : xs[-1] + 1 + margin]
    return squared(shown, paper)


def _paper(rng: np.random.Generator) -> np.ndarray:
    """The colour (3,) uint8 of a plain ground: black, white, a grey or any."""
    kind = rng.choice(["black", "white", "grey", "any"], p=[0.4, 0.2, 0.2, 0.2])
    if kind == "any":
        return rng.integers(0, 256, 3).astype(np.uint8)
    level = {"black": 0, "white": 255, "grey": rng.integers(60, 200)}[kind]
    return np.full(3, level, np.uint8)


def ground(rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, ...]]:
    """A picture without things, and its name: a background, or nameless blobs on one, whole or a piece cut out."""
    style, kind = (("scene", "landscape"), ("studio", "wall"), ("web", "pattern"))[rng.integers(3)]
    blobs = rng.random() < 0.4
    placed = [
        (None, world.place(world.blob(rng), (192, 192), rng.uniform(40, 150), tuple(rng.uniform(0.2, 0.8, 2)), rng))
        for _ in range(rng.integers(1, 4) if blobs else 0)
    ]
    drawn = world.paint(placed, (192, 192), style, rng)
    if rng.random() < 0.5:  # a piece of it, on plain paper
        mask = drawn.objects == rng.integers(1, len(placed) + 1) if blobs else _piece(rng)
        if mask.any():
            return np.where(mask[..., None], drawn.image, _paper(rng)), ("shape" if blobs else kind,)
    return drawn.image, ("shape" if blobs else kind,)


def _piece(rng: np.random.Generator, side: int = 192) -> np.ndarray:
    """A piece of a picture (side, side) bool: all above or below a slanted line, or a lump, with a hole or without."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
    half = x * np.cos(angle) + y * np.sin(angle) > shift
    a, b, radius = *rng.uniform(-0.5, 0.5, 2), rng.uniform(0.2, 0.8)
    bumps = 1 + 0.3 * np.sin(rng.integers(2, 6) * np.arctan2(y - b, x - a) + angle)
    lump = np.hypot(x - a, y - b) < radius * bumps
    return (half, lump, half & ~lump, ~lump)[rng.integers(4)]


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
