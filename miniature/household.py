"""Furniture and things of the house."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from miniature.shapes import Color, Contour, Part, box, ellipse, limb, pick, polygon, rotate, shade, shift, transform

Contours = tuple[Contour, ...]

WOOD = [(0.62, 0.42, 0.24), (0.45, 0.28, 0.15), (0.78, 0.6, 0.38), (0.35, 0.2, 0.12), (0.85, 0.82, 0.76)]
FABRIC = [(0.7, 0.2, 0.2), (0.25, 0.35, 0.55), (0.75, 0.68, 0.55), (0.4, 0.42, 0.45), (0.3, 0.45, 0.32)]
BRIGHT = [(0.88, 0.15, 0.15), (0.12, 0.35, 0.8), (0.98, 0.8, 0.1), (0.15, 0.65, 0.3), (0.95, 0.5, 0.1), (0.6, 0.2, 0.6)]
WHITE, METAL, DARK = (0.96, 0.96, 0.95), (0.72, 0.74, 0.77), (0.12, 0.12, 0.14)
CERAMIC = [WHITE, (0.75, 0.2, 0.18), (0.2, 0.4, 0.65), (0.92, 0.75, 0.25), (0.3, 0.55, 0.45), (0.75, 0.4, 0.25)]
LEAVES = [(0.2, 0.5, 0.18), (0.3, 0.6, 0.2), (0.12, 0.4, 0.2), (0.42, 0.62, 0.25)]
GLASS = [(0.1, 0.3, 0.15), (0.4, 0.2, 0.08), (0.12, 0.16, 0.12), (0.5, 0.6, 0.35)]
PLASTIC = [(0.7, 0.85, 0.95), (0.7, 0.85, 0.95), (0.3, 0.12, 0.06), (0.95, 0.6, 0.15), (0.55, 0.8, 0.4)]


def _vary(rng: np.random.Generator, *ranges: tuple[float, float]) -> list[float]:
    """One number from each (low, high) range."""
    return [rng.uniform(low, high) for low, high in ranges]


def _mark(contours: Contours, color: Color) -> Part:
    """A small mark on the part before it."""
    return Part("mark", contours, color, detail=True)


def _turned(parts: Sequence[Part], degrees: float, x: float = 1, y: float = 1) -> list[Part]:
    """The drawing scaled by x and y (-1 mirrors it), then turned clockwise around the origin."""
    return transform(parts, rotate((np.diag([x, y]).astype(np.float32),), degrees)[0].T, np.float32([0, 0]))


def _lathe(profile: Sequence[tuple[float, float]], top: float, bottom: float, sag: float = 0.1) -> Contours:
    """The band from `top` to `bottom` of a turned body with (y, half-width) knots, seen from above by `sag`."""
    knot_y, knot_r = np.asarray(profile, np.float32).T
    y = np.linspace(top, bottom, 20)
    i = np.clip(np.searchsorted(knot_y, y, side="right") - 1, 0, len(knot_y) - 2)
    u = np.clip((y - knot_y[i]) / (knot_y[i + 1] - knot_y[i]), 0, 1)
    r = knot_r[i] + (knot_r[i + 1] - knot_r[i]) * u * u * (3 - 2 * u)
    a = np.linspace(0, np.pi, 11)[1:-1]
    low, high = (np.stack([r[k] * np.cos(a), y[k] + sag * r[k] * np.sin(a)], 1) for k in (-1, 0))
    return (np.concatenate([np.stack([r, y], 1), low, np.stack([-r, y], 1)[::-1], high[::-1]]).astype(np.float32),)


def _curve(x: float, y: float, heading: float, length: float, bend: float, n: int = 9) -> np.ndarray:
    """Points of an arc from (x, y): heading in degrees (0 = right, 90 = up), turning by `bend` over its length."""
    a = np.deg2rad(heading + bend * np.linspace(0, 1, n - 1))
    steps = np.stack([np.cos(a), -np.sin(a)], 1) * length / (n - 1)
    return np.float32([x, y]) + np.concatenate([[(0, 0)], np.cumsum(steps, 0)]).astype(np.float32)


class _Camera:
    """Parallel projection of furniture coordinates: x right, y up, z away from the viewer; angles in degrees."""

    def __init__(self, yaw: float, pitch: float):
        (self.cy, self.cp), (self.sy, self.sp) = np.cos(np.deg2rad([yaw, pitch])), np.sin(np.deg2rad([yaw, pitch]))

    def __call__(self, x: np.ndarray, y: np.ndarray | float, z: np.ndarray | float) -> Contour:
        right, away = x * self.cy + z * self.sy, z * self.cy - x * self.sy
        return np.stack([right, -y * self.cp - away * self.sp], 1).astype(np.float32)

    def bar(self, width: float | Sequence[float], *points: Sequence[float]) -> Contours:
        """A thick line through points in space."""
        return limb(self(*np.transpose(points)), width)

    def upright(self, contours: Contours, z: float = 0, lean: float = 0, foot: float = 0) -> Contours:
        """Outlines in (x, y) standing at depth z, leaning back by `lean` for each unit above `foot`."""
        return tuple(self(c[:, 0], c[:, 1], z + lean * (c[:, 1] - foot)) for c in contours)

    def flat(self, contours: Contours, y: float) -> Contours:
        """Outlines in (x, z) lying at height y."""
        return tuple(self(c[:, 0], y, c[:, 1]) for c in contours)

    def block(self, name: str, low: tuple, high: tuple, color: Color, cut: float = 0, lean: float = 0) -> list[Part]:
        """A box between two corners, its top and front as marks; `cut` bevels the edges running away from us."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        a, b, c, d = x0 + cut, x1 - cut, y0 + cut, y1 - cut
        outline = polygon((a, y0), (b, y0), (x1, c), (x1, d), (b, y1), (a, y1), (x0, d), (x0, c))
        front, back = (self.upright(outline, z, lean, y0) for z in (z0, z1))
        hull, top = cv2.convexHull(np.concatenate(front + back))[:, 0], np.concatenate([front[0][5:3:-1], back[0][4:6]])
        return [Part(name, (hull,), shade(color, 0.72)), _mark((top,), shade(color, 1.15)), _mark(front, color)]

    def disc(self, name: str, y0: float, y1: float, rx: float, rz: float, color: Color) -> list[Part]:
        """A lying round slab between two heights, its top as a mark."""
        top, foot = (self.flat(ellipse(0, 0, rx, rz), y) for y in (y1, y0))
        return [Part(name, (cv2.convexHull(np.concatenate(top + foot))[:, 0],), shade(color, 0.72)), _mark(top, color)]

    def legs(self, x: float, z: float, height: float, thick: float, splay: float, color: Color) -> list[Part]:
        """Four legs, far to near, so that each hides the ones behind it."""
        feet = [(x * a, z * b) for b in (1, -1) for a in (-1, 1)]
        bars = [self.bar((thick, thick * 0.8), (a, height, b), (a * splay, 0, b * splay)) for a, b in feet]
        return [Part("legs.leg", bar, shade(color, 0.65 + 0.08 * k)) for k, bar in enumerate(bars)]


