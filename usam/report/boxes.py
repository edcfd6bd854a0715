"""What the diagrams are made of: boxes, pictures, layers and arrows at places in inches, from the lower left corner."""

import itertools
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path
from torch import Tensor, nn

from usam.method.head import MaskClassifier
from usam.report import figures

Area = tuple[float, float, float, float]  # left, bottom, width, height in inches
Edge = tuple[tuple | str, str, float]  # colour, line style, line width: what kind of part it is, without colour, too

WIDTH, MARGIN, FONT = 13.0, 0.15, 8.0  # inches, inches, points
FROZEN, TRAINED, RULE = (figures.BLUE, "-", 1.2), (figures.ORANGE, "--", 2.0), (figures.GREEN, ":", 1.5)
PLAIN = ("0.35", "-", 0.8)
KINDS = ((FROZEN, "frozen: nothing changes it"), (TRAINED, "trained here"), (RULE, "a rule: nothing to learn"))


def columns(*widths: float) -> list[tuple[float, float]]:
    """(left, width) of columns of these widths over the whole figure, with equal gaps between them."""
    gap = (WIDTH - 2 * MARGIN - sum(widths)) / (len(widths) - 1)
    return [(MARGIN + sum(widths[:n]) + n * gap, width) for n, width in enumerate(widths)]


def wide(image: np.ndarray, high: float, most: float) -> float:
    """How wide an image (H, W, 3) is drawn at this height; strips get room for their title, or are drawn lower."""
    return min(max(high * image.shape[1] / image.shape[0], 0.75), most)


def axes(figure: Figure, area: Area, title: str = "", below: bool = False) -> Axes:
    """Empty axes; the title stands above or below the area, whatever the shape of the picture that comes into it."""
    (left, bottom, width, height), (w, h) = area, figure.get_size_inches()
    new = figure.add_axes((left / w, bottom / h, width / w, height / h))
    new.set(xticks=[], yticks=[])
    new.grid(False)
    y, side = (bottom - 0.05, "top") if below else (bottom + height + 0.05, "bottom")
    figure.text((left + width / 2) / w, y / h, title, fontsize=FONT, ha="center", va=side)
    return new


def picture(figure: Figure, area: Area, title: str, image: np.ndarray, below: bool = False) -> Axes:
    """An image, (H, W, 3)."""
    new = axes(figure, area, title, below)
    show(new, image)
    return new


def show(part: Axes, image: np.ndarray) -> None:
    """As `figures.show`, and an image that has more pixels than there is room for is averaged, not thinned out."""
    figures.show(part, image)
    _smooth(part)


def labelled(
    figure: Figure, area: Area, title: str, image: np.ndarray, semantic: np.ndarray, names: Sequence[str]
) -> Axes:
    """An image with its labelled masks, as `figures.annotate` draws them."""
    new = axes(figure, area, title)
    figures.annotate(new, image, semantic, names)
    _smooth(new)
    return new


