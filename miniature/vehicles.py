"""Vehicles and things of the street."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from miniature.shapes import Color, Contour, Part, box, ellipse, limb, pick, polygon, rotate, shade, smooth

Rng = np.random.Generator
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1

_WHITE, _SILVER, _BLACK, _STEEL = (0.94, 0.94, 0.92), (0.6, 0.62, 0.65), (0.14, 0.14, 0.16), (0.7, 0.71, 0.74)
_RED, _BLUE, _GREEN, _YELLOW = (0.78, 0.12, 0.12), (0.13, 0.28, 0.62), (0.12, 0.42, 0.25), (0.92, 0.72, 0.1)
_ORANGE, _SKY, _WINE, _TYRE = (0.9, 0.45, 0.1), (0.35, 0.65, 0.8), (0.5, 0.1, 0.18), (0.1, 0.1, 0.11)
_DARK, _LAMP, _WOOD, _BRASS = (0.2, 0.2, 0.22), (0.98, 0.94, 0.7), (0.45, 0.3, 0.18), (0.75, 0.58, 0.25)
_BRIGHT = [_RED, _BLUE, _GREEN, _YELLOW, _ORANGE, _SKY, _WINE]
_PAINTS = [*_BRIGHT, _WHITE, _SILVER, _BLACK]
_GLASSES = [(0.3, 0.4, 0.48), (0.55, 0.72, 0.82), (0.16, 0.2, 0.25)]
_SIGNALS = {"red": (1.0, 0.12, 0.1), "amber": (1.0, 0.72, 0.05), "green": (0.1, 0.9, 0.35)}
_FULL = (0, 0, 100, 100)

# All lengths here are hundredths: tables of points read better without "0."; `_to_unit` scales what is finished.


def _soft(radius: float, *points: Sequence) -> tuple[Contour, ...]:
    """Polygon (or several of as many corners) with corners rounded by `radius`: sheet metal is not sharp."""
    corners = np.asarray(points, np.float32)
    corners = corners[None] if corners.ndim == 2 else corners
    here, cut = np.arange(corners.shape[1]), []
    for neighbour in (here - 1, here - len(here) + 1):
        edge = corners[:, neighbour] - corners
        cut.append(corners + edge * np.minimum(radius / (np.hypot(edge[..., :1], edge[..., 1:]) + 1e-9), 0.45))
    return tuple(np.stack([cut[0], (cut[0] + 2 * corners + cut[1]) / 4, cut[1]], 2).reshape(len(corners), -1, 2))


def _mark(contours: tuple[Contour, ...], color: Color) -> Part:
    """A detail of the part before it."""
    return Part("mark", contours, color, detail=True)


def _panes(area: Rect, *entries: tuple, radius: float = 3) -> list[Part]:
    """Rounded rectangles on a wall: (name, colour, rectangle, ...) in percent of `area`; the name "~" is a mark."""
    low, size = np.float32(area[:2]), np.float32(area[2:]) - np.float32(area[:2])
    parts = []
    for name, color, *rects in entries:
        corners = np.asarray(rects, np.float32)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) / 100 * size + low
        parts.append(Part(name, _soft(radius, *corners), color, detail=name == "~"))
    return parts


def _bars(count: int, start: float, stop: float, width: float, top: float = 0, bottom: float = 100) -> list[Rect]:
    """`count` upright bars spread between `start` and `stop`: pillars, windows, ribs."""
    return [(x - width / 2, top, x + width / 2, bottom) for x in np.linspace(start, stop, count)]


def _tube(width: float, a: Sequence[float], b: Sequence[float]) -> tuple[Contour, ...]:
    """Straight bar with square ends: `limb` for two points, several times as fast."""
    p, q = complex(*a), complex(*b)
    along = (q - p) / abs(q - p) * width / 2
    out = along * 1j
    return polygon(*((z.real, z.imag) for z in (p - along + out, q + along + out, q + along - out, p - along - out)))


# Below are tables of parts: a line or two for each shows the drawing better than a line for each number.
# fmt: off
def _wheel(name: str, x: float, y: float, r: float, rim: float = 0.58, color: Color = _STEEL,
           spokes: int = 0) -> list[Part]:
    """A tyre disc with a lighter rim disc on it; only a wheel with spokes is large enough for a rim to click on."""
    parts = [Part(f"{name}.tyre", ellipse(x, y, r), _TYRE)]
    parts.append(Part(f"{name}.rim", ellipse(x, y, r * rim), color, detail=not spokes))
    if spokes:
        ends = r * rim * np.exp(1j * (np.arange(spokes) * 2 * np.pi / spokes + x))
        bars = (_tube(3.6 if spokes > 6 else 0.28 * r, (x, y), (x + d.real, y + d.imag)) for d in ends)
        parts.append(_mark(sum(bars, ()), shade(color, 0.6)))
    return [*parts, _mark(ellipse(x, y, r * 0.19), shade(color, 0.45))]


def _turned(front: list[Part], side: list[Part], corner: float, depth: float) -> list[Part]:
    """Three-quarter view from a front and a side, both drawn over x in [-100, 100] with the same height."""

    def recede(part: Part, name: str, near: int, far: float, depth: float) -> Part:
        """Perspective of a flat wall: the edge x = 100 near goes to `corner`, the other one, smaller, to `far`."""
        contours = []
        for x, y in (c.T for c in part.contours):
            s = (1 - x / 100 * near) / 2
            w = 1 + depth * s
            contours.append(np.stack([corner + (far - corner) * s * (1 + depth) / w, y / w], 1))
        return replace(part, name=name, contours=tuple(contours))

    side = [recede(p, p.name, -1, 100, depth) for p in side]
    return side + [recede(p, f"front.{p.name}", 1, -100, 0.12) for p in front]


def _face(area: Rect, paint: Color, glass: Color, sign: Color) -> list[Part]:
    """Front of a bus, lorry or train: panel, sign above the windscreen, grille, bumper and lights below."""
    low = shade(paint, 0.5)
    panel = _panes(area, ("panel", paint, _FULL), radius=10)
    return panel + _panes(area, ("~", sign, (18, 5, 82, 16)), ("~", low, (30, 65, 70, 80)),
                          ("windscreen", glass, (7, 20, 93, 58)), ("bumper", low, (0, 86, 100, 100)),
                          ("lights", _LAMP, (6, 67, 24, 80), (76, 67, 94, 80)))


def aeroplane(rng: Rng) -> list[Part]:
    """Airliner: from above, or from the side with its engine under the near wing and the far wing behind."""
    skin, trim = pick(rng, [_WHITE, _WHITE, (0.76, 0.78, 0.82)], 0.02), pick(rng, _BRIGHT)
    if rng.random() < 0.35:
        (h, span, sweep, turn), wing, parts = rng.uniform((9, 80, 25, -50), (13, 100, 50, 50)), shade(skin, 0.78), []
        for side, s in (("left", 1), ("right", -1)):
            tip = ((sweep + 10, s * span), (sweep - 6, s * span))
            parts += [Part(f"engine.{side}", box(-32, s * 40 - 7, 0, s * 40 + 7, 6), shade(trim, 0.8)),
                      Part(f"wing.{side}", polygon((-25, 0), (20, 0), *tip), wing),
                      Part(f"tail.{side}", polygon((68, 0), (90, 0), (102, s * 36), (90, s * 36)), wing)]
        hull = smooth((-100, 0), (-90, -0.7 * h), (-70, -h), (30, -h), (102, 0), (30, h), (-70, h), (-90, 0.7 * h))
        parts += [Part("fuselage", hull, skin), _mark(polygon((-93, -h / 2), (-83, -h), (-83, h), (-93, h / 2)), _DARK),
                  Part("tail.fin", polygon((58, 0), (85, -5), (106, 0), (85, 5)), trim)]
        return [replace(p, contours=rotate(p.contours, turn)) for p in parts]
    h, fin, drop, x = rng.uniform((11, 42, 34, -25), (15, 55, 50, -10))
    wing, ex, ey = shade(skin, 0.72), x + 16, 0.45 * h + drop * 0.36
    hull = smooth((-100, 3), (-90, -0.6 * h), (-70, -h), (60, -h), (98, -0.6 * h), (98, -0.3 * h), (45, h), (-75, h))
    return [
        Part("wing.far", polygon((x, -h / 2), (x + 32, -h / 2), (x + 66, -drop), (x + 54, -drop)), wing),
        Part("tail.fin", _soft(3, (56, -h * 0.8), (82, -fin), (100, -fin), (94, -h * 0.5)), trim),
        Part("fuselage", hull, skin), _mark(box(-100, h * 0.25, 100, h * 0.6), trim),
        _mark(sum((box(w, -0.4 * h, w + 4.5, -0.05 * h) for w in range(-68, 62, 10)), ()), _DARK),
        Part("cockpit", polygon((-92, -0.3 * h), (-86, -0.75 * h), (-74, -0.8 * h), (-76, -0.2 * h)), _DARK),
        Part("tail.plane", _soft(2, (62, -2), (86, -3), (102, 14), (90, 14)), wing),
        Part("wing.near", _soft(3, (x, 0.4 * h), (x + 38, 0.4 * h), (x + 72, drop), (x + 56, drop)), wing),
        Part("engine", _soft(5, (ex - 17, ey - 9), (ex + 15, ey - 5), (ex + 15, ey + 5), (ex - 17, ey + 9)), trim),
        _mark(box(ex - 17, ey - 9, ex - 11, ey + 9), _DARK),
    ]


def bicycle(rng: Rng) -> list[Part]:
    """Two thin spoked wheels, a diamond or step-through frame, saddle, handlebar, sometimes a basket."""
    paint, leather, rim = pick(rng, _PAINTS), pick(rng, [_TYRE, _WOOD], 0.03), shade(_STEEL, rng.uniform(1, 1.2))
    (r, fx, sx), y, rx, low = rng.uniform((38, -66, 17), (44, -60, 25)), 35, 58, rng.random() < 0.3
    crank, top = (0, y + 4), (sx - 10, 5) if low else (sx, -24)  # a step-through frame: the top tube runs down
    tubes = {"chain stay": (crank, (rx, y)), "seat stay": ((sx, -30), (rx, y)), "down tube": ((-42, -24), crank),
             "top tube": ((-43, -28), top), "seat tube": ((sx + 5, -50), crank), "fork": ((-38, -58), (fx, y))}
    straight, swept = [(-44, -66), (-30, -58)], [(-44, -60), (-34, -66), (-16, -58)]
    bar = (straight, swept, [(-34, -58), (-54, -60), (-62, -48), (-54, -38)])[rng.integers(3)]
    parts = _wheel("rear wheel", rx, y, r, 0.82, rim, 12) + _wheel("front wheel", fx, y, r, 0.82, rim, 12)
    parts += [Part(f"frame.{name}", _tube(7.5, *ends), paint) for name, ends in tubes.items()]
    parts += [Part("handlebar", limb(bar, 9), leather), Part("crank", ellipse(*crank, 11), _DARK),
              _mark(_tube(4, crank, (-10, y + 10)), _STEEL),
              Part("saddle", _soft(5, (sx - 17, -55), (sx + 25, -60), (sx + 25, -50), (sx + 5, -46)), leather)]
    if low or rng.random() < 0.2:
        parts += _panes((-90, -46, -52, -16), ("basket", _BRASS, _FULL), ("~", _WOOD, *_bars(4, 15, 85, 7, 10, 90)))
    return parts


def motorbike(rng: Rng) -> list[Part]:
    """Two fat wheels close together, engine, tank, seat, exhaust; a sports fairing or a bare lamp."""
    paint, r, y, metal = pick(rng, _PAINTS), rng.uniform(33, 39), 40, shade(_STEEL, rng.uniform(0.7, 1))
    sport, fx, rx = rng.random() < 0.45, -66, 62
    bar, tx, ty = (-50, 92, -42) if sport else (-62 - rng.uniform(0, 10), 72, -12)  # tx, ty: end of the seat
    parts = _wheel("rear wheel", rx, y, r, 0.55, metal, 5) + _wheel("front wheel", fx, y, r, 0.55, metal, 5) + [
        Part("frame.swing arm", _tube(12, (10, 30), (rx, y)), _DARK),
        Part("frame.fork", _tube(11, (-36, bar + 8), (fx, y)), metal),
        Part("engine", _soft(6, (-32, 0), (22, -2), (26, 42), (-22, 46)), shade(metal, 0.62)),
        _mark(sum((box(-20, v, 14, v + 3.5) for v in (6, 14, 22)), ()), metal),
        Part("exhaust", limb([(-20, 42), (20, 50), (92, 26 if sport else 42)], [9, 11, 17]), shade(metal, 1.15)),
        Part("fender.rear", _soft(12, (30, -12), (66, -15), (98, 12), (90, 18), (60, 4), (30, 12)), paint),
        Part("seat", smooth((-2, -20), (30, -18), (tx, ty), (tx + 4, ty + 10), (50, 2), (0, 4)), _TYRE),
        Part("tank", smooth((-40, -26), (-20, -40), (6, -28), (12, -4), (-30, -2)), paint),
        _mark(ellipse(-17, -29, 11, 4), shade(paint, 1.5)),
    ]
    if sport:
        cowl = _soft(6, (-88, -10), (-62, -36), (-30, -36), (-20, 30), (-42, 10), (-60, 2))
        screen = _soft(4, (-66, -30), (-40, -62), (-30, -56), (-34, -28))
        parts += [Part("fairing.screen", screen, pick(rng, _GLASSES)), Part("fairing.cowl", cowl, paint),
                  _mark(ellipse(-72, -14, 10, 6, -30), _LAMP)]
    else:
        guard = _soft(14, (fx - 32, 16), (fx - 10, -2), (fx + 20, 0), (fx + 38, 22), (fx, 12))
        parts += [Part("fender.front", guard, paint), Part("lamp", ellipse(-56, -26, 12), _LAMP)]
    return [*parts, Part("handlebar", limb([(-40, bar + 10), (-34, bar), (-12, bar + 8)], 9), _DARK)]


def boat(rng: Rng) -> list[Part]:
    """Sailing boat, or a yacht or fishing boat with a cabin."""
    draw, top, bottom, bow = (_sails, 50, 85, 8) if rng.random() < 0.5 else (_cabin, 22, 66, 22)
    bow, line = bow * rng.uniform(0.6, 1.4), bottom - (bottom - top) * 0.34
    hull = smooth((-100, top - bow), (-50, top - bow * 0.3), (0, top), (95, top), (89, bottom - 6), (79, bottom),
                  (0, bottom), (-60, bottom), (-80, (top + bottom) / 2))
    band = _soft(5, (-76, line), (93, line), (85, bottom), (-62, bottom))
    return [*draw(rng), Part("hull.side", hull, pick(rng, _PAINTS)),
            Part("hull.band", band, pick(rng, [_RED, _BLUE, _WHITE, _DARK], 0.03))]


def _sails(rng: Rng) -> list[Part]:
    """Mast with a main sail behind it and a jib before it."""
    cloth = pick(rng, [_WHITE, _WHITE, (0.9, 0.84, 0.7), _RED, (0.2, 0.35, 0.6)], 0.03)
    (x, peak), jib = rng.uniform((-20, -125), (10, -100)), cloth if rng.random() < 0.6 else pick(rng, _PAINTS)
    main = smooth((x + 5, peak + 8), (x + 38, -30), (80, 30), (x + 40, 34), (x + 5, 30), (x + 5, -30))
    parts = [Part("mast", _tube(6, (x, 55), (x, peak)), _WOOD), Part("sail.main", main, cloth),
             _mark(sum((box(x, v, 80, v + 2.5) for v in (-50, -15, 15)), ()), shade(cloth, 0.75)),
             Part("sail.jib", polygon((x - 6, peak + 20), (x - 6, 32), (-50, 35), (-90, 30)), shade(jib, 0.9)),
             Part("boom", _tube(6, (x, 37), (82, 35)), _WOOD),
             Part("cabin", _soft(5, (-35, 55), (-25, 38), (35, 40), (40, 55)), _WHITE)]
    flag = Part("flag", polygon((x, peak - 4), (x + 26, peak + 3), (x, peak + 10)), pick(rng, [_RED, _YELLOW]))
    return [*parts, flag] if rng.random() < 0.5 else parts


def _cabin(rng: Rng) -> list[Part]:
    """Wheelhouse with a mast; a fishing boat's is upright with a boom and a funnel, a yacht's long and raked."""
    x, top = rng.uniform((-10, -28), (30, -16))
    glass, wall, roof = pick(rng, _GLASSES), pick(rng, [_WOOD, _WHITE, _YELLOW], 0.03), pick(rng, _PAINTS)
    if rng.random() < 0.55:
        return [Part("mast", _tube(7, (x - 40, 30), (x - 40, -85)), _WOOD),
                Part("boom", _tube(6, (x - 40, 0), (-85, -50)), _WOOD),
                *_panes((x - 28, -40, x + 24, 35), ("funnel", shade(roof, 0.8), (100, -5, 140, 90)),
                        ("~", _WHITE, (100, 10, 140, 24)), ("cabin.wall", wall, _FULL),
                        ("cabin.roof", roof, (-15, 0, 115, 16)), ("cabin.window", glass, (10, 27, 55, 55)),
                        ("cabin.door", shade(wall, 0.6), (65, 27, 92, 90)))]
    return [Part("mast", _tube(6, (42, top), (50, top - 50)), _STEEL),
            Part("bridge", _soft(4, (-5, top), (5, top - 22), (50, top - 22), (60, top)), roof),
            Part("cabin.wall", _soft(5, (-50, 30), (-22, top), (62, top), (72, 30)), _WHITE),
            Part("cabin.screen", _soft(4, (-34, 10), (-18, top + 7), (16, top + 7), (16, 10)), glass),
            Part("cabin.window", _soft(4, (22, 10), (22, top + 7), (52, top + 7), (58, 10)), glass)]


def bus(rng: Rng) -> list[Part]:
    """City bus from the side, from ahead or three-quarter; double-decker at times."""
    paint, glass, trim = pick(rng, _PAINTS[:8]), pick(rng, _GLASSES), pick(rng, [_WHITE, _DARK, _BLUE, _GREEN], 0.03)
    (r, half, back, top), view = rng.uniform((15, 62, 40, -50), (18, 75, 60, -40)), rng.random()
    if view < 0.25:
        area = (-half, -85, half, 80)
        return _panes(area, ("mirrors", _DARK, (-15, 30, 1, 46), (99, 30, 115, 46)),
                      ("wheels", _TYRE, (5, 90, 24, 108), (76, 90, 95, 108))) + _face(area, paint, glass, _TYRE)
    area, double = (-100, top, 100, 36), view < 0.4
    pillars = ("~", paint, *_bars(int(rng.integers(5, 8)), 33, 87, 1.6))
    parts = _panes((-100, top - 40 * double, 100, 36), ("body", paint, _FULL), radius=8)
    parts += _panes(area, ("~", trim, (0, 60, 100, 72)), ("windows", glass, (21, 16, 97, 52)), pillars,
                    ("windscreen", glass, (0, 14, 8, 62)), ("door", glass, (10, 16, 19, 94)),
                    ("~", trim, (14.1, 16, 14.9, 94)), ("light", _LAMP, (0, 76, 5, 86)))
    if double:
        parts += _panes((-100, top - 33, 100, top - 2), ("upper windows", glass, (3, 0, 97, 100)), pillars)
    parts += _wheel("front wheel", -50, 36, r) + _wheel("rear wheel", back, 36, r)
    return parts if view < 0.65 else _turned(_face(area, paint, glass, _TYRE), parts, 25 - half, rng.uniform(0.3, 0.6))


def car(rng: Rng) -> list[Part]:
    """Saloon, hatchback or off-roader from the side; any car from ahead or behind."""
    paint, glass = pick(rng, _PAINTS, 0.03), pick(rng, _GLASSES)
    if rng.random() < 0.3:  # from ahead (white lamps, dark grille) or from behind (red lamps)
        top, area, trim = rng.uniform(-70, -55), (-95, -5, 95, 60), shade(paint, 0.5)
        lamp, grille = (_RED, shade(paint, 0.75)) if rng.random() < 0.35 else (_LAMP, _DARK)
        shell = _soft(16, (-86, -7), (86, -7), (97, 20), (95, 60), (-95, 60), (-97, 20))
        parts = _panes(area, ("wheel.left", _TYRE, (3, 60, 20, 122)), ("wheel.right", _TYRE, (80, 60, 97, 122)),
                       ("mirrors", shade(paint, 0.8), (-6, -20, 10, 0), (90, -20, 106, 0)))
        parts += [Part("body.cabin", _soft(14, (-84, 5), (-58, top), (58, top), (84, 5)), paint),
                  Part("windscreen", _soft(6, (-70, -6), (-50, top + 9), (50, top + 9), (70, -6)), glass),
                  Part("body.shell", shell, paint)]
        return parts + _panes(area, ("grille", grille, (29, 30, 71, 52)), ("bumper", trim, (0, 72, 100, 102)),
                              ("lights", lamp, (2, 27, 24, 52), (76, 27, 98, 52)), ("plate", _WHITE, (36, 70, 64, 88)))
    lift, r, roof, rear = ((0, 19, 26, 66), (3, 19, 52, 92), (12, 24, 78, 94))[rng.integers(3)]
    top, cowl, pillar = rng.uniform((-48, -56, 12), (-38, -44, 20)) - (lift, 0, 0)
    edge, slope, lean = top + 7, (-22 - cowl) * 0.85, (rear - roof) * 0.85  # how far the screens lean below `edge`
    shell = _soft(10, (-100, 36), (-100, 10), (-88, -1), (cowl, -8), (rear, -8), (97, 0), (100, 36))
    cabin = _soft(10, (cowl - 4, 10), (cowl, -6), (-22, top), (roof, top), (rear, -6), (rear, 10))
    panes = [_soft(3, (cowl + 8, -7), (cowl + slope + 6, edge), (pillar - 3, edge), (pillar - 3, -7)),
             _soft(3, (pillar + 3, -7), (pillar + 3, edge), (rear - lean - 6, edge), (rear - 9, -7))]
    return [
        Part("body.cabin", cabin, paint), Part("window.front", panes[0], glass), Part("window.rear", panes[1], glass),
        Part("body.shell", shell, paint), _mark(ellipse(-60, 31, r + 5) + ellipse(60, 31, r + 5), _DARK),
        _mark(sum((box(x, -6, x + 1.6, 30) for x in (cowl + 12, pillar, 52)), ()), shade(paint, 0.5)),
        _mark(box(pillar - 16, 5, pillar - 5, 8) + box(36, 5, 47, 8), shade(paint, 0.4)),
        Part("light.head", _soft(4, (-99, 15), (-97, 4), (-80, 6), (-84, 15)), _LAMP),
        Part("light.tail", box(88, 3, 100, 16), _RED), Part("bumper", box(-102, 24, -85, 37), shade(paint, 0.5)),
        *_wheel("front wheel", -60, 34, r, 0.62, spokes=5), *_wheel("rear wheel", 60, 34, r, 0.62, spokes=5),
    ]


def train(rng: Rng) -> list[Part]:
    """Steam engine from the side, or an electric train coming round in strong perspective."""
    if rng.random() < 0.35:
        paint, red = pick(rng, [_BLACK, _GREEN, _BLUE, _RED], 0.03), pick(rng, [_RED, _SILVER, _BRASS], 0.03)
        x, big = rng.uniform((-83, 18), (-73, 21))
        parts = [Part("chimney", _soft(2, (x - 10, -72), (x + 10, -72), (x + 6, -20), (x - 6, -20)), _DARK),
                 Part("dome", ellipse(-26, -32, 12, 17), _BRASS),
                 *_panes((-100, -70, 100, 30), ("boiler", paint, (5, 38, 60, 86)),
                         ("~", _BRASS, *_bars(2, 25, 46, 2, 38, 86)), ("smokebox", _DARK, (2, 36, 20, 88)),
                         ("cab.wall", paint, (56, 6, 78, 90)), ("cab.roof", _DARK, (52, 0, 83, 11)),
                         ("cab.window", _GLASSES[1], (60, 20, 73, 48)), ("tender", _DARK, (80, 44, 105, 94)),
                         ("frame", red, (1, 84, 105, 98))),
                 Part("cowcatcher", polygon((-96, 20), (-80, 20), (-80, 50), (-114, 50)), red)]
        for k, (wx, r) in enumerate([(-66, 12), (-30, big), (14, big), (80, 15)]):
            parts += _wheel(f"wheel {k}", wx, 52 - r, r, 0.65, red)
        return parts
    colors = pick(rng, _PAINTS), pick(rng, _GLASSES), pick(rng, [_WHITE, _YELLOW, _DARK])
    nose, area = pick(rng, [_YELLOW, _RED, _WHITE], 0.03), (-100, rng.uniform(-70, -60), 100, 40)
    side = _carriage("second car", (2, *area[1:]), *colors) + _carriage("first car", (*area[:2], -2, 40), *colors)
    front = _panes(area, ("bogie", _DARK, (10, 90, 90, 120))) + _face(area, nose, colors[1], colors[0])
    front += _panes(area, ("post", nose, (46, 18, 54, 60)), ("coupling", _DARK, (38, 80, 62, 106)))
    return _turned(front, side, rng.uniform(-42, -20), rng.uniform(1.2, 2.2))


def _carriage(name: str, area: Rect, paint: Color, glass: Color, trim: Color) -> list[Part]:
    """Wall of one carriage with a stripe and a row of windows, on bogies."""
    return _panes(area, (f"{name}.bogies", _DARK, (8, 90, 34, 120), (66, 90, 92, 120)),
                  (f"{name}.wall", paint, _FULL), ("~", trim, (0, 60, 100, 78)),
                  (f"{name}.windows", glass, *_bars(4, 16, 84, 14, 18, 50)))


def truck(rng: Rng) -> list[Part]:
    """Lorry with a box, a tank or a tipper behind its cab; from the side or three-quarter."""
    paint, glass, (top, r) = pick(rng, _PAINTS), pick(rng, _GLASSES), rng.uniform((-40, 16), (-30, 19))
    hood, edge = (24 if rng.random() < 0.3 else 0), top + 7  # with a hood the engine sits in front of the cab
    cab = _soft(6, (-100, 34), (-100, 2), (-94 + hood, -2), (-90 + hood, top), (-38, top), (-38, 34))
    pane = _soft(3, (-92 + hood, -2), (-85 + hood, edge), (-48, edge), (-48, -2))
    parts = [
        Part("chassis", box(-90, 22, 98, 36), _DARK), *_cargo(rng, pick(rng, [_WHITE, _WHITE, *_PAINTS])),
        Part("cab.body", cab, paint), _mark(box(-46, 2, -44, 30) + box(-56, 10, -48, 13), shade(paint, 0.5)),
        Part("cab.window", pane, glass), Part("light", box(-100, 8, -90, 20), _LAMP),
        Part("bumper", box(-103, 25, -86, 38), shade(_STEEL, 0.8)),
    ]
    parts += [part for k, x in enumerate((-70, 42, 78)) for part in _wheel(f"wheel {k}", x, 38, r)]
    if hood or rng.random() < 0.45:
        return [Part("exhaust", box(-43, top - 20, -34, 30), _STEEL), *parts] if hood else parts
    front = _face((-100, top, 100, 38), paint, glass, shade(paint, 0.8))
    return _turned(front, parts, rng.uniform(-55, -40), rng.uniform(0.2, 0.45))


def _cargo(rng: Rng, color: Color) -> list[Part]:
    """What the lorry carries: a tank, a tipper's heap, or a box with ribs or a sign on it."""
    load, dark = rng.integers(4), shade(color, 0.72)
    if load == 0:
        tank = Part("cargo.tank", box(-32, -40, 100, 26, 30), shade(_STEEL, 1.15))
        return [tank, _mark(box(8, -40, 14, 26) + box(54, -40, 60, 26), color)]
    if load == 1:
        heap = smooth((-30, -10), (0, -42), (40, -48), (80, -36), (98, -10))
        tray = _panes((-34, -24, 104, 24), ("cargo.tray", color, _FULL), ("~", dark, *_bars(5, 10, 90, 4)))
        return [Part("cargo.heap", heap, pick(rng, [_BRASS, _WOOD])), *tray]
    marks = (dark, *_bars(6, 10, 90, 1.6)) if load == 2 else (pick(rng, _PAINTS), (20, 30, 75, 60))
    return _panes((-32, rng.uniform(-74, -62), 100, 24), ("cargo.box", color, _FULL), ("~", *marks), radius=2)