def chair(rng: np.random.Generator) -> list[Part]:
    """A kitchen chair in three-quarter view; its back is a panel, or posts with rails or slats."""
    wood = pick(rng, [*WOOD, *BRIGHT[:3]])
    camera, cover = _Camera(*_vary(rng, (15, 55), (10, 26))), pick(rng, [*FABRIC, wood, wood, wood])
    w, d, seat, h, lean = _vary(rng, (0.4, 0.5), (0.4, 0.48), (0.8, 0.98), (0.8, 1.1), (0.05, 0.2))
    x, z, top, style = w - 0.06, d - 0.06, seat + h, rng.integers(3)
    parts = camera.legs(x, z, seat, rng.uniform(0.11, 0.15), rng.choice([1, 1.15]), wood)
    bars = [("post", k * x, seat, k * x, top, 0.13) for k in (-1, 1)]
    if style == 0:
        parts += camera.block("back", (-w, seat + 0.05, z - 0.1), (w, top, z), wood, rng.uniform(0.03, 0.25), lean)
    elif style == 1:
        bars += [("rail", -x, y, x, y, 0.18) for y in np.linspace(seat + 0.35, top - 0.1, rng.integers(2, 4))]
    else:
        bars += [("slat", k * x, seat, k * x, top, 0.12) for k in (-0.5, 0, 0.5)]
        bars += [("rail", -x, top - 0.05, x, top - 0.05, 0.18)]
    for k, (name, x0, y0, x1, y1, thick) in enumerate(bars if style else ()):
        bar = camera.bar(thick, (x0, y0, z + lean * (y0 - seat)), (x1, y1, z + lean * (y1 - seat)))
        parts.append(Part(f"back.{name}", bar, shade(wood, 0.85 + 0.05 * k)))
    return parts + camera.block("seat", (-w, seat - 0.1, -d), (w, seat + 0.04, d), cover, 0.03)


