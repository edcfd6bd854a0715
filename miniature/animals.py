"""Animals and people."""

from collections.abc import Callable, Sequence

import numpy as np

from miniature.shapes import Color, Contour, Part, ellipse, limb, pick, polygon, rotate, shade, smooth, transform

# fmt: off  (outlines are tables of points, laid out by hand)
Point = tuple[float, float]
Rng = np.random.Generator
BLACK, WHITE, PINK, IVORY = (0.09, 0.08, 0.08), (0.95, 0.94, 0.92), (0.91, 0.66, 0.63), (0.93, 0.89, 0.76)
FAR = 0.74  # limbs on the far side are in the shadow of the body


def _tint(rng: Rng, *colors: Color) -> Color:
    """One of `colors`, varied in brightness more than in hue, as coats are."""
    return shade(pick(rng, colors, 0.015), rng.uniform(0.88, 1.1))


def _place(parts: Sequence[Part], at: Point, size: float = 1.0, nod: float = 0.0) -> list[Part]:
    """The parts, drawn around the origin, scaled, turned nose down (they face left) by `nod` degrees, moved to `at`."""
    cos, sin = np.cos(np.deg2rad(nod)) * size, np.sin(np.deg2rad(nod)) * size
    return transform(parts, np.float32([[cos, sin], [-sin, cos]]), np.float32(at))


def _sides(name: str, outline: tuple[Contour, ...], color: Color, both: bool = True) -> list[Part]:
    """The part and its mirror image, or (in profile) only the part."""
    return [Part(name, tuple(c * np.float32([s, 1]) for c in outline), color) for s in ((-1, 1) if both else (1,))]


def _even(*points: Point) -> tuple[Contour, ...]:
    """Smooth outline, the same left and right, through the points of its right half."""
    return smooth(*points, *((-x, y) for x, y in reversed(points) if x))


def _eyes(centres: Sequence[Point], radius: float, color: Color = BLACK) -> list[Part]:
    """Round eyes; with an upright pupil if `color` is not black."""
    layers = ((1.0, color), (0.45, BLACK))[:1 if color == BLACK else 2]
    return [Part("eye", ellipse(x, y, radius * wide, radius), c, True) for wide, c in layers for x, y in centres]


def _chain(start: Point, lengths: Sequence[float], degrees: Sequence[float]) -> list[Point]:
    """Joints of a limb; a segment's direction is in degrees from straight down, positive to the left (forward)."""
    angle = np.deg2rad(degrees)
    steps = np.stack([-np.sin(angle), np.cos(angle)], 1) * np.reshape(lengths, (-1, 1))
    return [start, *map(tuple, np.cumsum(steps, 0) + start)]