def heat(
    figure: Figure, area: Area, title: str, values: Tensor | np.ndarray, shown: Tensor | np.ndarray | None = None
) -> Axes:
    """Numbers (m, ...) as m rows, all or those (m, ...) that are `shown`; the lowest and highest hundredth share a
    colour: outliers hide nothing."""
    new, values = axes(figure, area, title), np.asarray(values).reshape(len(values), -1)
    low, high = np.quantile(values, (0.01, 0.99))
    cells = values if shown is None else np.ma.array(values, mask=~np.asarray(shown))
    new.imshow(cells, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    return new


def box(figure: Figure, area: Area, text: str, edge: Edge, title: str = "", size: float = FONT) -> Axes:
    """Text of this size in a frame."""
    new = axes(figure, area, title)
    new.set_facecolor("white" if edge is PLAIN else (*edge[0], 0.12))
    frame(new, edge)
    new.text(0.5, 0.5, text, fontsize=size, ha="center", va="center", transform=new.transAxes, linespacing=1.35)
    return new


def frame(part: Axes, edge: Edge) -> None:
    """Mark what is drawn in `part` as of this kind."""
    color, style, width = edge
    part.spines[:].set(visible=True, color=color, linestyle=style, linewidth=width)


def network(figure: Figure, area: Area, title: str, model: MaskClassifier, edge: Edge) -> Axes:
    """The widths of a head's layers, as numbers and as the height of bars (logarithmic)."""
    new = box(figure, area, "", edge, title)
    linear = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
    new.set(xlim=(-0.8, len(sizes) - 0.2), ylim=(-1.2, 1.2))
    for n, size in enumerate(sizes):
        high = 0.4 + 0.6 * math.log(size) / math.log(max(sizes))
        new.add_patch(Rectangle((n - 0.35, -high), 0.7, 2 * high, facecolor="white", edgecolor=edge[0]))
        new.text(n, 0, str(size), fontsize=FONT, rotation=90, ha="center", va="center")
    return new


def arrow(figure: Figure, a: Axes, b: Axes, edge: Edge = PLAIN) -> None:
    """A straight arrow from `a` to `b`, level or upright, in the middle of the side that the two share."""
    one, other = _place(a), _place(b)
    x, y = _shared(one.intervalx, other.intervalx), _shared(one.intervaly, other.intervaly)
    if y is not None:
        ends = ((one.x1, y), (other.x0, y)) if one.x1 <= other.x0 else ((one.x0, y), (other.x1, y))
    else:
        ends = ((x, one.y1), (x, other.y0)) if one.y1 <= other.y0 else ((x, one.y0), (x, other.y1))
    _line(figure, ends, edge)


def chain(figure: Figure, *parts: Axes) -> None:
    """Arrows from each part to the next."""
    for a, b in itertools.pairwise(parts):
        arrow(figure, a, b)


def below(figure: Figure, a: Axes, b: Axes, deep: float, into: float, edge: Edge = PLAIN) -> None:
    """An arrow from the middle of `a` to the share `into` of `b`'s width, `deep` inches below the lower of the two."""
    one, other = _place(a), _place(b)
    y = min(one.y0, other.y0) - deep / figure.get_size_inches()[1]
    x, to = (one.x0 + one.x1) / 2, other.x0 + into * other.width
    _line(figure, ((x, one.y0), (x, y), (to, y), (to, other.y0)), edge)


def header(figure: Figure, y: float, text: str) -> None:
    """The title of a row, at the left."""
    w, h = figure.get_size_inches()
    figure.text(MARGIN / w, y / h, text, fontsize=9.5, fontweight="bold", va="bottom")


def legend(figure: Figure) -> None:
    """What the frames mean, at the lower edge."""
    frames = [
        Rectangle((0, 0), 1, 1, facecolor=(*color, 0.12), edgecolor=color, linestyle=style, linewidth=width)
        for (color, style, width), _ in KINDS
    ]
    style = {"fontsize": FONT, "frameon": False, "handlelength": 3.2, "handleheight": 1.4, "columnspacing": 4}
    figure.legend(frames, [text for _, text in KINDS], loc="lower center", ncols=3, bbox_to_anchor=(0.5, 0), **style)


def listed(names: Sequence[str], width: int, lines: int) -> str:
    """Names in up to `lines` lines of `width` letters; "... and n more" stands for those that have no room."""
    whole = [cut(name, width - 1) for name in names]
    for shown in range(len(whole), 0, -1):
        rest = len(whole) - shown
        parts = [*whole[:shown], *([f"... and {rest} more"] if rest else [])]
        text = textwrap.wrap(", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts), width)
        if len(text) <= lines:
            break
    return "\n".join(text)


def cut(name: str, width: int) -> str:
    """A name of up to `width` letters."""
    return name if len(name) <= width else f"{name[: width - 1]}…"


def shape(values: Tensor | np.ndarray) -> str:
    """As in "100 × 1024"."""
    return " × ".join(map(str, values.shape))


def principal(features: Tensor) -> np.ndarray:
    """(h, w, 3) in [0, 1]: the three strongest directions of features (C, h, w) as red, green and blue."""
    flat = features.flatten(1).T
    flat = flat - flat.mean(0)
    parts = (flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].T).numpy()
    low, high = np.quantile(parts, (0.02, 0.98), axis=0)
    return ((parts - low) / np.maximum(high - low, 1e-9)).clip(0, 1).reshape(*features.shape[1:], 3)


def _smooth(part: Axes) -> None:
    drawn = part.images[0]
    if drawn.get_size()[0] > part.get_window_extent().height:
        drawn.set_interpolation("antialiased")


def _place(part: Axes):
    part.apply_aspect()  # where the picture is, not where it might have been
    return part.get_position()


def _shared(one: np.ndarray, other: np.ndarray) -> float | None:
    """The middle of what two intervals share, None if they share nothing."""
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low + high) / 2 if low < high else None


def _line(figure: Figure, points: Sequence[tuple[float, float]], edge: Edge) -> None:
    """A polyline in shares of the figure with a head at its end, a hair away from what it connects."""
    (color, style, width), size = edge, figure.get_size_inches()
    points = np.array(points) * size
    for end, before in ((0, 1), (-1, -2)):
        step = points[before] - points[end]
        points[end] += 0.03 * step / max(np.linalg.norm(step), 1e-9)
    look = {"arrowstyle": "-|>", "mutation_scale": 9, "color": color, "linestyle": style, "linewidth": width}
    figure.add_artist(FancyArrowPatch(path=Path(points / size), transform=figure.transFigure, **look))