def sofa(rng: np.random.Generator) -> list[Part]:
    """A wide upholstered seat between two arms."""
    camera = _Camera(rng.uniform(8, 35) * rng.integers(2), rng.uniform(12, 24))
    cloth, wood, seats = pick(rng, FABRIC), pick(rng, WOOD), int(rng.integers(2, 4))
    w, arm, top, side, soft = _vary(rng, (0.85, 1.2), (0.18, 0.28), (0.88, 1.05), (0.58, 0.72), (0.04, 0.1))
    out, each = w + arm, 2 * w / seats
    parts = [Part("foot", camera.bar(0.12, (x, 0.14, -0.4), (x, 0, -0.4)), wood) for x in (-w, w)]
    parts += camera.block("back", (-w - arm / 2, 0.15, 0.3), (w + arm / 2, top, 0.5), shade(cloth, 0.88), soft)
    parts += camera.block("arm.left", (-out, 0.1, -0.5), (-w, side, 0.48), cloth, soft)
    parts += camera.block("base", (-w, 0.1, -0.46), (w, 0.3, 0.4), shade(cloth, 0.85))
    for name, y0, y1, z0, z1 in (("back", 0.4, top - 0.06, 0.1, 0.3), ("seat", 0.3, 0.48, -0.5, 0.25)):
        for x in -w + each * np.arange(seats):
            parts += camera.block(f"{name}.cushion", (x, y0, z0), (x + each, y1, z1), shade(cloth, 1.1), 0.05)
    for x in rng.uniform(-0.8, 0.8, rng.integers(0, 3)) * w:
        pillow = rotate(box(x - 0.2, 0.46, x + 0.2, 0.84), rng.uniform(-25, 25), (x, 0.65))
        parts.append(Part("pillow", camera.upright(pillow), pick(rng, BRIGHT + CERAMIC)))
    return parts + camera.block("arm.right", (w, 0.1, -0.5), (out, side, 0.48), cloth, soft)


def diningtable(rng: np.random.Generator) -> list[Part]:
    """A laid table: round on a pedestal, or long on four legs."""
    camera, wood, china = _Camera(*_vary(rng, (5, 35), (18, 32))), pick(rng, WOOD), pick(rng, CERAMIC)
    w, d, y, thick = _vary(rng, (0.95, 1.2), (0.5, 0.65), (0.85, 1.1), (0.1, 0.16))
    covered, places = rng.random() < 0.35, int(rng.integers(2, 5))
    top, color, drop = ("cloth", pick(rng, [WHITE, *FABRIC, *BRIGHT[:3]]), 0.28) if covered else ("top", wood, 0.1)
    if rng.random() < 0.35:
        parts = camera.disc("foot", 0, 0.06, 0.45, 0.4, shade(wood, 0.75))
        column = camera.bar((0.3, 0.16, 0.26), (0, 0.05, 0), (0, y / 2, 0), (0, y, 0))
        parts += [Part("column", column, shade(wood, 0.8)), *camera.disc(top, y - drop, y, w * 0.9, w * 0.85, color)]
        plates = [(0.6 * np.cos(a), 0.55 * np.sin(a)) for a in rng.uniform(0, 2) - np.arange(places) * np.pi / 2]
    else:
        parts = camera.legs(w * 0.93, d * 0.88, y, thick, 1, wood)
        parts += camera.block(top, (-w, y - drop, -d), (w, y, d), color)
        plates = [(x * w, z * d) for x in (-0.6, 0.6) for z in (0.5, -0.5)][:places]
    for x, z in plates:
        parts.append(Part("plate", camera.flat(ellipse(x, z, 0.2), y), china))
        parts.append(_mark(camera.flat(ellipse(x, z, 0.13), y), shade(china, 0.85)))
    foot = -float(y * camera.cp)
    parts += [Part("bowl.fruit", ellipse(k, foot - 0.22, 0.13), pick(rng, BRIGHT)) for k in (-0.12, 0.11)]
    return [*parts, Part("bowl", _lathe([(foot - 0.2, 0.26), (foot, 0.11)], foot - 0.2, foot, 0.2), pick(rng, CERAMIC))]


def _display(rng: np.random.Generator, camera: _Camera, area: Sequence[float], lean: float = 0) -> list[Part]:
    """A screen filling the upright rectangle `area` (x0, y0, x1, y1): switched off, or with a landscape."""
    corner, size, x = np.float32(area[:2]), np.subtract(area[2:], area[:2]), rng.uniform(0.2, 0.8)
    if rng.random() < 0.4:  # off: a reflection
        color, marks = (0.1, 0.11, 0.13), [(polygon((0.55, 1), (0.85, 1), (0.5, 0), (0.2, 0)), (0.25, 0.27, 0.31))]
    else:
        hill = polygon((0, 0), (0, 0.3), (0.2, 0.45), (0.35, 0.48), (0.6, 0.3), (0.8, 0.35), (1, 0.5), (1, 0))
        color = pick(rng, [(0.45, 0.7, 0.95), (0.95, 0.6, 0.4), (0.2, 0.3, 0.6)])
        marks = [(ellipse(x, 0.75, 0.07, 0.11), (1, 0.95, 0.7)), (hill, pick(rng, LEAVES))]
    layers = [(camera.upright((c[0] * size + corner,), 0, lean), k) for c, k in ((box(0, 0, 1, 1), color), *marks)]
    return [Part("screen.display", *layers[0]), *(_mark(*layer) for layer in layers[1:])]


