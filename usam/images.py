"""Training images from class names alone (paper 3.4): a folder a class, and a list of what was made how."""

import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from usam.classes import check_names, folder_name, prompt
from usam.errors import UserError
from usam.profiles import SourceConfig
from usam.runs import alone, write_atomically

Maker = Callable[[str, int, int], np.ndarray]


def imported(name: str) -> Callable:
    """The function that a profile names as "module:function".

    Raises:
        UserError: it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"'{name}' cannot be imported as module:function ({error}): mend it in the profile") from error
    if not callable(found):
        raise UserError(f"'{name}' is no function: mend it in the profile")
    return found


def sources_of(name: str) -> tuple[Path, ...]:
    """All source files of the package in which "module:function" lies: any of them may change what it makes."""
    imported(name)
    return tuple(sorted(Path(importlib.import_module(name.partition(":")[0]).__file__).parent.glob("*.py")))


def image_file(class_name: str, index: int) -> str:
    """Where image `index` of a class lies in its source's folder."""
    return f"{folder_name(class_name)}/{index:04d}.png"


def collect(folder: Path, class_names: list[str], source: SourceConfig, seed: int = 0) -> pd.DataFrame:
    """Make the images that `folder` does not hold yet; what is there stays.

    Args:
        folder: of this source, with these settings.
        class_names: what the user asks for.
        source: maker and number of images a class.
        seed: of the run; with class and index it decides an image.

    Returns:
        One row an image: class, index, prompt, file (relative to the folder).
    """
    check_names(class_names)
    make: Maker = imported(source.maker)
    wanted = [(name, k) for name in class_names for k in range(source.per_class)]
    with alone(folder):
        missing = [(name, k) for name, k in wanted if not (folder / image_file(name, k)).exists()]
        for name, k in tqdm(missing, desc="images", unit="image", disable=not missing):
            about = {"prompt": prompt(name), "seed": seed, "maker": source.maker}
            save(folder / image_file(name, k), make(name, k, seed), about)
    rows = [(name, k, prompt(name), image_file(name, k)) for name, k in wanted]
    return pd.DataFrame(rows, columns=["class", "index", "prompt", "file"])


def save(file: Path, image: np.ndarray, about: dict[str, object]) -> None:
    """Write an image (H, W, 3) uint8 RGB as PNG, whole or not at all; `about` goes into its text."""
    text = PngImagePlugin.PngInfo()
    for key, value in about.items():
        text.add_text(key, str(value))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=text)
    write_atomically(file, buffer.getvalue())


def facts(file: Path) -> dict[str, str]:
    """What `save` wrote into the text of an image.

    Raises:
        UserError: the file is missing or not an image.
    """
    with _opened(file) as image:
        return {k: v for k, v in image.info.items() if isinstance(v, str)}


def read(file: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, upright as its camera noted, 16-bit values scaled down.

    Raises:
        UserError: the file is missing or not an image.
    """
    with _opened(file) as image:
        return np.asarray(rgb(image))


def rgb(image: Image.Image) -> Image.Image:
    """The first frame in RGB, decoded to its end, upright as its camera noted, 16-bit values scaled down."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")


@contextmanager
def _opened(file: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"image {file} cannot be read ({error}): delete it and run notebook 01_images again") from error