def traffic_light(rng: Rng) -> list[Part]:
    """Three lamps in a dark upright case on a pole, one of them lit."""
    case, metal = pick(rng, [_TYRE, _DARK, _YELLOW, (0.15, 0.25, 0.2)], 0.03), shade(_STEEL, rng.uniform(0.3, 1))
    (w, foot, look), lit = rng.uniform((25, 75, 0), (31, 140, 1)), rng.integers(3)
    parts = [Part("pole.post", box(-7, 40, 7, foot), metal), Part("pole.foot", box(-15, foot - 10, 15, foot), _DARK)]
    if look < 0.35:
        parts += _panes((-w - 14, -110, w + 14, 60), ("board", _WHITE, _FULL), ("~", _TYRE, (6, 3, 94, 97)), radius=10)
    elif look < 0.7:  # seen a little from the side
        parts.append(Part("case.side", polygon((w, -93), (w + 14, -86), (w + 14, 38), (w, 45)), shade(case, 0.6)))
    parts.append(Part("case.front", _soft(8, (-w, -98), (w, -98), (w, 48), (-w, 48)), case))
    arch = smooth((-24, 2), (-16, -17), (0, -25), (16, -17), (24, 2), (10, -13), (-10, -13))[0]
    for k, (name, bright) in enumerate(_SIGNALS.items()):
        y, color = 47 * k - 72, bright if k == lit else shade(bright, 0.36)
        hood = Part(f"{name}.hood", (arch + np.float32([0, y]),), shade(case, 0.7))
        parts += [Part(f"{name}.lamp", ellipse(0, y, 19), color), hood]
    return parts