def tvmonitor(rng: np.random.Generator) -> list[Part]:
    """A flat screen on a stand, or an old television with knobs and an aerial."""
    camera, h = _Camera(*_vary(rng, (5, 35), (4, 16))), rng.uniform(1.05, 1.45)
    if rng.random() < 0.25:
        case = pick(rng, [*WOOD[:4], DARK, METAL])
        parts = [Part("aerial", camera.bar(0.07, (0, h, 0.3), (x, h + 0.6, 0.3)), METAL) for x in (-0.6, 0.5)]
        parts += camera.block("case", (-0.9, 0, 0), (0.9, h, 0.7), case, 0.06)
        parts += [Part("screen.frame", camera.upright(box(-0.82, 0.1, 0.48, h - 0.1, 0.1)), shade(case, 0.5))]
        parts += _display(rng, camera, (-0.74, 0.18, 0.4, h - 0.18))
        parts += [Part("panel", camera.upright(box(0.54, 0.1, 0.84, h - 0.1)), shade(METAL, 0.8))]
        return parts + [Part("panel.knob", camera.upright(ellipse(0.69, h - y, 0.1)), DARK) for y in (0.28, 0.55)]
    frame = pick(rng, [DARK, DARK, METAL, WHITE], 0.03)
    lift, rim, foot = _vary(rng, (0.2, 0.4), (0.05, 0.09), (0.4, 0.6))
    parts = camera.disc("stand.base", 0, 0.05, foot, 0.35, shade(frame, 0.9))
    parts += camera.block("stand.neck", (-0.13, 0.05, 0.05), (0.13, lift + 0.2, 0.12), shade(frame, 0.75))
    parts += camera.block("screen.frame", (-1, lift, 0), (1, lift + h, 0.08), frame, 0.03)
    return parts + _display(rng, camera, (rim - 1, lift + rng.choice([rim, 0.2]), 1 - rim, lift + h - rim))


def laptop(rng: np.random.Generator) -> list[Part]:
    """An open laptop: the screen leans back over a lying keyboard."""
    yaw, pitch, depth, h, lean = _vary(rng, (-5, 38), (24, 42), (1.15, 1.4), (1.15, 1.35), (0.1, 0.45))
    camera = _Camera(yaw, pitch)
    case, keys = pick(rng, [METAL, METAL, DARK, WHITE, (0.3, 0.32, 0.36)], 0.03), pick(rng, [DARK, DARK, WHITE], 0.03)
    parts = camera.block("screen.frame", (-1, 0, 0), (1, h, 0.05), shade(case, 0.85), 0.06, lean)
    parts += _display(rng, camera, (-0.91, 0.15, 0.91, h - 0.09), lean)
    parts += camera.block("deck", (-1, 0, -depth), (1, 0.08, 0), case)
    bed = Part("deck.keyboard", camera.flat(box(-0.88, -depth * 0.58, 0.88, -0.12), 0.08), shade(case, 0.6))
    rows = sum((box(-0.86, z, 0.86, z + depth * 0.085) for z in np.linspace(-depth * 0.57, -0.24, 4)), ())
    gaps = sum((box(x, -depth * 0.58, x + 0.025, -0.12) for x in np.linspace(-0.71, 0.69, 10)), ())
    pad = Part("deck.touchpad", camera.flat(box(-0.3, -depth * 0.95, 0.3, -depth * 0.64), 0.08), shade(case, 0.82))
    return [*parts, bed, _mark(camera.flat(rows, 0.08), keys), _mark(camera.flat(gaps, 0.08), bed.color), pad]


