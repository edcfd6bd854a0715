"""Figures of the notebooks: images, masks, labels and curves. Each saved figure names the world it comes from."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from usam import machine, paths
from usam.files import write_atomically
from usam.method.masks import MaskEmbeddings, rle_to_masks, to_image_size
from usam.profiles import Profile

BLUE, ORANGE, GREEN, RED, PURPLE = (sns.color_palette("colorblind")[i] for i in (0, 1, 2, 3, 4))


def style() -> None:
    """Set the style that all notebooks share; `save` does not depend on it."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 90, "axes.titlesize": "medium", "image.interpolation": "nearest"})


def class_colors(count: int) -> np.ndarray:
    """Return (count, 3) float RGB: evenly spaced hues, every other one darker so that neighbours differ in lightness.

    Nobody can tell twenty colours apart: where few classes are present, use `present_colors`.
    """
    hues = np.array(sns.husl_palette(count, l=0.65, s=0.95))
    hues[1::2] *= 0.6
    return hues


def present_colors(*values: np.ndarray) -> dict[int, np.ndarray]:
    """Return a colour, (3,) float RGB, for each class that is present in any of some semantic maps of an image.

    The maps hold 0 for background, j + 1 for class j and 255 for void; only the classes get colours. Nine are
    colour-blind safe; further classes get darker ones.
    """
    present = sorted(set(np.concatenate([np.unique(some) for some in values]).tolist()) - {0, 255})
    palette = [color for color in np.array(sns.color_palette("colorblind")) if np.ptp(color) > 0]  # without the grey
    return {j: palette[n % len(palette)] * 0.55 ** (n // len(palette)) for n, j in enumerate(present)}


def overlay(image: np.ndarray, masks: Sequence[np.ndarray], colors: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """Draw (H, W) bool masks over a greyed (H, W, 3) uint8 RGB image, the later ones on top, with light edges.

    `colors` are (n, 3) float RGB in [0, 1], one per mask; `alpha` in [0, 1] is the opacity. The result is uint8 RGB.
    """
    image = image.astype(np.float32)
    picture = 0.6 * image.mean(2, keepdims=True) + 0.4 * image
    for mask, color in zip(masks, colors, strict=True):
        picture[mask] = (1 - alpha) * picture[mask] + alpha * 255 * np.asarray(color, np.float32)
        edge = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        picture[edge] = 0.3 * picture[edge] + 0.7 * 255
    return picture.astype(np.uint8)


def sam_masks(
    image: np.ndarray,
    embeddings: MaskEmbeddings,
    colors: np.ndarray | None = None,
    rows: Sequence[int] | None = None,
    alpha: float = 0.55,
) -> np.ndarray:
    """Draw SAM's masks over their (H, W, 3) uint8 image as in `overlay`, small masks on top of large ones.

    `rows` are the indices of the n masks to draw, all d by default; `colors` are random by default, always the same.
    """
    chosen = embeddings.masks if rows is None else [embeddings.masks[j] for j in rows]
    masks = to_image_size(rle_to_masks(chosen), embeddings.extent, embeddings.image_size)
    colors = np.random.default_rng(0).random((len(masks), 3)) if colors is None else colors
    order = np.argsort(-masks.sum((1, 2)), kind="stable")
    return overlay(image, masks[order], colors[order], alpha)


def annotate(
    axes: Axes,
    image: np.ndarray,
    semantic: np.ndarray,
    class_names: Sequence[str],
    title: str = "",
    colors: Mapping[int, np.ndarray] | None = None,
) -> None:
    """Draw an image and its (H, W) semantic map (0 background, j + 1 class j, 255 void) with the class names.

    `colors` are those of `present_colors` for several maps beside each other; by default, for this map alone.
    """
    colors = present_colors(semantic) if colors is None else colors
    present = [int(j) for j in np.unique(semantic) if j not in (0, 255)]
    masks = [semantic == j for j in present]
    show(axes, overlay(image, masks, np.array([colors[j] for j in present])) if present else image, title)
    write_on(axes, semantic.shape, [middle(mask) for mask in masks], [class_names[j - 1] for j in present])


def write_on(axes: Axes, shape: tuple[int, int], places: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write texts at (x, y) places of an image of an (H, W) shape, moved up or down where they would hide each other.

    Their sizes are estimated from that of the axes as they are now.
    """
    (height, width), frame = shape, axes.get_window_extent()
    points = 72 / axes.figure.dpi * min(frame.width / width, frame.height / height)  # of one of the image's pixels
    line, letter = 12 / points, 4.2 / points
    box = {"facecolor": "black", "alpha": 0.6, "pad": 1, "edgecolor": "none"}
    taken: list[tuple[float, float, float]] = []
    for (x, y), text in sorted(zip(places, texts, strict=True), key=lambda one: one[0][1]):
        half = min((len(text) / 2 + 0.5) * letter, width / 2)  # of the text's width
        x, y = np.clip(x, half, width - half), np.clip(y, line / 2, max(height - line / 2, line / 2))
        moves = sorted(np.arange(-8, 9) * line / 2, key=abs)
        free = (
            y + move
            for move in moves
            if 0 <= y + move <= height
            and not any(abs(x - a) < half + b and abs(y + move - c) < line for a, b, c in taken)
        )
        y = next(free, y)
        taken.append((x, half, y))
        axes.text(x, y, text, color="white", fontsize=7, ha="center", va="center", bbox=box, clip_on=True)


def middle(mask: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of the pixel of an (H, W) bool mask that is farthest from its border: always inside the mask."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return int(x), int(y)


def show(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Draw an (H, W, 3) image without ticks or grid."""
    axes.imshow(image, aspect="equal")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def row_size(image: np.ndarray, columns: int, width: float = 12.5) -> tuple[float, float]:
    """Return (width, height) in inches of a figure with `columns` images of this shape in one row."""
    return width, width / columns * image.shape[0] / image.shape[1] + 0.5


def curves(axes: Axes, tables: Sequence[pd.DataFrame], x: str, y: str, color: tuple, label: str) -> None:
    """Plot column `y` over `x` of tables that differ by the seed: the mean as a line, the range as a band."""
    values = pd.concat([table.set_index(x)[y] for table in tables], axis=1)
    axes.plot(values.index, values.mean(axis=1), color=color, label=label)
    axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=pd.api.types.is_integer_dtype(values.index)))


def sensitivity(axes: Axes, swept: pd.DataFrame) -> None:
    """Plot both scores over the values of one setting, a result of `sweeps.sweep`, with 95% intervals."""
    for score, color, name in (("miou", BLUE, "mIoU"), ("map50", ORANGE, "mAP50")):
        rows = swept[swept["score"] == score].reset_index(drop=True)
        middle, low, high = (100 * rows[column] for column in ("mean", "low", "high"))
        axes.errorbar(rows.index, middle, (middle - low, high - middle), fmt="o-", color=color, capsize=3, label=name)
        own = rows.index[rows["default"]]
        axes.plot(own, middle[own], "*", color=color, markersize=14, label=f"{name}, the profile's value")
    axes.set_xticks(range(len(rows)), rows["value"], fontsize=8)
    axes.set(title=swept["key"].iloc[0])
    axes.margins(x=0.12)


def legend_above(figure: Figure, axes: Axes) -> None:
    """Put one legend with the entries of `axes` above all panels, where it hides no data. Call it last."""
    figure.tight_layout()
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)


def sheet(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, heading: str) -> Figure:
    """Draw (H, W, 3) uint8 images of any size in a grid, each with a title."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.3 * columns, 1.45 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        show(axis, image)
        axis.set_title(title, fontsize=7, pad=2)
    figure.tight_layout()
    figure.suptitle(heading, y=1.0, va="bottom")  # above the cells, however many rows there are
    return figure


def save(figure: Figure, profile: Profile, name: str, caption: str, pdf: bool = False) -> None:
    """Write `figure`, stamped with its world, to results/<profile>/figures/<name>.png; show it in a notebook; close it.

    `caption` tells readers who cannot see it what it shows; the PNG stores it as its "Description". The PNG has true
    colours (256 would change photographs and colour maps). `pdf` also writes <name>.pdf, for print, with TrueType text.
    """
    stamp = f"{profile.world} · profile {profile.name} · commit {machine.commit()}"
    figure.text(0.995, -0.01, stamp, ha="right", va="top", fontsize=7, color="0.35")
    file = paths.results(profile.name) / "figures" / f"{name}.png"
    about = {"Description": f"{caption} ({stamp})"}
    png = _file_content(figure, format="png", metadata=about, pil_kwargs={"optimize": True})
    write_atomically(file, png)
    if pdf:
        write_atomically(file.with_suffix(".pdf"), _file_content(figure, format="pdf", metadata={"CreationDate": None}))
    plt.close(figure)
    if get_ipython() is not None:
        display({"image/png": png}, raw=True, metadata={"image/png": {"alt": caption}})


def _file_content(figure: Figure, **options: Any) -> bytes:
    content = io.BytesIO()
    with plt.rc_context({"pdf.fonttype": 42, "savefig.dpi": 100}):
        figure.savefig(content, bbox_inches="tight", **options)
    return content.getvalue()