def fire_hydrant(rng: Rng) -> list[Part]:
    """Stout barrel with a domed bonnet, a nut on top, a cap on either side and one in front, and a flange."""
    paint = pick(rng, [_RED, _RED, _RED, _YELLOW, (0.2, 0.4, 0.7), _ORANGE], 0.04)
    cap = paint if rng.random() < 0.4 else pick(rng, [_STEEL, _WHITE, _YELLOW, _GREEN], 0.03)
    w, y, e, peak = rng.uniform((27, -15, 20, -90), (35, 0, 26, -80))
    dark, area, e = shade(paint, 0.78), (-w, -50, w, 95), e + w
    dome = smooth((-w - 2, -45), (-w * 0.85, -66), (0, peak), (w * 0.85, -66), (w + 2, -45), (0, -38))
    parts = [Part("bonnet.nut", box(-8, peak - 14, 8, peak + 10), shade(cap, 0.8))]
    for name, s in (("left outlet", -100), ("right outlet", 100)):
        parts += _panes((0, y - 17, s, y + 17), (f"{name}.nozzle", dark, (w * 0.8, 12, e, 88)),
                        (f"{name}.cap", cap, (e - 10, 0, e + 5, 100)))
    parts += _panes(area, ("barrel.body", paint, _FULL), ("~", shade(paint, 1.3), (12, 0, 25, 100)))
    parts += [_mark(box(w * 0.65, -50, w, 95), dark), Part("bonnet.dome", dome, cap if rng.random() < 0.5 else paint)]
    parts += _panes(area, ("collar", dark, (-12, 0, 112, 9)), ("barrel.ring", dark, (-12, 68, 112, 77)),
                    ("flange", shade(paint, 0.65), (-20, 89, 120, 100)))
    return [*parts, Part("front cap", ellipse(0, y, w * 0.66), cap), _mark(ellipse(0, y, w * 0.25), shade(cap, 0.6))]