def bottle(rng: np.random.Generator) -> list[Part]:
    """A wine, beer or soft drink bottle."""
    neck, body, shoulder, collar = _vary(rng, (0.09, 0.13), (0.26, 0.38), (-0.45, -0.1), (-0.88, -0.65))
    plastic, foil = rng.random(2) < (0.45, 0.3)
    low, high, waist = _vary(rng, (0.45, 0.7), (-0.05, 0.12), (0.78, 0.92) if plastic else (1, 1))
    glass, paper = pick(rng, PLASTIC if plastic else GLASS), pick(rng, [WHITE, WHITE, *BRIGHT])
    ink, cap = pick(rng, BRIGHT), pick(rng, [*BRIGHT, DARK, WHITE])
    profile = [(-1, neck), (collar, neck), (shoulder, body), (0.3, body * waist), (0.8, body), (1, body)]
    straight = [(-2, neck * 1.15), (2, neck * 1.15)]
    return [
        Part("neck", _lathe(profile, -1, shoulder), shade(glass, 1.12)),
        Part("body", _lathe(profile, shoulder - 0.03, 1), glass),
        _mark(limb([(-body * 0.6, shoulder + 0.1), (-body * 0.6, 0.85)], 0.06), shade(glass, 1.5)),
        Part("label", _lathe(profile, high, low), paper),
        _mark(_lathe(profile, high + 0.06, high + 0.11), ink),
        _mark(ellipse(0, (low + high) / 2 + 0.08, body * 0.45, (low - high) * 0.25), ink),
        Part("neck.collar", _lathe(profile if foil else straight, -0.9, -0.6 if foil else -0.8), shade(cap, 0.8)),
        Part("neck.cap", _lathe(straight, -1.06, -0.88), cap),
    ]


def _petals(x: float, y: float, radius: float, count: int) -> Contours:
    """A round outline with `count` lobes: a flower, a clump of leaves."""
    a = np.linspace(0, 2 * np.pi, 8 * count, endpoint=False)
    r = radius * (0.86 + 0.14 * np.cos(count * a))
    return (np.stack([x + r * np.cos(a), y + r * np.sin(a)], 1).astype(np.float32),)


def _foliage(rng: np.random.Generator, y: float) -> list[Part]:
    """What grows out of a pot whose soil is at (0, y): a small tree, upright blades, or a fountain, maybe in flower."""
    green, bloom = pick(rng, LEAVES), pick(rng, [*BRIGHT, WHITE, (0.95, 0.5, 0.7)])
    style, top = rng.integers(4), y - rng.uniform(0.3, 0.7)
    if style == 0:
        parts = [Part("trunk", limb([(0, y), (0, top)], 0.12), pick(rng, WOOD[:2]))]
        for cx, cy in ((-0.35, -0.1), (0.35, -0.12), (-0.2, -0.45), (0.22, -0.48), (0, -0.2)):
            x, cy, r, light = cx + rng.uniform(-0.06, 0.06), top + cy, rng.uniform(0.3, 0.38), rng.uniform(0.8, 1.2)
            parts.append(Part("foliage.clump", _petals(x, cy, r, 9), shade(green, light)))
            parts.append(_mark(_petals(x - 0.07, cy - 0.08, r * 0.6, 7), shade(green, light * 1.2)))
        return parts
    parts, spread, wide = [], (22 if style == 1 else 45), rng.uniform(20, 32)
    for k in (-1, 1, -0.7, 0.7, -0.35, 0.35, 0):  # outer leaves first, behind the inner ones
        heading, bend = 90 - spread * k + rng.uniform(-7, 7), (0.3 if style == 1 else 1.5) * -spread * k
        length, light = rng.uniform(0.75, 1.15), rng.uniform(0.75, 1.2)
        turns = ((a, bend - 2 * a) for a in (wide, -wide))  # two arcs of one chord: they meet again at the tip
        left, right = (_curve(0.25 * k, y, heading + a, length / np.sinc(b / 360), b) for a, b in turns)
        leaf, half = (np.concatenate([left, edge[::-1]]) for edge in (right, (left + right) / 2))
        parts += [Part("foliage.leaf", (leaf,), shade(green, light)), _mark((half,), shade(green, light * 1.25))]
    for x in (-0.38, 0.36, 0.0) if style == 3 else ():
        h = y - rng.uniform(0.7, 1.05)
        parts += [Part("flower", _petals(x, h, 0.21, 6), bloom), _mark(ellipse(x, h, 0.07), (0.95, 0.8, 0.25))]
    return parts


def pottedplant(rng: np.random.Generator) -> list[Part]:
    """A houseplant in a pot."""
    clay = pick(rng, [(0.75, 0.4, 0.25), (0.68, 0.36, 0.24), *CERAMIC])
    top, foot, h = _vary(rng, (0.36, 0.46), (0.24, 0.32), (0.5, 0.7))
    rim = top + 0.06
    return [
        Part("pot.saucer", ellipse(0, h + 0.02, foot + rng.uniform(0, 0.18), 0.1), shade(clay, 0.8)),
        Part("pot.body", _lathe([(0, top), (h, foot)], 0, h, 0.2), clay),
        Part("pot.rim", _lathe([(-1, rim), (1, rim)], -0.06, 0.1, 0.2), shade(clay, 1.08)),
        Part("pot.soil", ellipse(0, -0.06, rim, rim * 0.2), (0.25, 0.16, 0.1)),
        *_foliage(rng, -0.05),
    ]