def _along(line: Sequence[Point], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` points spread along a line, and there the directions along and across it; each (count, 1, 2)."""
    points = np.asarray(line, np.float32)[:, None]
    t = np.linspace(0, len(points) - 1, 2 * count + 1)[1::2]
    step = np.diff(points, axis=0)[t.astype(int)]
    along = step / np.linalg.norm(step, axis=2, keepdims=True)
    return points[t.astype(int)] + step * (t % 1)[:, None, None], along, along[..., ::-1] * np.float32([-1, 1])


def _bands(line: Sequence[Point], count: int, reach: float, width: float, color: Color) -> list[Part]:
    """Lens-shaped stripes across `line` (a back, a leg), `reach` to either side: a mark on the part before."""
    centre, along, across = _along(line, count)
    lens = across * reach * np.float32([[-1], [0], [1], [0]]) + along * width / 2 * np.float32([[0], [1], [0], [-1]])
    return [Part("stripes", tuple((centre + lens).astype(np.float32)), color, True)]


def _blotches(rng: Rng, line: Sequence[Point], count: int, spread: float, radius: float, color: Color) -> list[Part]:
    """Irregular patches along `line`, up to `spread` off it: marks on the part before."""
    centre, _, across = _along(line, count)
    angle, wave = np.linspace(0, 2 * np.pi, 17)[:-1, None], rng.uniform(0, 6, (3, count, 1, 1))
    size = 0.85 + wave[2] / 20 + 0.25 * np.sin(2 * angle + wave[0]) + 0.15 * np.sin(3 * angle + wave[1])
    centre = centre + across * rng.uniform(-spread, spread, (count, 1, 1))
    outlines = centre + radius * size * np.concatenate([np.cos(angle), np.sin(angle)], 1)
    return [Part("patch", (outline,), color, True) for outline in outlines.astype(np.float32)]


def _torso(x: float, y: float, withers: float = 0.0, rump: float = 0.0, tuck: float = 0.0) -> tuple[Contour, ...]:
    """A body of half-axes x, y around the origin; `tuck` draws the belly up before the hind legs."""
    return smooth((-x, 0), (-0.78 * x, -y - withers), (-0.1 * x, -0.9 * y), (0.65 * x, -y - rump), (0.97 * x, -0.6 * y),
                  (x, 0.2 * y), (0.7 * x, 0.85 * y - tuck), (0, y - tuck / 3), (-0.6 * x, y), (-0.93 * x, 0.65 * y))


def _legs(rng: Rng, fore: Point, hind: Point, ground: float, width: float, color: Color, stride: float,
          hoof: Color | None = None, toe: float = 0.02, stripes: Color | None = None) -> tuple[list[Part], list[Part]]:
    """(the two legs behind the body, the two in front of it), standing or walking with steps of `stride` degrees."""
    swing = rng.uniform(0.5, 1.0) * stride * rng.choice((-1, 1)) if rng.random() < 0.6 else rng.uniform(2, 6)
    kinds = (("foreleg", fore, swing, (1, -2, 0), (1.9, 1.5, 1.05, 1.0, 0.85)),
             ("hindleg", hind, -swing, (9, -35, 5), (3.0, 2.0, 1.05, 1.0, 0.85)))  # a thigh, a hock that points back
    far, near = [], []
    for side, legs, dx, tone, sign in (("far", far, 0.9 * width, FAR, -1), ("near", near, 0.0, 0.94, 1)):
        for kind, (x, y), turn, bends, widths in kinds:
            drop = ground - y - width / 3
            line = _chain((x - dx, y), [0.4 * drop, 0.34 * drop, 0.3 * drop], np.add(bends, sign * turn))
            marks, (x, y) = _bands(line, 8, width * 1.8, drop * 0.07, stripes) if stripes else [], line[3]
            marks += [Part("hoof", ellipse(x, y + 0.4 * width, width * 0.8, width * 0.6), hoof, True)] if hoof else []
            line.append((x - toe, y))
            legs += [Part(f"{side}_{kind}", limb(line, np.multiply(width, widths)), shade(color, tone)), *marks]
    return far, near


def _tail(rng: Rng, root: Point, length: float, width: float, color: Color, tuft: Color) -> list[Part]:
    """A hanging tail with a tuft at its end."""
    line = _chain(root, [length * 0.3, length * 0.4, length * 0.3], [-rng.uniform(30, 60), -rng.uniform(0, 20), 5])
    outline = limb(line, [width, width, 1.3 * width, 1.9 * width])
    return [Part("tail", outline, color), Part("tuft", ellipse(*line[-1], 2 * width, length * 0.25), tuft, True)]


def _head(coat: Color, muzzle: Color, x: float, y: float, nose: float, front: bool = False) -> list[Part]:
    """Skull and muzzle of a grazer, in profile (poll at the origin, lips at -x) or face on; half heights y, nose."""
    if front:
        skull = _even((y, -0.5), (1.05 * y, -0.05), (nose, 0.5))
        snout, eyes = ellipse(0, 0.48, nose * 1.3, 0.24), [(-0.68 * y, -0.12), (0.68 * y, -0.12)]
        nostrils = ellipse(-0.5 * nose, 0.46, 0.06) + ellipse(0.5 * nose, 0.46, 0.06)
    else:
        skull = smooth((0.22, 0.02), (0.08, -y * 0.8), (-0.3 * x, -y * 0.85), (-0.75 * x, -nose), (-x, -nose * 0.7),
                       (-1.06 * x, nose * 0.3), (-0.9 * x, nose * 1.2), (-0.6 * x, nose * 1.2), (-0.2 * x, y), (0.1, y))
        snout = smooth((-0.72 * x, -nose * 1.05), (-x, -nose * 0.75), (-1.08 * x, nose * 0.3), (-0.95 * x, nose * 1.2),
                       (-0.7 * x, nose * 1.25), (-0.65 * x, 0.1 * nose))
        eyes, nostrils = [(-0.24 * x, -y * 0.35)], ellipse(-0.97 * x, -nose * 0.2, 0.045)
    return [Part("head.skull", skull, coat), *_eyes(eyes, 0.07), Part("head.muzzle", snout, muzzle),
            Part("nostril", nostrils, shade(muzzle, 0.4), True)]


def cow(rng: Rng) -> list[Part]:
    """A deep, boxy body on short legs; patches, an udder, a broad pale muzzle, ears to the side, often horns."""
    pied, front = rng.random() < 0.55, rng.random() < 0.4
    coat = WHITE if pied else _tint(rng, (0.5, 0.29, 0.16), (0.72, 0.5, 0.3), (0.18, 0.16, 0.15))
    patch = _tint(rng, BLACK, (0.45, 0.24, 0.12)) if pied else WHITE
    x, y, grazing = rng.uniform(0.68, 0.82), rng.uniform(0.33, 0.39), not front and rng.random() < 0.3
    joint = (-x - 0.18, 0.34 if grazing else rng.uniform(-0.45, 0.05))
    far, near = _legs(rng, (-0.68 * x, 0.12), (0.76 * x, 0.02), rng.uniform(0.74, 0.86), 0.12, coat, 16, hoof=BLACK)
    spots = _blotches(rng, [(-x, 0), (x, 0)], rng.integers(4, 7), 0.7 * y, 0.18, patch)
    tone, up = patch if pied and rng.random() < 0.6 else coat, rng.uniform(0.3, 0.5)
    ear, horn = ellipse(0.26, -0.22, 0.3, 0.13, rng.uniform(-30, 5)), [(0.0, -0.25), (-0.06, -0.5), (-0.26, -0.3 - up)]
    if front:
        ear, horn = ellipse(0.6, -0.32, 0.3, 0.14, -15), [(0.25, -0.45), (0.52, -0.62), (0.5, -0.6 - up)]
    head = _sides("head.horn", limb(horn, [0.18, 0.14, 0.06]), IVORY, front) if rng.random() < 0.65 else []
    head += _head(tone, _tint(rng, PINK, (0.85, 0.72, 0.62)), 1.0, 0.42, 0.29, front)
    head += _sides("head.ear", ear, shade(tone, 0.8), front)
    return [*far, *_tail(rng, (0.93 * x, -0.75 * y), 0.8, 0.08, shade(coat, 0.85), shade(tone, 0.7)),
            Part("udder", ellipse(0.36 * x, y * 0.95, 0.17, 0.13), PINK), Part("body", _torso(x, y, 0.03, 0.03), coat),
            *(spots if pied or rng.random() < 0.25 else []), *near,
            Part("neck", limb([(-0.72 * x, -0.06), (joint[0] + 0.04, joint[1])], [0.56, 0.36]), shade(tone, 0.93)),
            *_place(head, joint, 0.46, 5 if front else 55 if grazing else rng.uniform(15, 40))]


def _equine(rng: Rng, coat: Color, mane: Color, muzzle: Color, stripes: Color | None) -> list[Part]:
    """Horse or, with stripes, zebra: a long head, a mane (upright on zebras), a flowing or tufted tail."""
    x, y, grazing = rng.uniform(0.52, 0.66), rng.uniform(0.24, 0.29), rng.random() < 0.2
    far, near = _legs(rng, (-0.74 * x, 0.08), (0.76 * x, -0.02), 0.92, 0.095, coat, 28, hoof=BLACK, stripes=stripes)
    a, b = -0.72 * x, -0.1  # where the neck starts
    joint = (a - 0.5, b + 0.42) if grazing else (a - rng.uniform(0.26, 0.4), b - rng.uniform(0.42, 0.52))
    line = [(a, b), ((a + joint[0]) / 2 - 0.03, (b + joint[1]) / 2 - 0.02), joint]
    nape = [*np.add(line, (0.02, -0.17) if grazing else (0.15, -0.07)), (joint[0] - 0.06, joint[1] - 0.13)]
    crest = [Part("neck.mane", limb(nape, [0.08, 0.16, 0.14, 0.08] if stripes else [0.2, 0.22, 0.18, 0.1]), mane)]
    neck = [Part("neck", limb(line, [0.46, 0.3, 0.23]), shade(coat, 0.98))]
    body, head = [Part("body", _torso(x, y, 0.03, 0.04, 0.04), coat)], _head(coat, muzzle, 1.1, 0.26, 0.17)
    if stripes:
        body += _bands([(-0.95 * x, -0.02), (x, -0.04)], 11, 0.5, 0.075, stripes)
        head[1:1] = _bands([(0.1, 0), (-0.8, 0)], 6, 0.5, 0.09, stripes)
        neck = [*crest, *_bands(nape, 6, 0.3, 0.05, coat), *neck, *_bands(line, 7, 0.4, 0.075, stripes)]
        tail = _tail(rng, (0.95 * x, -0.7 * y), 0.6, 0.09, coat, mane)
    else:
        neck, swish = neck + crest, np.float32((0.3, 1, 0.6)) * rng.uniform(0, 45)
        flow = limb(_chain((0.92 * x, -0.7 * y), [0.16, 0.3, 0.3], (-60, -8, 0) - swish), [0.1, 0.2, 0.22, 0.08])
        tail = [Part("tail", flow, mane)]
    head.insert(0, Part("head.ear", polygon((-0.08, -0.15), (0.04, -0.52), (0.17, -0.12)), shade(coat, 0.9)))
    return [*far, *tail, *body, *near, *neck, *_place(head, joint, 0.42, 62 if grazing else rng.uniform(25, 48))]


def horse(rng: Rng) -> list[Part]:
    """Slender, long-legged, a flowing mane and tail."""
    coat = _tint(rng, (0.45, 0.25, 0.13), (0.6, 0.32, 0.15), (0.2, 0.15, 0.13), (0.75, 0.74, 0.73), (0.78, 0.6, 0.36))
    return _equine(rng, coat, _tint(rng, BLACK, shade(coat, 0.45), (0.88, 0.8, 0.62)), shade(coat, 0.62), None)


def zebra(rng: Rng) -> list[Part]:
    """A stocky horse with black and white stripes all over and a brush of a mane."""
    return _equine(rng, _tint(rng, WHITE, (0.92, 0.89, 0.82)), BLACK, (0.2, 0.18, 0.18), BLACK)


def _wool(rng: Rng, x: float, y: float, rx: float, ry: float, bumps: int) -> tuple[Contour, ...]:
    """A scalloped ellipse."""
    angle = np.linspace(0, 2 * np.pi, bumps * 8, endpoint=False)
    wave = 0.93 + 0.11 * np.abs(np.sin(angle * bumps / 2 + rng.uniform(0, 3)))
    return (np.stack([x + rx * wave * np.cos(angle), y + ry * wave * np.sin(angle)], 1).astype(np.float32),)


def sheep(rng: Rng) -> list[Part]:
    """A cloud of wool on short thin legs; a small bare face with drooping ears."""
    wool = _tint(rng, WHITE, WHITE, WHITE, (0.9, 0.86, 0.76), (0.84, 0.8, 0.73), (0.42, 0.34, 0.28))
    skin = _tint(rng, (0.15, 0.13, 0.13), (0.24, 0.2, 0.18), (0.85, 0.74, 0.63))
    rx, ry, front = rng.uniform(0.62, 0.74), rng.uniform(0.4, 0.47), rng.random() < 0.45
    far, near = _legs(rng, (-0.5 * rx, 0.2), (0.6 * rx, 0.2), rng.uniform(0.7, 0.8), 0.1, skin, 14)
    x, y = -rx - 0.06, rng.uniform(-0.35, 0.0) if front or rng.random() < 0.7 else 0.3
    cap, ear = ((0, -0.42), (0.46, -0.14, 0.3, 0.13, 25)) if front else ((0.12, -0.24), (0.24, 0.04, 0.29, 0.12, 40))
    head = [*_head(skin, shade(skin, 0.85), 0.85, 0.31, 0.2, front),
            Part("head.cap", _wool(rng, *cap, 0.33, 0.2, 7), wool), *_sides("head.ear", ellipse(*ear), skin, front)]
    at = rng.uniform((-0.8 * rx, -0.7 * ry), (0.8 * rx, 0.7 * ry), (9, 1, 2))
    curls = tuple(np.add(at, [(-0.07, -0.03), (0, 0), (0.07, -0.03), (0, 0.04)]).astype(np.float32))
    return [*far, *near, Part("tail", ellipse(rx, -0.08, 0.13, 0.17, -20), shade(wool, 0.92)),
            Part("body", _wool(rng, 0, 0, rx, ry, 15), wool), Part("curls", curls, shade(wool, 0.83), True),
            Part("neck", _wool(rng, x + 0.17, y + 0.06, 0.26, 0.26, 8), shade(wool, 0.95)),
            *_place(head, (x, y), 0.44, 0 if front else rng.uniform(35, 60))]


def elephant(rng: Rng) -> list[Part]:
    """Grey bulk on four columns, a fan of an ear, a trunk (hanging, curled or raised), tusks."""
    hide = _tint(rng, (0.5, 0.49, 0.5), (0.58, 0.56, 0.55), (0.47, 0.43, 0.4))
    x, y, tip = rng.uniform(0.58, 0.7), rng.uniform(0.4, 0.46), rng.uniform(0.25, 0.42)
    far, near = _legs(rng, (-0.62 * x, 0.1), (0.7 * x, 0.05), 0.84, 0.2, hide, 12, hoof=shade(hide, 1.25))
    bends = ((20, 8, -4, 25), (15, 0, -20, -55), (25, 45, 75, 110), (60, 110, 140, 165))[rng.integers(4)]
    trunk = _chain((-0.14, 0.06), [0.24, 0.24, 0.22, 0.18], bends + rng.uniform(-6, 6, 4))
    tusk = limb([(-0.12, 0.26), (-0.14 - 0.6 * tip, 0.46), (-0.14 - tip, 0.42)], [0.1, 0.085, 0.04])
    skull = smooth((0.25, -0.2), (0, -0.31), (-0.2, -0.2), (-0.29, 0.1), (-0.15, 0.32), (0.1, 0.3), (0.28, 0.1))
    fan = smooth((0.04, -0.26), (0.26, -0.34), (0.48, -0.2), (0.5, 0.1), (0.34, 0.36), (0.18, 0.2), (0.06, 0.04))
    head = [Part("head.trunk", limb(trunk, [0.3, 0.21, 0.17, 0.13, 0.1]), shade(hide, 0.93)),
            Part("head.tusk", tusk, IVORY), Part("head.skull", skull, hide), *_eyes([(-0.13, -0.02)], 0.03),
            *_place([Part("head.ear", fan, shade(hide, 0.84))], (0, 0), rng.uniform(0.95, 1.2))]
    return [*far, *_tail(rng, (0.95 * x, -0.5 * y), 0.55, 0.07, shade(hide, 0.85), shade(hide, 0.5)),
            Part("body", _torso(x, y, -0.02, -0.03), hide), *near, *_place(head, (-x - 0.08, -0.2))]


def giraffe(rng: Rng) -> list[Part]:
    """A neck as long as the legs, a sloping back, brown patches on yellow."""
    coat, patch = _tint(rng, (0.9, 0.75, 0.47), (0.93, 0.82, 0.6)), _tint(rng, (0.55, 0.31, 0.12), (0.43, 0.23, 0.1))
    x, y, lean = rng.uniform(0.36, 0.42), rng.uniform(0.2, 0.23), rng.uniform(0.14, 0.42)
    far, near = _legs(rng, (-0.7 * x, 0.1), (0.72 * x, 0.02), 1.0, 0.08, coat, 14, hoof=(0.3, 0.22, 0.15))
    a, b = -0.72 * x, -0.04  # where the neck starts
    joint = (a - lean, b - rng.uniform(0.8, 0.95) + 0.3 * lean)
    line = [(a, b), (a - 0.3 * lean, b + 0.38 * (joint[1] - b)), joint]
    rows = [m for row in (-0.55, 0, 0.55) for m in _blotches(rng, [(-x, row * y), (x, row * y)], 5, 0.02, 0.065, patch)]
    head = [Part("head.horn", limb([(0.0, -0.2), (0.06, -0.5)], [0.13, 0.17]), shade(patch, 0.7)),
            *_head(coat, shade(coat, 0.8), 0.85, 0.26, 0.17),
            Part("head.ear", ellipse(0.22, -0.16, 0.26, 0.1, rng.uniform(-35, 0)), shade(coat, 0.85))]
    return [*far, *_tail(rng, (0.93 * x, -0.5 * y), 0.5, 0.05, coat, shade(patch, 0.4)),
            Part("body", rotate(_torso(x, y, 0.04), 9), coat), *rows, *near,
            Part("neck.mane", limb([(u + 0.08, v - 0.02) for u, v in line], [0.1, 0.09, 0.07]), shade(patch, 0.85)),
            Part("neck", limb(line, [0.36, 0.2, 0.14]), coat), *_blotches(rng, line, 9, 0.06, 0.058, patch),
            *_place(head, joint, 0.34, rng.uniform(10, 40))]


def _pet(rng: Rng, pose: str, coat: Color, marks: list[Part]) -> tuple[list[Part], Point]:
    """A cat or a dog without its head, and where the head goes; "front" and "side" sit; `marks` lie on the body."""
    b, curl, leg, back = rng.uniform(0.9, 1.1), rng.uniform(-25, 35), shade(coat, 0.93), shade(coat, 0.8)
    far, turns = [], (-75, -95, -130) if pose in ("side", "lying") else (-125, -150, -170)
    if pose == "standing":
        root, joint, trunk = (0.56, -0.16), (-0.68, rng.uniform(-0.45, -0.3)), _torso(0.6, 0.24 * b, tuck=0.05)
        far, near = _legs(rng, (-0.42, 0.06), (0.46, 0.0), rng.uniform(0.58, 0.72), 0.12, coat, 26, toe=0.08)
        near.append(Part("neck", limb([(-0.4, -0.05), joint], [0.36, 0.26]), shade(coat, 0.97)))
    elif pose == "front":
        root, joint, trunk = (0.34, 0.7), (0, -0.52), _even((0.2, -0.4), (0.34 * b, 0), (0.48 * b, 0.6), (0.3, 0.8))
        near = [*_sides("hindleg", ellipse(0.4 * b, 0.62, 0.17, 0.22), back),
                *_sides("foreleg", limb([(0.14, 0.1), (0.14, 0.76)], [0.2, 0.19]), leg)]
    elif pose == "side":
        root, joint, thigh, paw = (0.52, 0.68), (-0.2, -0.58), ellipse(0.3, 0.5, 0.26), [(0.3, 0.74), (0.02, 0.76)]
        trunk = smooth((-0.3, -0.35), (-0.3 * b, 0.1), (-0.15, 0.5), (0.05, 0.76), (0.5, 0.8), (0.62 * b, 0.5),
                       (0.42 * b, 0.0), (0.15, -0.4), (-0.1, -0.55))
        fore = np.float32([(-0.16, 0.05), (-0.2, 0.72), (-0.3, 0.75)])
    else:
        root, joint, thigh, paw = (0.72, 0.55), (-0.62, -0.12), ellipse(0.5, 0.44, 0.25), [(0.5, 0.64), (0.2, 0.65)]
        trunk = smooth((-0.62, 0), (0.2, 0.5 - b / 2), (0.7, 0.1), (0.8, 0.45), (0.7, 0.68), (-0.6, 0.68), (-0.7, 0.3))
        fore = np.float32([(-0.45, 0.5), (-0.7, 0.63), (-0.98, 0.63)])
    if pose in ("side", "lying"):
        far = [Part("far_foreleg", limb(fore - np.float32([0.12, 0.03]), [0.2, 0.15, 0.14]), back)]
        near = [Part(f"near_{name}", outline, leg) for name, outline in (
            ("foreleg", limb(fore, [0.24, 0.17, 0.15])), ("hindleg.paw", limb(paw, 0.15)), ("hindleg.thigh", thigh))]
    line = _chain(root, [0.2, 0.22, 0.24], [t + k * curl for k, t in enumerate(turns)])
    tail = Part("tail", limb(line, [0.13, 0.13, 0.12, 0.09]), shade(coat, 0.86))
    return [tail, *far, Part("body", trunk, coat), *marks, *near], joint


def cat(rng: Rng) -> list[Part]:
    """A round face with big eyes under pointed ears (cats look at the camera), a long thin tail."""
    coat = _tint(rng, (0.86, 0.55, 0.24), (0.52, 0.51, 0.52), (0.55, 0.43, 0.31), BLACK, WHITE, (0.88, 0.78, 0.62))
    tabby, dark, pose = 0.6 < sum(coat) < 2.5 and rng.random() < 0.75, shade(coat, 0.62), rng.integers(4)
    spine = ([(0, -0.3), (0, 0.8)], [(0.1, -0.4), (0.6, 0.6)], [(-0.5, 0.1), (0.7, 0.1)], [(-0.5, 0), (0.7, 0)])[pose]
    marks = _bands(spine, 6, 0.24, 0.07, dark) if tabby else []
    body, joint = _pet(rng, ("front", "side", "lying", "standing")[pose], coat, marks)
    x, iris = rng.uniform(-0.2, 0.05), _tint(rng, (0.55, 0.75, 0.25), (0.9, 0.72, 0.15), (0.4, 0.65, 0.85))
    pale, hair = shade(coat, 1.35) if sum(coat) > 0.6 else (0.3, 0.28, 0.28), WHITE if sum(coat) < 2.3 else (0.5,) * 3
    head = [*(part for ear in _sides("head.ear", polygon((0.84, -0.2), (0.74, -1.12), (0.16, -0.66)), shade(coat, 0.85))
              for part in (ear, Part("inner", tuple(0.6 * c + 0.4 * c.mean(0) for c in ear.contours), PINK, True))),
            Part("head.face", _even((0, -0.74), (0.6, -0.58), (0.9, 0.02), (0.62, 0.52), (0, 0.7)), coat),
            *(_bands([(-0.45, -0.6), (0.45, -0.6)], 3, 0.3, 0.16, dark) if tabby else []),
            *(Part("whisker", polygon((x, 0.3), (s, y), (x, 0.33)), hair, True) for s in (-1, 1) for y in (0.2, 0.44)),
            *_eyes([(x - 0.4, 0), (x + 0.4, 0)], 0.17, iris), Part("head.muzzle", ellipse(x, 0.4, 0.3, 0.2), pale),
            Part("nose", polygon((x - 0.11, 0.16), (x + 0.11, 0.16), (x, 0.3)), (0.8, 0.45, 0.45), True),
            Part("mouth", polygon((x - 0.16, 0.38), (x, 0.43), (x + 0.16, 0.38), (x, 0.49)), shade(pale, 0.35), True)]
    return [*body, *_place(head, joint, rng.uniform(0.36, 0.42))]


def _dog_head(rng: Rng, coat: Color, ear_color: Color, front: bool) -> list[Part]:
    """A long snout with a big black nose, in profile or face on; ears hanging or pricked."""
    x, hanging = rng.uniform(0.85, 1.25), rng.random() < 0.65 + 0.1 * front
    if front:
        skull = _even((0, -0.68), (0.45, -0.56), (0.58, -0.05), (0.38, 0.45))
        flap = smooth((0.3, -0.62), (0.66, -0.52), (0.86, 0), (0.74, 0.42), (0.5, 0.1))
        prick, mouth = [(0.1, -0.55), (0.5, -1.15), (0.6, -0.3)], [(-0.2, 0.52), (0, 0.42), (0.2, 0.52), (0, 0.48)]
        muzzle, nose, eyes = ellipse(0, 0.38, 0.36, 0.36), ellipse(0, 0.2, 0.19, 0.14), [(-0.26, -0.16), (0.26, -0.16)]
    else:
        skull = smooth((0.5, 0.1), (0.35, -0.5), (-0.15, -0.62), (-0.5, -0.3), (-0.5, 0.3), (-0.1, 0.55), (0.3, 0.5))
        flap = smooth((0, -0.5), (0.35, -0.4), (0.5, 0.1), (0.32, 0.5), (0.06, 0.2))
        prick, mouth = [(-0.12, -0.45), (0.16, -1.12), (0.45, -0.25)], [(0.1 - x, 0.18), (-0.35, 0.2), (-0.35, 0.28)]
        muzzle = smooth((-0.25, -0.22), (-0.6, -0.18), (-x, -0.12), (-x - 0.08, 0.1), (-x + 0.1, 0.32), (-0.3, 0.46))
        nose, eyes = ellipse(-x - 0.02, -0.05, 0.15, 0.13), [(-0.26, -0.22)]
    ears = _sides("head.ear", flap if hanging else polygon(*prick), ear_color, front)
    face = [Part("head.skull", skull, coat), *_eyes(eyes, 0.1), Part("head.muzzle", muzzle, shade(coat, 1.13)),
            Part("mouth", polygon(*mouth), shade(coat, 0.38), True), Part("head.nose", nose, BLACK)]
    return [*face, *ears] if hanging else [*ears, *face]


def dog(rng: Rng) -> list[Part]:
    """Any of many coats and poses, often with a collar."""
    coat = _tint(rng, (0.8, 0.62, 0.38), (0.45, 0.28, 0.16), (0.2, 0.18, 0.17), (0.9, 0.87, 0.82), (0.62, 0.42, 0.24))
    spot, pose = _tint(rng, BLACK, (0.4, 0.24, 0.13)), ("standing", "side", "front", "lying")[rng.integers(4)]
    marks = _blotches(rng, [(-0.3, 0.1), (0.6, 0.2)], 3, 0.25, 0.15, spot) if rng.random() < 0.4 else []
    body, (x, y) = _pet(rng, pose, coat, marks)
    if pose != "standing" and rng.random() < 0.6:
        paint, y0 = _tint(rng, (0.8, 0.1, 0.1), (0.1, 0.3, 0.75)), y + 0.3
        body.append(Part("collar", limb([(x - 0.17, y0), (x + 0.17, y0)], 0.1), paint))
    front = pose == "front" or rng.random() < 0.2
    head = _dog_head(rng, coat, shade(spot if marks else coat, 0.7), front)
    return [*body, *_place(head, (x, y), rng.uniform(0.36, 0.42), 0 if front else rng.uniform(-5, 15))]


PLUMAGE = (  # (back, breast, beak)
    ((0.45, 0.33, 0.22), (0.86, 0.78, 0.66), (0.35, 0.3, 0.25)), ((0.4, 0.35, 0.3), (0.85, 0.4, 0.18), (0.2, 0.2, 0.2)),
    ((0.2, 0.42, 0.75), (0.9, 0.88, 0.82), (0.2, 0.2, 0.22)), ((0.8, 0.14, 0.12), (0.85, 0.25, 0.18), (0.93, 0.6, 0.2)),
    ((0.93, 0.8, 0.2), (0.96, 0.88, 0.4), (0.9, 0.5, 0.15)), ((0.1, 0.1, 0.13), (0.13, 0.13, 0.16), (0.93, 0.62, 0.12)),
    (WHITE, WHITE, (0.95, 0.65, 0.15)), ((0.3, 0.58, 0.25), (0.62, 0.76, 0.3), (0.85, 0.3, 0.2)))


def bird(rng: Rng) -> list[Part]:
    """A small head with a pointed beak; perched, wading on long legs, or in flight with raised or sweeping wings."""
    back, breast, beak = (_tint(rng, c) for c in PLUMAGE[rng.integers(len(PLUMAGE))])
    flying, wing = rng.random() < 0.3, shade(back, rng.choice([0.72, 0.5]))
    tall = rng.uniform(0.6, 1.0) if not flying and rng.random() < 0.3 else 0.0  # legs, neck and beak grow together
    bill = polygon((-0.7, -0.32), (-rng.uniform(1.5, 1.85) - 0.8 * tall, 0.12), (-0.66, 0.34))
    head = [Part("head.beak", bill, beak), Part("head.skull", ellipse(0, 0, 1.0, 0.92), back),
            Part("cheek", ellipse(-0.1, 0.75, 0.8, 0.45), breast, True),
            *_eyes([(-0.36, -0.14)], 0.19, BLACK if sum(back) > 0.6 else beak)]
    if flying:
        lift, beat = rng.uniform(-20, 25), np.float32([1, rng.uniform(0.85, 1.1) * rng.choice([1.0, 1.0, -0.85])])
        blade = smooth((-0.24, 0.06), (-0.14, -0.45), (0.14, -0.82), (0.5, -1), (0.44, -0.6), (0.4, -0.2), (0.26, 0.06))
        fan = polygon((0.35, -0.05), (0.95, -0.16), (1.0, 0.02), (0.92, 0.18), (0.35, 0.08))
        body = smooth((-0.62, -0.06), (-0.35, -0.2), (0.1, -0.18), (0.55, 0.0), (0.1, 0.2), (-0.35, 0.2))
        return [Part("far_wing", rotate(blade, -30 + lift / 2), shade(wing, FAR)), Part("tail", fan, shade(wing, 0.9)),
                Part("body", body, back), Part("belly", ellipse(-0.1, 0.17, 0.5, 0.14), breast, True),
                Part("near_wing", tuple(c * beat for c in rotate(blade, lift)), wing),
                *_bands([(0, -0.15 * beat[1]), (0.3, -0.8 * beat[1])], 3, 0.3, 0.04, shade(wing, 0.7)),
                *_place(head, (-0.62, -0.08), 0.2, rng.uniform(-5, 10))]
    body = smooth((-0.55, -0.1), (-0.3, -0.34), (0.1, -0.3), (0.5, 0.0), (0.45, 0.16), (0.0, 0.36), (-0.4, 0.26))
    belly = smooth((-0.56, -0.05), (-0.3, 0.02), (0.1, 0.18), (0.42, 0.17), (0.0, 0.4), (-0.45, 0.3))
    fold = smooth((-0.28, -0.12), (0.05, -0.2), (0.45, 0.0), (0.74, 0.14), (0.35, 0.2), (-0.05, 0.16))
    tail = limb([(0.3, 0.1), (rng.uniform(0.85, 1.15) - 0.2 * tall, 0.14)], [0.24, 0.2])
    trunk = [Part("tail", tail, shade(wing, 0.9)), Part("body", body, back), Part("belly", belly, breast, True),
             Part("wing", fold, wing), *_bands([(0.1, 0.02), (0.6, 0.13)], 3, 0.14, 0.04, shade(wing, 0.7))]
    neck = [(-0.36, -0.1), (-0.5 - 0.1 * tall, -0.3 - 0.35 * tall), (-0.46, -0.4 - 0.6 * tall)]
    legs = [Part(f"{name}_leg", limb([(x, 0.2), (x + 0.03, 0.66 + 0.4 * tall), (x - 0.12, 0.72 + 0.4 * tall)], 0.08),
                 shade(beak, tone)) for name, x, tone in (("far", -0.12, 0.7), ("near", 0.06, 0.9))]
    return [*legs, *_place(trunk, (0, 0), 1.0, -rng.uniform(10, 35) * (1 - 0.5 * tall)),
            Part("neck", limb(neck, [0.42 - 0.14 * tall, 0.34 - 0.16 * tall, 0.3 - 0.14 * tall]), back),
            *_place(head, neck[-1], 0.28 - 0.07 * tall, rng.uniform(-8, 12))]


def _person_head(rng: Rng, skin: Color, side: bool) -> list[Part]:
    """Neck, face and hair (short, long, none); the chin is at the origin."""
    hair = _tint(rng, BLACK, (0.3, 0.18, 0.1), (0.5, 0.3, 0.14), (0.85, 0.7, 0.4), (0.65, 0.63, 0.62), (0.6, 0.25, 0.1))
    length, b = rng.random(), 0.06 * side  # b: in profile the hair sits further back
    if side:
        face = smooth((-0.1, -0.3), (0.1, -0.3), (0.12, 0), (-0.09, 0), (-0.13, -0.1), (-0.18, -0.13), (-0.13, -0.2))
        cover = smooth((-0.145, -0.23), (-0.1, -0.36), (0.03, -0.39), (0.15, -0.31), (0.16, -0.12), (0.07, -0.27))
        eyes, mouth = [(-0.09, -0.2)], (-0.09, -0.06)
    else:
        face, cover = ellipse(0, -0.17, 0.135, 0.175), _even((0, -0.39), (0.12, -0.34), (0.155, -0.2), (0.06, -0.28))
        eyes, mouth = [(-0.055, -0.18), (0.055, -0.18)], (0, -0.075)
    mane = smooth((b - 0.16, -0.3), (b, -0.4), (b + 0.16, -0.3), (b + 0.19, 0.06), (b, 0.1), (1.2 * b - 0.19, 0.06))
    return [*([Part("head.hair", mane, hair)] if length > 0.65 else []),
            Part("neck", limb([(0.01, -0.1), (0.02, 0.08)], 0.13), shade(skin, 0.88)), Part("head.face", face, skin),
            *_eyes(eyes, 0.02), Part("mouth", ellipse(*mouth, 0.045, 0.012), (0.65, 0.28, 0.25), True),
            *([Part("head.hair", cover, hair)] if length > 0.15 else [])]


def person(rng: Rng) -> list[Part]:
    """Standing face on (arms down, on the hips, out or up; trousers or a skirt), or in profile walking or sitting."""
    skin = _tint(rng, (0.95, 0.78, 0.66), (0.87, 0.67, 0.5), (0.68, 0.47, 0.33), (0.42, 0.27, 0.18))
    cloth = _tint(rng, (0.15, 0.22, 0.42), (0.14, 0.14, 0.16), (0.55, 0.48, 0.36), (0.35, 0.36, 0.38))
    shirt, shoe = tuple(rng.uniform(0.1, 0.95, 3)), _tint(rng, BLACK, (0.4, 0.22, 0.12), WHITE, (0.75, 0.15, 0.15))
    pose, step, x = ("front", "front", "walk", "sit")[rng.integers(4)], rng.uniform(12, 30), -rng.uniform(0, 0.08)
    long, bare, front, skirt = rng.random() < 0.5, rng.random() < 0.3, pose == "front", []
    if front:
        x, wide, stance = 0, rng.uniform(0.22, 0.29), step / 3 - 3
        shoulders, hips, toes = (0.04 - wide, wide - 0.04), (-0.11, 0.11), (-0.05, 0.05)
        reach, thighs = ((8, 3), (8, 3), (12, 6), (38, -50), (150, 172), (80, 95)), ((stance, 3), (-stance, -3))
        arms = [np.multiply(reach[rng.integers(6)], side) for side in (1, -1)]
        torso = _even((0.1, -0.58), (wide, -0.5), (0.2, -0.15), (0.2, 0.14))
        if rng.random() < 0.25:
            bare, skirt = True, [Part("skirt", polygon((-0.18, 0.0), (0.18, 0.0), (0.32, 0.5), (-0.32, 0.5)), cloth)]
    else:
        shoulders, hips, toes = (x, x), (0.0, 0.02), (-0.15, -0.15)
        thighs, arms = ((88, -6), (84, 4)), ((35, 70), (42, 62))
        if pose == "walk":
            thighs, arms = ((-step, -step - 15), (step, step - 8)), ((step, step + 30), (-step, 15 - step))
        torso = smooth((x - 0.1, -0.56), (x + 0.1, -0.56), (0.15, 0), (0.1, 0.18), (-0.13, 0.18), (x - 0.16, -0.32))
    sleeves, legs = [], []
    for k, (name, tone) in enumerate((("left", 1.0), ("right", 1.0)) if front else (("far", 0.7), ("near", 1.0))):
        arm = _chain((shoulders[k], -0.46), [0.29, 0.21, 0.06], (*arms[k], arms[k][1]))  # upper arm, forearm, hand
        leg = _chain((hips[k], 0.1), [0.42, 0.4], thighs[k])
        flesh, dyed, worn, sole = (shade(c, tone) for c in (skin, shade(shirt, 0.85), cloth, shoe))
        sleeves.append([Part(f"{name}_arm.hand", limb(arm[1:], 0.105), flesh),
                        Part(f"{name}_arm.sleeve", limb(arm[:3] if long else arm[:2], 0.14), dyed)])
        legs += [Part(f"{name}_leg.shoe", limb(np.add(leg[2], [(0.02, 0.03), (toes[k], 0.04)]), 0.11), sole),
                 Part(f"{name}_leg", limb(leg, [0.2, 0.16, 0.12]), flesh if bare else worn),
                 *([Part("shorts", limb(leg[:2], [0.22, 0.2]), worn, True)] if bare else [])]
    head = _place(_person_head(rng, skin, not front), (x, -0.63), rng.uniform(0.95, 1.15))
    return [*sleeves[0], *legs, *skirt, Part("torso", torso, shirt), *head, *sleeves[1]]


DRAWINGS: dict[str, Callable[[Rng], list[Part]]] = {
    draw.__name__: draw for draw in (bird, cat, cow, dog, horse, person, sheep, elephant, zebra, giraffe)}
