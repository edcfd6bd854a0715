"""Pictures of the drawn world: objects in scenes, in the studio and on the web.

The three styles differ on purpose (palette, background, line, light, texture, crop, noise), because the paper's
training images and test images come from different distributions too (paper 4, "Discussion").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from miniature import animals, household, vehicles
from miniature.render import Canvas
from miniature.shapes import Part, bounds, fit, smooth, transform
from usam.errors import UserError

DRAWINGS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    **animals.DRAWINGS,
    **vehicles.DRAWINGS,
    **household.DRAWINGS,
}
SCENE_SIZES = ((192, 256), (256, 192), (224, 224), (176, 256), (256, 176))  # (height, width): both orientations


@dataclass(frozen=True)
class Picture:
    """A picture and what is where on it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        objects: (H, W) uint8: 0 = background, k = object k, visible pixels only.
        parts: (H, W) uint8: 0 = background, k = part k, numbered over all objects.
        names: category of object k at `names[k - 1]`; None for a nameless blob.
        part_of: (object number, group name) of part k at `part_of[k - 1]`.
    """

    image: np.ndarray
    objects: np.ndarray
    parts: np.ndarray
    names: tuple[str | None, ...]
    part_of: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Style:
    """How a style treats what is drawn; ranges are sampled once a picture.

    Attributes:
        hue: largest turn of an object's hues, as a share of the colour circle.
        saturation, value: factors on an object's colours, (low, high).
        outlines: widths of the dark line around parts to choose from, in pixels; 0 is none.
        light: strength of the light's gradient over the picture.
        texture: strength of the surfaces' soft texture.
        noise: standard deviation of the camera noise, in grey levels.
        tint: strength of a colour cast over everything.
    """

    hue: float
    saturation: tuple[float, float]
    value: tuple[float, float]
    outlines: tuple[float, ...]
    light: float
    texture: float
    noise: float
    tint: float


STYLES = {
    "scene": Style(0.03, (0.6, 0.95), (0.7, 1.0), (0.0,), 0.35, 0.12, 5.0, 0.10),
    "studio": Style(0.02, (0.95, 1.25), (0.95, 1.1), (0.0, 0.6), 0.12, 0.03, 1.0, 0.02),
    "web": Style(0.06, (0.4, 1.3), (0.75, 1.15), (0.0, 0.0, 1.2), 0.25, 0.08, 8.0, 0.22),
    # what the small SAM learns on: everything the others do, and more
    "any": Style(0.10, (0.3, 1.3), (0.6, 1.15), (0.0, 0.0, 0.6, 1.2), 0.4, 0.15, 8.0, 0.25),
}


def draw(name: str, rng: np.random.Generator) -> list[Part]:
    """One individual of category `name`, fitted to [-1, 1].

    Raises:
        UserError: nobody has drawn such a thing.
    """
    if name not in DRAWINGS:
        raise UserError(f"the drawn world has no '{name}': choose from {', '.join(sorted(DRAWINGS))}")
    return fit(DRAWINGS[name](rng))


def blob(rng: np.random.Generator) -> list[Part]:
    """A nameless thing: a lumpy outline, sometimes with a second lump on it."""
    color = tuple(rng.uniform(0.1, 0.9, 3))
    parts = [Part("blob", _lump(rng, int(rng.integers(3, 9))), color)]
    if rng.random() < 0.5:
        lump = tuple(c * 0.5 + np.float32(rng.uniform(-0.3, 0.3, 2)) for c in _lump(rng, 5))
        parts.append(Part("lump", lump, tuple(rng.uniform(0.1, 0.9, 3))))
    return fit(parts)


def _lump(rng: np.random.Generator, corners: int) -> tuple[np.ndarray, ...]:
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners)) + np.arange(corners) * 0.05
    radius = rng.uniform(0.5, 1.0, corners)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    return smooth(*points) if rng.random() < 0.6 else (points,)


def _recolor(parts: Sequence[Part], style: Style, rng: np.random.Generator) -> list[Part]:
    """The same drawing in another paint: one hue turn, saturation and value for the whole object."""
    rgb = np.float32([[p.color for p in parts]])
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[0]  # hue in degrees
    hsv[:, 0] = (hsv[:, 0] + 360 * rng.uniform(-style.hue, style.hue)) % 360
    hsv[:, 1] = np.clip(hsv[:, 1] * rng.uniform(*style.saturation), 0, 1)
    hsv[:, 2] = np.clip(hsv[:, 2] * rng.uniform(*style.value), 0, 1)
    colors = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return [replace(p, color=tuple(map(float, c))) for p, c in zip(parts, colors, strict=True)]


def place(
    parts: Sequence[Part], size: tuple[int, int], side: float, centre: tuple[float, float], rng: np.random.Generator
) -> list[Part]:
    """Pose a fitted drawing: flipped or not, a little turned, stretched and sheared, its longer side `side` pixels.

    Args:
        parts: a drawing within [-1, 1].
        size: (height, width) of the picture in pixels.
        side: longer side of the posed object in pixels.
        centre: (x, y) of its middle, as shares of the picture.
        rng: where flip, turn, stretch and shear come from.
    """
    angle = np.deg2rad(rng.normal(0, 5))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[rng.uniform(0.82, 1.1), rng.normal(0, 0.05)], [0, 1]]) @ np.diag([rng.choice([-1, 1]), 1])
    posed = transform(parts, (turn @ stretch).astype(np.float32), np.zeros(2, np.float32))
    low, high = bounds(posed)
    scale = side / (high - low).max()
    middle = np.float32([centre[0] * size[1], centre[1] * size[0]])
    return transform(
        posed, np.eye(2, dtype=np.float32) * np.float32(scale), middle - (low + high) / 2 * np.float32(scale)
    )


# -- backgrounds, (H, W, 3) uint8 ---------------------------------------------------------------------------------


def _noise_field(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Soft random field (H, W) float32 in about [-1, 1] with `cells` bumps along a side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _gradient(size: tuple[int, int], start: np.ndarray, end: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours from `start` to `end` along a random direction: (H, W, 3) float32 in [0, 1]."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in size)
    t = np.clip(x[None] * np.float32(np.cos(angle)) + (y * np.float32(np.sin(angle)))[:, None] + 0.5, 0, 1)  # (H, W)
    return start + t[..., None] * (end - start)


def _color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    hsv = np.float32([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _outdoors(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Two grounds that meet at a wavy horizon: sky and field, wall and floor."""
    height, width = size
    far = _gradient(size, _color(rng, (0.05, 0.4), (0.55, 0.95)), _color(rng, (0.05, 0.4), (0.45, 0.9)), rng)
    near = _gradient(size, _color(rng, (0.1, 0.5), (0.3, 0.7)), _color(rng, (0.1, 0.5), (0.25, 0.65)), rng)
    wave = rng.uniform(0, 0.06) * np.sin(np.linspace(0, rng.uniform(2, 12), width) + rng.uniform(0, 6))
    horizon = (height * (rng.uniform(0.25, 0.75) + wave)).astype(np.float32)
    below = np.arange(height, dtype=np.float32)[:, None] > horizon[None]
    picture = np.where(below[..., None], near, far)
    grain = _noise_field(size, int(rng.integers(8, 40)), rng) * rng.uniform(0.02, 0.12)
    return _to_bytes(picture + (grain * below + 0.3 * grain)[..., None])