def umbrella(rng: np.random.Generator) -> list[Part]:
    """An open umbrella over its crook, or over a straight pole on the beach."""
    beach, n, first = rng.random() < 0.3, rng.integers(5, 8), pick(rng, [*BRIGHT, DARK])
    second = pick(rng, [WHITE, *BRIGHT]) if beach or rng.random() < 0.4 else shade(first, 0.82)
    height, tilt, foot, turn = _vary(rng, (0.5, 0.75), (-0.08, 0.28), (0.75, 1), (-28, 28))  # tilt > 0: from below
    parts = [Part("underside", ellipse(0, 0, 1, max(tilt, 0.02)), shade(first, 0.45))]
    parts.append(Part("shaft", limb([(0, -height - 0.13), (0, foot)], 0.08), pick(rng, [METAL, WOOD[2], DARK])))
    if not beach:
        crook = [(0, foot - 0.3), *_curve(0, foot, -90, 0.5, 200)]
        parts.append(Part("handle", limb(crook, 0.12), pick(rng, [*WOOD[:2], DARK])))
    angle, t, s = np.linspace(-np.pi / 2, np.pi / 2, n + 1), np.linspace(0, np.pi / 2, 8), np.linspace(0, 1, 7)[:, None]
    rim = np.stack([0.75 * np.sin(angle) + 0.16 * angle, -tilt * np.cos(angle)], 1)
    for k in range(n):
        ribs = [np.stack([x * np.sin(t), y - (height + y) * np.cos(t)], 1) for x, y in rim[k : k + 2]]
        arch = (1 - s) * rim[k] + s * rim[k + 1] - s * (1 - s) * np.float32([0, 0.14])  # hollow between ribs
        panel, color = np.float32([*ribs[0], *arch, *ribs[1][::-1]]), (first, second)[k % 2]
        parts.append(Part("canopy.panel", (panel,), shade(color, 1.08 - 0.2 * k / n)))
    return _turned(parts, turn)


def banana(rng: np.random.Generator) -> list[Part]:
    """One banana, or a small bunch, hanging from the origin."""
    parts, count, knots = [], int(rng.integers(1, 4)), [0, 0.12, 0.35, 0.7, 0.9, 1]
    for k in range(count):
        jitter, bend, length, thick = _vary(rng, (-5, 5), (60, 80) if count > 1 else (75, 115), (1.75, 2), (0.28, 0.36))
        peel = pick(rng, [(0.96, 0.82, 0.2), (0.93, 0.78, 0.15), (0.8, 0.8, 0.25)], 0.04)
        line = _curve(0, 0, jitter - 75 - 28 * k, length, bend, 14)
        width = thick * np.interp(np.linspace(0, 1, 14), knots, [0.3, 0.34, 0.95, 1, 0.65, 0.25])
        across = (line[3:] - line[1:-2])[:, ::-1] * np.float32([1, -1]) / (2 * length / 13)
        inner = line[2:-1] + across * width[2:-1, None].astype(np.float32) * 0.48
        tip, skin = limb(line[-3:], 0.1), limb(line[:-1], width[:-1])
        parts += [Part("fruit.tip", tip, WOOD[3]), Part("fruit.peel", skin, peel)]
        for i in rng.integers(4, 12, 3 * rng.integers(2)):  # a ripe one has spots
            parts.append(_mark(ellipse(*line[i] - 0.02, 0.03, 0.015, 20 * i), (0.5, 0.32, 0.1)))
        side, stem = (np.concatenate([line[2:-1], inner[::-1]]),), limb(line[:4], (0.1, 0.1, 0.11, 0.14))
        parts += [Part("fruit.side", side, shade(peel, 0.85)), Part("fruit.stem", stem, (0.6, 0.58, 0.2))]
    if count > 1:
        parts.append(Part("crown", limb([(-0.03, 0.12), (0, 0), (0.02, -0.16)], (0.24, 0.2, 0.14)), (0.5, 0.42, 0.18)))
    return _turned(parts, rng.uniform(-25, 50))


