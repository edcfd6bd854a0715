"""Images for class names from a text-to-image model (paper 3.4), with the prompt "a photo of a {c}".

An image depends only on the run's seed, its class, its index and the settings. Images that the model's safety checker
blacked out, that overflowed or that show nothing are drawn again with the next seed, and each file records the reasons.
"""

import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from usam import machine
from usam.data import huggingface, image_files
from usam.data.class_names import check_names, prompt
from usam.data.sources import GenerateConfig, ImageSource
from usam.errors import UserError
from usam.files import locked

ATTEMPTS = 10  # to draw an image, before the run ends with an error
FLAT = 0.02  # standard deviation over the pixels, of values in [0, 1], below which an image shows nothing

Draw = Callable[[str, list[int]], tuple[np.ndarray, list[bool]]]


def generate(
    folder: Path, class_names: list[str], config: GenerateConfig, per_class: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw the images that are missing in `folder`.

    The images of a class are drawn in complete blocks of `config.batch`, each with the same indices in every run
    (images beyond `per_class` are not saved). So a run writes the same bytes after a stop, with classes in parts or in
    another order, and with a larger `per_class` later.

    Args:
        folder: for this model with these settings.
        class_names: letters, digits, blanks, "-" and "_", in English, which the models read.
        config: the model and how it draws.
        per_class: images of a class (paper: 200).

    Returns:
        One row for each image: class, index, prompt, file (relative to `folder`); and one for each that was rejected,
        read from the files of those that took their place: class, reason.

    Raises:
        UserError: a class name that is no folder name, a model that cannot be loaded, a full disk, a model that returns
            nothing usable in `ATTEMPTS` attempts.
    """
    check_names(class_names)
    rows = [(name, k, prompt(name), image_files.image_file(name, k)) for name in class_names for k in range(per_class)]
    with locked(folder):
        missing = {(name, k) for name, k, _, file in rows if not (folder / file).exists()}
        draw = pipeline(config) if missing else None
        progress = dict(initial=len(rows) - len(missing), desc="generated", unit="image", disable=not missing)
        with tqdm(total=len(rows), **progress) as bar:
            for name in class_names:
                for start in range(0, per_class, config.batch):
                    block = range(start, start + config.batch)
                    new = [k for k in block if (name, k) in missing]
                    for k, image, seed, reasons in drawings(draw, name, block, config.seed) if new else ():
                        if k in new:
                            settings = config.model_dump(include={"model", "steps", "guidance"})
                            about = {"prompt": prompt(name), "seed": seed, **settings, "rejected": ", ".join(reasons)}
                            image_files.save(folder / image_files.image_file(name, k), image, about)
                            bar.update()
    rejected = [
        (name, reason)
        for name, _, _, file in rows
        for reason in image_files.facts(folder / file).get("rejected", "").split(", ")
        if reason
    ]
    if rejected:
        counts = Counter(reason for _, reason in rejected).most_common()
        shown = ", ".join(f"{count} {reason}" for reason, count in counts)
        print(f"drawn again: {shown} ({len(rows)} images accepted)")
    made = pd.DataFrame(rows, columns=["class", "index", "prompt", "file"])
    return made, pd.DataFrame(rejected, columns=["class", "reason"])


def image_seed(seed: int, class_name: str, index: int, attempt: int) -> int:
    """Return the seed of an image's noise, 63 bits, which depends only on the arguments."""
    digest = hashlib.sha256(f"{seed}/{class_name}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def drawings(draw: Draw, class_name: str, block: range, seed: int) -> Iterator[tuple[int, np.ndarray, int, list[str]]]:
    """Yield images of a class with the indices of `block`, each drawn until it is usable.

    Args:
        draw: (prompt, seeds) -> images (N, H, W, 3) float32 in [0, 1], and which of them are flagged unsafe.
        class_name: the class in the prompt.
        block: indices of the images.
        seed: of the run.

    Yields:
        Index, image (H, W, 3) uint8 RGB, seed of its noise, and why the attempts before it were rejected.

    Raises:
        UserError: an image is still unusable after `ATTEMPTS` attempts.
    """
    rejected: dict[int, list[str]] = {k: [] for k in block}
    for attempt in range(ATTEMPTS):
        seeds = {k: image_seed(seed, class_name, k, attempt) for k in rejected}
        for (k, own), image, unsafe in zip(seeds.items(), *draw(prompt(class_name), [*seeds.values()]), strict=True):
            if why := fault(image, unsafe):
                rejected[k].append(why)
            else:
                yield k, np.round(image * 255).astype(np.uint8), own, rejected.pop(k)
        if not rejected:
            return
    first, reasons = next(iter(rejected.items()))
    raise UserError(
        f"image {first} of '{class_name}' was unusable {ATTEMPTS} times ({', '.join(reasons)}): "
        "choose another class name or model, or precision float32"
    )


def fault(image: np.ndarray, unsafe: bool) -> str | None:
    """Return what is wrong with an image (H, W, 3) in [0, 1], if anything."""
    if unsafe:
        return "flagged unsafe"
    if not np.isfinite(image).all():
        return "not a number"
    if image.max() < FLAT:
        return "black"
    if image.std((0, 1)).max() < FLAT:
        return "near-constant"
    return None


def pipeline(config: GenerateConfig) -> Draw:
    """Load the model; returns a function that draws a batch.

    The noise is made on the CPU, image by image, so that it depends neither on the device nor on the batch.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    from diffusers import StableDiffusionPipeline  # takes seconds: only when images are drawn
    from diffusers.utils import logging
    from transformers.utils import logging as text_logging

    device = machine.device()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    text_logging.disable_progress_bar()
    with huggingface.loading("Stable Diffusion", config.model) as source:
        dtype = getattr(torch, config.precision)
        pipe = StableDiffusionPipeline.from_pretrained(source, dtype=dtype, cache_dir=huggingface.cache()).to(device)
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda":  # faster convolutions there; a CPU takes 1.28 x as long
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)
    if config.compile:
        pipe.unet = torch.compile(pipe.unet)

    def draw(text: str, seeds: list[int]) -> tuple[np.ndarray, list[bool]]:
        made = pipe(
            [text] * len(seeds),
            height=config.size,
            width=config.size,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="np",
        )
        return made.images, list(made.nsfw_content_detected or [False] * len(seeds))

    return draw


def _decides(config: GenerateConfig) -> dict[str, Any]:
    versions = [importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")]
    code = [f"data/{name}.py" for name in ("class_names", "generate", "image_files")]
    return dict(parameters=[config, versions], code=code, files=huggingface.model_files(config.model))


SOURCE = ImageSource(GenerateConfig, "text-to-image model", generate, _decides, model=lambda config: config.model)