def stop_sign(rng: Rng) -> list[Part]:
    """Red octagon with a white border on a pole; white bars stand for the letters, as pictures get mirrored."""
    red, metal = pick(rng, [_RED, (0.7, 0.08, 0.1)], 0.04), pick(rng, [_STEEL, _SILVER, _WOOD], 0.03)
    (foot, w), a = rng.uniform((90, 0.75), (160, 1)), np.deg2rad(np.arange(22.5, 360, 45))  # w < 1: seen from one side
    y, area, octagon = -40, (-50 * w, -58, 50 * w, -22), np.stack([np.cos(a) * w, np.sin(a)], 1)
    parts = [Part("pole.post", box(-7.5, y, 7.5, foot), metal), Part("pole.foot", box(-18, foot - 12, 18, foot), _DARK),
             Part("sign.border", polygon(*(octagon * 68 + [0, y])), _WHITE),
             Part("sign.face", polygon(*(octagon * 60 + [0, y])), red),
             *_panes(area, ("~", _WHITE, *_bars(4, 12, 88, 18)), radius=2)]
    plate = _panes(area, ("plate", red, (10, 230, 90, 285)), ("~", _WHITE, (20, 248, 80, 266)))
    return parts + plate if rng.random() < 0.4 else parts


def skateboard(rng: Rng) -> list[Part]:
    """Deck with raised ends on two axles: from the side, a little from above, or its painted underside."""
    deck, wheel = pick(rng, [_BRASS, *_PAINTS]), pick(rng, [_WHITE, (0.95, 0.8, 0.3), _RED, (0.3, 0.75, 0.6)])
    (kick, r, x, depth), view = rng.uniform((12, 12, 50, 20), (20, 15, 58, 32)), rng.integers(3)
    if view == 0:
        w, turn = rng.uniform((24, -80), (30, 80))  # leaning or standing
        stripe = polygon((-30, -w), (5, -w), (30, w), (-5, w)) + ellipse(-85, 0, 10)
        parts = [Part("deck", box(-100, -w, 100, w, w), deck), _mark(stripe, pick(rng, _PAINTS))]
        for k, x in enumerate((-55, 55)):
            parts += _panes((x - 14, -w, x + 14, w), (f"truck {k}.axle", _STEEL, (30, 0, 70, 100)),
                            ("~", _DARK, (35, 40, 65, 60)), (f"truck {k}.left", wheel, (10, 85, 90, 115)),
                            (f"truck {k}.right", wheel, (10, -15, 90, 15)))
        return [replace(p, contours=rotate(p.contours, turn)) for p in parts]
    top, parts = [(-100, -kick), (-78, 0), (0, 2), (78, 0), (100, -kick)], []
    if view == 1:  # the far wheels show under the deck, the grip tape on it
        parts = [Part("far wheel", ellipse(s + 12, 20 - depth * 0.3, r), shade(wheel, 0.7)) for s in (-x, x)]
        far = [(p + 0.14 * (100 - abs(p)) + 4, q - depth) for p, q in reversed(top)]
        parts.append(Part("deck.grip", _soft(16, *top, *far), pick(rng, [_DARK, _TYRE, (0.3, 0.3, 0.32)], 0.02)))
    parts += [Part("deck.edge", limb(top, 11), deck), _mark(limb(top, 3), shade(deck, 0.7))]
    for k, s in enumerate((-x, x)):
        axle = polygon((s - 16, 5), (s + 16, 5), (s + 6, 22), (s - 6, 22))
        parts += [Part(f"truck {k}.axle", axle, shade(_STEEL, 0.8)), Part(f"truck {k}.wheel", ellipse(s, 24, r), wheel),
                  _mark(ellipse(s, 24, r * 0.35), _DARK)]
    return parts


def _to_unit(draw: Callable[[Rng], list[Part]]) -> Callable[[Rng], list[Part]]:
    """The drawing function, from hundredths to the unit of `shapes`."""
    return lambda rng: [replace(p, contours=tuple(np.float32(c) / 100 for c in p.contours)) for p in draw(rng)]


_ALL = (aeroplane, bicycle, boat, bus, car, motorbike, train, truck, traffic_light, fire_hydrant, stop_sign, skateboard)
DRAWINGS: dict[str, Callable[[Rng], list[Part]]] = {d.__name__.replace("_", " "): _to_unit(d) for d in _ALL}