def _dial(rng: np.random.Generator, r: float) -> list[Part]:
    """Clock face of radius r around the origin, with hour marks and hands."""
    face, hour = pick(rng, [WHITE, WHITE, (0.95, 0.9, 0.75), DARK], 0.03), rng.uniform(0, 12)
    ink, parts = (WHITE if sum(face) < 1 else DARK), [Part("dial.face", ellipse(0, 0, r), face)]
    parts += [_mark(rotate(box(-0.05 * r, -0.92 * r, 0.05 * r, -0.74 * r), 30 * k), ink) for k in range(12)]
    for name, degrees, tip, w in (("hour", 30 * hour, -0.5 * r, 0.08 * r), ("minute", 360 * hour, -0.74 * r, 0.06 * r)):
        hand = polygon((-w, 0.1 * r), (w, 0.1 * r), (w * 0.6, tip), (-w * 0.6, tip))
        parts.append(Part(f"dial.{name}_hand", rotate(hand, degrees), ink))
    return [*parts, Part("dial.hub", ellipse(0, 0, 0.1 * r), shade(METAL, 0.9))]


def clock(rng: np.random.Generator) -> list[Part]:
    """A wall clock, round or square, or an alarm clock on two feet under two bells."""
    style, rim, brass = rng.random(), pick(rng, [*WOOD, DARK, METAL, *BRIGHT]), pick(rng, [METAL, (0.85, 0.68, 0.25)])
    if style > 0.35:
        outer = box(-1, -1, 1, 1, rng.uniform(0.05, 0.4)) if style > 0.8 else ellipse(0, 0, 1)
        return [Part("rim", outer, rim), Part("rim.inner", ellipse(0, 0, 0.9), shade(rim, 0.7)), *_dial(rng, 0.8)]
    parts = [Part("hammer", limb([(0, -0.7), (0, -1.02)], (0.08, 0.16)), DARK)]
    bell = _lathe([(-0.2, 0.06), (-0.12, 0.24), (0.06, 0.32)], -0.2, 0.06, 0.15)
    for s in (-1, 1):
        parts.append(Part("foot", limb([(s * 0.45, 0.55), (s * 0.64, 0.9)], (0.16, 0.1)), shade(rim, 0.6)))
        parts.append(Part("bell", shift(rotate(bell, s * 33), s * 0.47, -0.78), brass))
    return [*parts, Part("case", ellipse(0, 0, 0.78), rim), *_dial(rng, 0.62)]


def cup(rng: np.random.Generator) -> list[Part]:
    """A mug, or a teacup on its saucer."""
    glaze, parts = pick(rng, [*CERAMIC, DARK]), []
    sag, top, h, taper, bow = _vary(rng, (0.2, 0.34), (0.52, 0.62), (1.05, 1.4), (0.8, 1), (0.24, 0.3))
    profile = [(0, top), (h, top * taper)]
    if rng.random() < 0.35:
        top, h = 0.68, h * 0.65
        profile = [(-0.3, top), (h * 0.3, top * 0.93), (h, top * 0.45)]
        parts = [Part("saucer", ellipse(0, h, 1.05, 0.3), shade(glaze, 0.8))]
    handle = shift(ellipse(0, 0, h * bow) + ellipse(0, 0, h * bow - 0.15), top * 1.02, h * 0.4)
    parts += [Part("handle", handle, shade(glaze, 0.85)), Part("body", _lathe(profile, 0, h, sag), glaze)]
    parts += [_mark(_lathe(profile, h * 0.3, h * 0.5, sag), pick(rng, BRIGHT))] * rng.integers(2)  # a stripe, or none
    parts.append(_mark(limb([(-top * 0.7, 0.2), (-top * 0.6, h * 0.8)], 0.07), shade(glaze, 1.25)))
    drink = pick(rng, [(0.3, 0.16, 0.08), (0.65, 0.35, 0.12), (0.75, 0.58, 0.4)])
    rings = (("rim", top, shade(glaze, 1.15)), ("inside", top - 0.06, shade(glaze, 0.65)), ("drink", top - 0.12, drink))
    return parts + [Part(name, ellipse(0, (top - r) / 2, r, r * sag), color) for name, r, color in rings]


