"""Outlines and parts: the vocabulary in which every drawing of the small world is written.

A drawing is a list of `Part`, back to front. Object coordinates: x to the right, y down, the whole object
within about [-1, 1] x [-1, 1]. An outline ("contour") is an (n, 2) float32 array of points; a part may have
several, filled by the even-odd rule, so that a second contour inside the first is a hole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Contour = np.ndarray  # (n, 2) float32, object coordinates
Color = tuple[float, float, float]  # RGB in [0, 1]


@dataclass(frozen=True)
class Part:
    """One filled region of a drawing.

    Args:
        name: what it is, as "group.part" ("head.ear") or "part" ("seat"). Names tell parts apart; nothing
            that is trained ever sees them.
        contours: outlines, filled by the even-odd rule.
        color: RGB in [0, 1].
        detail: a mark (an eye, a stripe) on the part before it: drawn only where that part is visible, and
            without a mask of its own.
    """

    name: str
    contours: tuple[Contour, ...]
    color: Color
    detail: bool = False

    @property
    def group(self) -> str:
        """The larger thing that this part belongs to: "head" for "head.ear", the part itself without a dot."""
        return self.name.split(".")[0]


def polygon(*points: tuple[float, float]) -> tuple[Contour, ...]:
    """Straight-sided outline through `points`."""
    return (np.asarray(points, np.float32),)


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, degrees: float = 0.0) -> tuple[Contour, ...]:
    """Ellipse around (cx, cy) with half-axes rx, ry (a circle without ry), turned clockwise by `degrees`."""
    ry = rx if ry is None else ry
    angle = np.linspace(0, 2 * np.pi, 33, dtype=np.float32)[:-1]
    points = np.stack([rx * np.cos(angle), ry * np.sin(angle)], 1)
    return rotate((points + np.float32([cx, cy]),), degrees, (cx, cy))


def ring(cx: float, cy: float, rx: float, thickness: float, ry: float | None = None) -> tuple[Contour, ...]:
    """Annulus with outer half-axes rx, ry; what is inside stays see-through."""
    ry = rx if ry is None else ry
    return ellipse(cx, cy, rx, ry) + ellipse(cx, cy, rx - thickness, ry - thickness)


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> tuple[Contour, ...]:
    """Upright rectangle from (x0, y0) to (x1, y1) with corners rounded by `radius`."""
    r = min(radius, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
    if r <= 0:
        return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    quarter = np.linspace(0, np.pi / 2, 6)
    corners = [(x1 - r, y1 - r, 0), (x0 + r, y1 - r, 1), (x0 + r, y0 + r, 2), (x1 - r, y0 + r, 3)]
    points = [
        (cx + r * np.cos(a + k * np.pi / 2), cy + r * np.sin(a + k * np.pi / 2))
        for cx, cy, k in corners
        for a in quarter
    ]
    return (np.asarray(points, np.float32),)


def smooth(*points: tuple[float, float], steps: int = 6) -> tuple[Contour, ...]:
    """Closed Catmull-Rom curve through `points`: the outline of anything organic."""
    p1 = np.asarray(points, np.float32)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[:, None, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    return (curve.transpose(1, 0, 2).reshape(-1, 2),)


def limb(points: Sequence[tuple[float, float]], width: float | Sequence[float]) -> tuple[Contour, ...]:
    """Thick open line with round ends: a leg, a tube, a tail. `width` is its full width, one or one a point."""
    line = np.asarray(points, np.float32)
    half = np.broadcast_to(np.asarray(width, np.float32) / 2, (len(line),))
    direction = np.gradient(line, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1)
    left, right = line + normal * half[:, None], line - normal * half[:, None]

    def cap(centre: np.ndarray, start: np.ndarray, radius: float) -> np.ndarray:
        first = np.arctan2(start[1], start[0])
        angles = first - np.linspace(0, np.pi, 7)[1:-1]
        return centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)

    end, begin = cap(line[-1], normal[-1], half[-1]), cap(line[0], -normal[0], half[0])
    return (np.concatenate([left, end, right[::-1], begin]).astype(np.float32),)


def rotate(
    contours: tuple[Contour, ...], degrees: float, centre: tuple[float, float] = (0.0, 0.0)
) -> tuple[Contour, ...]:
    """The contours turned clockwise (as seen on the picture, y down) by `degrees` around `centre`."""
    a = np.deg2rad(degrees)
    matrix = np.float32([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return tuple((c - np.float32(centre)) @ matrix + np.float32(centre) for c in contours)


def shift(contours: tuple[Contour, ...], dx: float, dy: float) -> tuple[Contour, ...]:
    """The contours moved by (dx, dy)."""
    return tuple(c + np.float32([dx, dy]) for c in contours)


def transform(parts: Sequence[Part], matrix: np.ndarray, offset: np.ndarray) -> list[Part]:
    """Every contour point p of every part becomes p @ matrix.T + offset."""
    return [replace(p, contours=tuple(c @ matrix.T + offset for c in p.contours)) for p in parts]


def bounds(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """(lowest x, y), (highest x, y) of a drawing: two float32 arrays of 2."""
    points = np.concatenate([c for p in parts for c in p.contours])
    return points.min(0), points.max(0)


def fit(parts: Sequence[Part]) -> list[Part]:
    """The drawing centred on the origin, its longer side from -1 to 1."""
    low, high = bounds(parts)
    scale = 2 / (high - low).max()
    return transform(parts, np.eye(2, dtype=np.float32) * scale, -(low + high) / 2 * scale)


def shade(color: Color, factor: float) -> Color:
    """Darker (factor < 1) or lighter (factor > 1)."""
    return tuple(float(np.clip(c * factor, 0, 1)) for c in color)


def pick(rng: np.random.Generator, colors: Sequence[Color], jitter: float = 0.06) -> Color:
    """One of `colors`, each channel moved by up to `jitter`."""
    color = colors[rng.integers(len(colors))]
    return tuple(float(np.clip(c + rng.uniform(-jitter, jitter), 0, 1)) for c in color)
