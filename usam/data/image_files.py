"""Image files: where they lie, how they are read and written, and the functions that a profile names."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from usam.data.class_names import folder_name
from usam.errors import UserError
from usam.files import write_atomically

Image.init()
# formats that Pillow decodes by itself: for some others it starts a program (Ghostscript) on a stranger's file
FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"} & set(Image.OPEN)

STRIP = 256  # rows


def endings() -> set[str]:
    """Of files of these formats: ".jpg" and others, in lower case."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}


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
    """The first frame in RGB, decoded to its end, upright as its camera noted, 12 or 16 bits scaled down, and white
    where it is transparent.

    Raises:
        ValueError: pixels of 32 bits: nobody knows which value is white.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("F", "I"):
        raise ValueError("pixels of 32 bits, whose white is not known: store it with 8 or 16 bits")
    if upright.mode.startswith("I;16"):
        values = np.asarray(upright)
        upright = Image.fromarray((values >> (8 if values.max() >= 2**12 else 4)).astype(np.uint8))
    return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparency on a white ground, in RGB; in strips, as the whole would be in memory four times."""
    flat = Image.new("RGB", image.size, "white")
    for top in range(0, image.height, STRIP):
        part = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return flat


def contained(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image as large as fits the box; a strip has a row of pixels at least."""
    scale = min(width / image.width, height / image.height)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


@contextmanager
def opened(file: str | Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow finds wrong with it in the block becomes one line.

    Raises:
        UserError: the file is missing or not an image of `FORMATS`.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would wait for a writer, perhaps for ever
            raise OSError("not a regular file but a pipe, a socket or a device")
        with Image.open(file, formats=sorted(FORMATS)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"image {file} cannot be read ({reason}): replace it, or remove it and run again") from error
