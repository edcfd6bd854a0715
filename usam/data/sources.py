"""Sources of training images (paper 3.4): what one is, and the settings of those that `usam.registry` lists."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, Field

from usam.config import Count, Pause, Precision, Seconds, Seed, Settings


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


class GenerateConfig(Settings):
    """A text-to-image model and how it draws (paper 3.4; 4: Stable Diffusion v1-4)."""

    model: str
    """a folder in the format of diffusers (relative paths start at the repository), or owner/name on the Hugging Face
    hub."""
    steps: Count = 50
    """of the scheduler."""
    guidance: Annotated[float, Field(ge=0)] = 7.5
    """scale of classifier-free guidance; up to 1 is none."""
    size: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    """side of the images in pixels, a multiple of 8; the model's own by default."""
    batch: Count = 8
    """images drawn at once, all of one class; best a divisor of `per_class`."""
    seed: Seed = 0
    """of the run; with class and index it decides an image."""
    precision: Precision = "auto"
    """arithmetic of the model."""
    compile: bool = False
    """let torch.compile fuse the model's steps: minutes at the start, faster after; it needs a C compiler."""


class CrawlConfig(Settings):
    """Where web images come from and which are accepted (paper 3.4)."""

    source: str = "openverse"
    """one of "openverse", a CSV file (columns class, url; if you have them page, creator, licence), or a folder with
    one sub-folder a class, blanks or underscores in its name; relative paths start at the repository."""
    api: Annotated[str, Field(pattern="^https?://")] = "https://api.openverse.org/v1/"
    """Openverse's address; the environment variable OPENVERSE_TOKEN is sent to it, and to nobody else."""
    allow_hosts: list[str] = Field(default_factory=list)
    """host names that may have private or loopback addresses."""
    smallest_side: Count = 64
    """of an image, in pixels."""
    largest_bytes: Count = 20_000_000
    """of an image."""
    largest_pixels: Annotated[int, Field(ge=1, le=89_478_485)] = 50_000_000
    """of an image, counted before anything is decoded (Pillow has a limit of its own at 89 million)."""
    timeout: Seconds = 20
    """seconds to wait for a connection, and for the next bytes."""
    seconds_per_image: Seconds = 60
    """of one image's transfer, attempts and redirects together, pauses not counted."""
    seconds_between_requests: Pause = 1
    """to the same host."""
    seconds_between_api_requests: Pause = 3
    """to `api`'s host (anonymous users have 20 requests a minute, 200 a day)."""
    candidates_per_image: Count = 6
    """after so many candidates for each image wanted, a class ends with what it has."""
    server: str | None = None
    """a server to crawl instead of the world: "module:function", where `function(class_names, port)` is a context
    manager that answers at `api` while it is open."""
