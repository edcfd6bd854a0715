"""What a source of training images is (paper 3.4); `usam.registry.IMAGE_SOURCES` lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel


@dataclass(frozen=True)
class ImageSource:
    """A way to get images for class names.

    Attributes:
        config: its settings in a profile.
        words: what it is, for figures.
        make: (folder, class names, settings, images a class) -> fills the folder with what is missing, and returns two
            tables. The first has one row an image: class, index, prompt, file (relative to the folder), and what the
            source knows beside; the second one row an image that was thrown away: class, reason.
        decides: settings -> all that decides the images, as keyword arguments of `usam.pipeline.cache.key`.
        found: a CSV file of the folder, with a column "class", that lists what was found, where that does not follow
            from the settings.
        model: settings -> the text-to-image model that it loads, a folder or a name on the Hugging Face hub.
    """

    config: type[BaseModel]
    words: str
    make: Callable[[Path, list[str], Any, int], tuple[pd.DataFrame, pd.DataFrame]]
    decides: Callable[[Any], dict[str, Any]]
    found: str | None = None
    model: Callable[[Any], str | None] = lambda _settings: None