def _backdrop(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A photographer's paper: pale, nearly even, a little darker to one side."""
    paper = _color(rng, (0.0, 0.18), (0.85, 1.0))
    return _to_bytes(_gradient(size, paper, paper * rng.uniform(0.8, 0.97), rng))


def _pattern(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks, bokeh or a plain gradient in any two colours: what stands behind things on the web."""
    one, two = _color(rng, (0.1, 0.9), (0.3, 1.0)), _color(rng, (0.1, 0.9), (0.3, 1.0))
    y, x = np.ogrid[: size[0], : size[1]]  # (H, 1), (1, W)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.3) * max(size)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    other = np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
    t = {
        0: wave > 0,
        1: (wave > 0) ^ (other > 0),
        2: _noise_field(size, int(rng.integers(3, 9)), rng) > 0.1,
        3: 0.5 + 0.5 * wave,
    }[int(rng.integers(4))]
    contrast = rng.uniform(0.25, 0.9)
    mixed = one + np.float32(t)[..., None] * contrast * (two - one)
    picture = _gradient(size, one, two, rng) if rng.random() < 0.3 else mixed
    return cv2.GaussianBlur(_to_bytes(picture), (0, 0), float(rng.uniform(0.6, 3.0)))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255, 0, 255).astype(np.uint8)


BACKGROUNDS = {
    "scene": (_outdoors,),
    "studio": (_backdrop,),
    "web": (_pattern,),
    "any": (_outdoors, _pattern, _backdrop),
}


# -- pictures -----------------------------------------------------------------------------------------------------


def _develop(picture: Canvas, style: Style, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light, surface texture, colour cast and camera noise over the finished drawing."""
    image, objects, parts = picture.finish()
    size = image.shape[:2]
    light = _gradient(
        size, np.float32([1 + style.light * rng.random()]), np.float32([1 - style.light * rng.random()]), rng
    )
    texture = _noise_field(size, int(rng.integers(6, 48)), rng)[..., None]
    gain = rng.uniform(0.88, 1.12, picture.object_count + 1).astype(np.float32)[objects][..., None]
    cast = 1 + style.tint * rng.uniform(-1, 1, 3).astype(np.float32)
    noise = rng.standard_normal(size, dtype=np.float32)[..., None] * (style.noise * rng.random())
    lit = image * (light * gain * (1 + style.texture * rng.random() * texture)) * cast + noise
    return np.clip(lit, 0, 255).astype(np.uint8), objects, parts


def paint(
    placed: Sequence[tuple[str | None, list[Part]]], size: tuple[int, int], style_name: str, rng: np.random.Generator
) -> Picture:
    """Paint posed drawings, back to front, in one style."""
    style, backgrounds = STYLES[style_name], BACKGROUNDS[style_name]
    canvas = Canvas.blank(backgrounds[rng.integers(len(backgrounds))](size, rng))
    outline = float(rng.choice(style.outlines))
    for _, parts in placed:
        canvas.paint(_recolor(parts, style, rng), outline)
    image, objects, parts = _develop(canvas, style, rng)
    return Picture(image, objects, parts, tuple(name for name, _ in placed), tuple(canvas.part_of))


class Layout(NamedTuple):
    """How the things of a scene lie, and how long their longer sides are."""

    rows: int = 1  # in which the objects stand side by side
    smallest: float = 0.28  # object, as a share of the picture's longer side
    largest: tuple[float, ...] = (0.95, 0.75, 0.62, 0.52)  # if there is one object, if there are two, ...
    clutter: int = 4  # at most this many blobs
    blobs: tuple[float, float] = (0.12, 0.4)  # smallest and largest, as shares of the picture's shorter side


def scene(
    individuals: Sequence[tuple[str, list[Part]]],
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
    style_name: str = "scene",
    layout: Layout | None = None,
) -> Picture:
    """Several objects, overlapping, among nameless blobs.

    Args:
        individuals: (category, fitted drawing) of each object.
        rng: the only source of chance.
        size: (height, width) in pixels; one of `SCENE_SIZES` by default.
        style_name: a key of `STYLES`.
        layout: see `Layout`; by default few and large objects.
    """
    size, layout = size or SCENE_SIZES[rng.integers(len(SCENE_SIZES))], layout or Layout()
    rows, columns = layout.rows, -(-len(individuals) // layout.rows)
    largest = layout.largest[min(len(individuals), len(layout.largest)) - 1]
    placed: list[tuple[str | None, list[Part]]] = []
    for _ in range(int(rng.integers(0, layout.clutter + 1))):
        side = rng.uniform(*layout.blobs) * min(size)
        placed.append((None, place(blob(rng), size, side, tuple(rng.uniform(0, 1, 2)), rng)))
    for (name, parts), cell in zip(individuals, rng.permutation(rows * columns), strict=False):  # cells may stay empty
        side = min(rng.uniform(layout.smallest, largest) * max(size), 1.05 * min(size))
        x = (cell % columns + 0.5 + rng.normal(0, 0.18)) / columns  # jitter: they overlap, but seldom hide each other
        y = (cell // columns + 0.5) / rows + rng.normal(0, 0.12)
        centre = np.clip(x, 0.1, 0.9), np.clip(y, 0.2 / rows, 1 - 0.2 / rows)
        placed.append((name, place(parts, size, side, centre, rng)))
    blobs_in_front = [p for p in placed if p[0] is None and rng.random() < 0.25]
    behind = [p for p in placed if not any(p is q for q in blobs_in_front)]
    return paint(behind + blobs_in_front, size, style_name, rng)


def studio(name: str, rng: np.random.Generator, size: tuple[int, int] = (192, 192)) -> Picture:
    """One object, centred, on plain paper: what a text-to-image model makes of "a photo of a {name}"."""
    parts = place(draw(name, rng), size, rng.uniform(0.6, 0.92) * min(size), tuple(rng.normal(0.5, 0.02, 2)), rng)
    return paint([(name, parts)], size, "studio", rng)


def web(name: str, rng: np.random.Generator) -> Picture:
    """One object, any framing, on anything: what an image search brings."""
    size = ((192, 192), (160, 224), (224, 160))[rng.integers(3)]
    side = rng.uniform(0.55, 1.2) * min(size)
    parts = place(draw(name, rng), size, side, tuple(rng.normal(0.5, 0.07, 2)), rng)
    return paint([(name, parts)], size, "web", rng)
