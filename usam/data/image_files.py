"""Image files: where they lie, how they are read and written, and the functions that a profile names."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from usam.data.class_names import folder_name
from usam.errors import UserError
from usam.files import write_atomically


def image_file(class_name: str, index: int) -> str:
    """Where image `index` of a class lies in its source's folder."""
    return f"{folder_name(class_name)}/{index:04d}.png"


def save(file: Path, image: np.ndarray, about: dict[str, object]) -> None:
    """Write an image (H, W, 3) uint8 RGB as PNG, whole or not at all; `about` goes into its text."""
    text = PngImagePlugin.PngInfo()
    for key, value in about.items():
        text.add_text(key, str(value))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=text)
    write_atomically(file, buffer.getvalue())


def facts(file: Path) -> dict[str, str]:
    """What `save` wrote into the text of an image."""
    with opened(file) as image:
        return {k: v for k, v in image.info.items() if isinstance(v, str)}


def read(file: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB; see `rgb`.

    Raises:
        UserError: the file is missing or not an image.
    """
    with opened(file) as image:
        return np.asarray(rgb(image))


def rgb(image: Image.Image) -> Image.Image:
    """The first frame in RGB, decoded to its end, upright as its camera noted, 16-bit values scaled down, and white
    where it is transparent.

    Raises:
        ValueError: floating-point pixels: nobody knows what is white.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("floating-point pixels: store it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        upright = Image.fromarray((np.asarray(upright).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return upright.convert("RGB")


def contained(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image as large as fits the box; a strip has a row of pixels at least."""
    scale = min(width / image.width, height / image.height)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


@contextmanager
def opened(file: str | Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow finds wrong with it in the block becomes one line.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"image {file} cannot be read ({reason}): replace it, or remove it and run again") from error