def pizza(rng: np.random.Generator) -> list[Part]:
    """A pizza from above or aslant, whole, with a piece taken, or a single piece."""
    sweep, greens = rng.choice([360.0, 315.0, 50.0], p=[0.45, 0.25, 0.3]), rng.choice([0.0, 0.25, 0.5])
    start = rng.uniform(0, 360) if sweep > 60 else rng.uniform(225, 265)
    a = np.deg2rad(np.linspace(start, start + sweep, 48))
    edge = np.stack([np.cos(a), np.sin(a)], 1) * (1 + 0.02 * np.sin(rng.integers(3, 9) * a))[:, None]
    edge = np.float32(edge if sweep == 360 else [*edge, (0, 0)])
    crust, cheese, red = (pick(rng, [c]) for c in ((0.76, 0.5, 0.24), (0.96, 0.78, 0.36), (0.7, 0.16, 0.11)))
    parts = [Part("crust", (edge,), crust), _mark((edge * 0.88,), red), Part("cheese", (edge * 0.84,), cheese)]
    parts += [_mark(ellipse(*edge[k] * 0.45, 0.09, 0.06), shade(cheese, 1.12)) for k in rng.integers(48, size=4)]
    slots = [(0.42, 0.5), (0.68, 0.24), (0.68, 0.76)]
    if sweep > 60:
        cut, dark = box(0, -0.013, 0.84, 0.013), shade(cheese, 0.6)
        parts += [_mark(rotate(cut, start + 45 * k), dark) for k in range(8)]
        slots = [(0.66, (k + 0.5) / 7) for k in range(7)] + [(0.3, (k + 0.5) / 3) for k in range(3)]
    for radius, place in slots:
        x, y = radius * edge[int(48 * place)]
        if rng.random() < greens:
            parts.append(Part("basil", ellipse(x, y, 0.16, 0.08, rng.uniform(0, 180)), pick(rng, LEAVES)))
        else:
            parts += [Part("sausage", ellipse(x, y, 0.125), red), _mark(ellipse(x, y - 0.04, 0.04), shade(red, 1.4))]
    return _turned(parts, 0, 1, rng.uniform(0.5, 1) if sweep > 60 else 1)


def kite(rng: np.random.Generator) -> list[Part]:
    """A diamond of four panels with a tail of bows."""
    colors = [BRIGHT[k] for k in rng.permutation(len(BRIGHT))]
    w, cross, foot, wave, step = _vary(rng, (0.55, 0.8), (-0.5, -0.2), (0.65, 0.85), (-0.2, 0.2), (0.14, 0.2))
    tail = [(wave * np.sin(1.6 * k), foot + step * k) for k in range(7)]
    parts = [Part("tail.ribbon", limb(tail, 0.06), pick(rng, [WHITE, DARK, colors[2]]))]
    bow = polygon((0, 0), (-0.17, -0.1), (-0.17, 0.1)) + polygon((0, 0), (0.17, -0.1), (0.17, 0.1))
    for k, (x, y) in enumerate(tail[2::2]):
        parts.append(Part("tail.bow", shift(rotate(bow, rng.uniform(-25, 25)), x, y), colors[k]))
    tints = ((0, 1, 1, 0), (0, 1, 2, 3), (0, 0, 1, 1))[rng.integers(3)]
    for k, (tip, side) in enumerate(((-1, -w), (-1, w), (foot, -w), (foot, w))):
        color, panel = colors[tints[k]], polygon((0, tip), (side, cross), (0, cross))
        parts += [Part("sail.panel", panel, color), _mark(limb([(0, tip), (0, cross)], 0.04), shade(color, 0.55))]
    return _turned(parts, rng.uniform(-45, 45))


def scissors(rng: np.random.Generator) -> list[Part]:
    """Two blades crossing at a screw, each with a ring for the fingers."""
    plastic, steel = pick(rng, [*BRIGHT, DARK, DARK, METAL]), pick(rng, [METAL, (0.82, 0.83, 0.85)], 0.03)
    opening, tip, thick = _vary(rng, (5, 28), (-1.25, -0.95), (0.12, 0.15))
    shank = limb([(0.02, -0.05), (-0.04, 0.2), (-0.16, 0.45)], (0.2, 0.17, 0.2))
    blade = polygon((-0.1, 0.1), (-0.11, tip * 0.5), (0.04, tip), (0.08, tip * 0.95), (0.12, tip * 0.5), (0.11, 0.1))
    edge = polygon((-0.12, 0), (-0.02, 0), (0.06, tip * 0.95), (-0.12, tip * 0.6))
    parts = []
    for s in (1, -1):
        rx, ry = _vary(rng, (0.24, 0.28), (0.32, 0.42))
        grip = ellipse(-0.29, 0.35 + ry, rx, ry) + ellipse(-0.29, 0.35 + ry, rx - thick, ry - thick)
        half = [Part("blade", blade, shade(steel, 0.95 + 0.05 * s)), _mark(edge, shade(steel, 1.2))]
        half += [Part("handle.shank", shank, plastic), Part("handle.ring", grip, plastic)]
        parts += _turned(half, s * opening, s)
    parts.append(Part("screw", ellipse(0, 0, 0.09), shade(METAL, 0.7)))
    return _turned(parts, rng.choice([0, -90, -45, 180]) + rng.uniform(-30, 30))


_FURNITURE = (bottle, chair, diningtable, pottedplant, sofa, tvmonitor)
_THINGS = (umbrella, banana, clock, cup, pizza, laptop, kite, scissors)
DRAWINGS: dict[str, Callable[[np.random.Generator], list[Part]]] = {f.__name__: f for f in _FURNITURE + _THINGS}
