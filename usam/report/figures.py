"""Pictures for the notebooks: images, masks and labels. Each saved figure says on its face which world it is from."""

import io
from collections.abc import Sequence

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
from PIL import Image, PngImagePlugin

from usam import machine, paths
from usam.config import Profile
from usam.files import write_atomically
from usam.method.masks import MaskEmbeddings, rle_to_masks, to_image_size

BLUE, ORANGE, GREEN, RED, PURPLE = (sns.color_palette("colorblind")[i] for i in (0, 1, 2, 3, 4))


def style() -> None:
    """One look for all notebooks."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 90, "savefig.dpi": 100, "axes.titlesize": "medium", "image.interpolation": "nearest"}
    )


def class_colors(count: int) -> np.ndarray:
    """(count, 3) float RGB: hues around the circle, every other one darker, so that neighbours differ in lightness too.

    Twenty colours cannot all be told apart, by anyone: `annotate` writes the names beside them.
    """
    hues = np.array(sns.husl_palette(count, l=0.65, s=0.95))
    hues[1::2] *= 0.6
    return hues


def overlay(image: np.ndarray, masks: Sequence[np.ndarray], colors: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """Masks over a greyed image, the later ones on top, with a light edge.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) bool each.
        colors: (n, 3) float RGB, one a mask.
        alpha: opacity of the masks.

    Returns:
        (H, W, 3) uint8 RGB.
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
    colors: np.ndarray,
    rows: Sequence[int] | None = None,
    alpha: float = 0.55,
) -> np.ndarray:
    """SAM's masks over their image, large ones below, so that parts stay visible on their wholes.

    Args:
        image: (H, W, 3) uint8 RGB.
        embeddings: of the image.
        colors: (n, 3) float RGB, one a mask that is drawn.
        rows: which n masks, all d by default.
        alpha: opacity.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    chosen = embeddings.masks if rows is None else [embeddings.masks[j] for j in rows]
    masks = to_image_size(rle_to_masks(chosen), embeddings.extent, embeddings.image_size)
    order = np.argsort(-masks.sum((1, 2)), kind="stable")
    return overlay(image, masks[order], colors[order], alpha)


def annotate(axes: Axes, image: np.ndarray, semantic: np.ndarray, class_names: Sequence[str], title: str = "") -> None:
    """Draw an image with its semantic map (0 background, j + 1 class j, 255 void), each class's name on its region."""
    colors = class_colors(len(class_names))
    present = [j for j in np.unique(semantic) if j not in (0, 255)]
    masks = [semantic == j for j in present]
    show(axes, overlay(image, masks, colors[[j - 1 for j in present]]) if present else image, title)
    for j, mask in zip(present, masks, strict=True):
        x, y = middle(mask)
        box = {"facecolor": "black", "alpha": 0.6, "pad": 1, "edgecolor": "none"}
        side = ("left", "center", "right")[int(np.digitize(x / mask.shape[1], (0.15, 0.85)))]  # names stay on the image
        axes.text(x, y, class_names[j - 1], color="white", fontsize=7, ha=side, va="center", bbox=box, clip_on=True)


def middle(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a bool mask (H, W) that is farthest from the mask's border: surely inside."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return int(x), int(y)


def show(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """An image without ticks or grid."""
    axes.imshow(image, aspect="equal")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def row_size(image: np.ndarray, columns: int, width: float = 12.5) -> tuple[float, float]:
    """(width, height) in inches of a figure that shows `columns` pictures of this image's shape in one row."""
    return width, width / columns * image.shape[0] / image.shape[1] + 0.5


def curves(axes: Axes, tables: Sequence[pd.DataFrame], x: str, y: str, color: tuple, label: str) -> None:
    """Column `y` over column `x`, the same run with several seeds: their mean as a line, their range as a band."""
    values = pd.concat([table.set_index(x)[y] for table in tables], axis=1)
    axes.plot(values.index, values.mean(axis=1), color=color, label=label)
    axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=pd.api.types.is_integer_dtype(values.index)))


def sensitivity(axes: Axes, swept: pd.DataFrame) -> None:
    """Both scores over the values of one setting, as `ablation.sweep` gives them, with 95% intervals."""
    for score, color, name in (("miou", BLUE, "mIoU"), ("map50", ORANGE, "mAP50")):
        rows = swept[swept["score"] == score].reset_index(drop=True)
        middle, low, high = (100 * rows[column] for column in ("mean", "low", "high"))
        axes.errorbar(rows.index, middle, (middle - low, high - middle), fmt="o-", color=color, capsize=3, label=name)
        own = rows.index[rows["default"]]
        axes.plot(own, middle[own], "*", color=color, markersize=14, label=f"{name}, the profile's value")
    axes.set_xticks(range(len(rows)), rows["value"], fontsize=8)
    axes.set(title=swept["key"].iloc[0])
    axes.margins(x=0.12)


def legend_above(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """One legend for all panels, above them, where it hides no data; entries are those of `axes`. Call it last."""
    figure.tight_layout()
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)


def sheet(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int, size: float = 1.3, heading: str = ""
) -> Figure:
    """A contact sheet: images of any sizes with a line below each.

    Args:
        images: (H, W, 3) uint8 RGB each.
        titles: one an image.
        columns: images a row.
        size: inches a cell.
        heading: above all.
    """
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + 0.15)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        show(axis, image)
        axis.set_title(title, fontsize=7, pad=2)
    figure.suptitle(heading, y=1.0, va="bottom")  # above the cells, however many rows there are
    figure.tight_layout()
    return figure


def face(profile: Profile) -> str:
    """The line that every figure and table carries: which world, which commit."""
    return f"{profile.world} · profile {profile.name} · commit {machine.commit()}"


def save(figure: Figure, profile: Profile, name: str, caption: str, pdf: bool = False) -> None:
    """Write `figure` as results/<profile>/figures/<name>.png with the world's line below it, and show it in a notebook.

    Args:
        figure: is closed.
        profile: of the run.
        name: of the file.
        caption: what is to be seen, for those who cannot see it; it stands in the file, too.
        pdf: write <name>.pdf as well, for print.
    """
    figure.text(0.995, -0.01, face(profile), ha="right", va="top", fontsize=7, color="0.35")
    file = paths.results(profile.name) / "figures" / f"{name}.png"
    about = f"{caption} ({face(profile)})"
    picture = _palette_png(_drawn(figure, format="png"), about)
    write_atomically(file, picture)
    if pdf:
        write_atomically(file.with_suffix(".pdf"), _drawn(figure, format="pdf", metadata={"CreationDate": None}))
    plt.close(figure)
    if get_ipython() is not None:  # else there is nobody who could look
        display({"image/png": picture}, raw=True, metadata={"image/png": {"alt": caption}})


def _drawn(figure: Figure, **options: object) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, bbox_inches="tight", **options)
    return content.getvalue()


def _palette_png(picture: bytes, about: str) -> bytes:
    """The same picture in 256 colours of its own, about a quarter of the size: executed notebooks are downloaded."""
    text, content = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_itxt("Description", about)
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(content, "PNG", optimize=True, pnginfo=text)
    return content.getvalue()
