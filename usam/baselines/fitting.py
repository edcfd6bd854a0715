"""Training of the rivals: what they learn from, and steps that can be interrupted and go on to the same numbers."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms.functional import resize
from tqdm import tqdm

from usam import machine

SAVE_EVERY = 60  # seconds


@dataclass(frozen=True)
class Pictures:
    """Images to learn from.

    Attributes:
        image: number of a picture -> (H, W, 3) uint8 RGB.
        labels: (N, C) float32 multi-hot, the classes on each; methods without supervision do not look at them.
    """

    image: Callable[[int], np.ndarray]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def square(image: np.ndarray, side: int) -> Tensor:
    """An image (H, W, 3) uint8 RGB, brought to `side` x `side` whatever its shape: (3, side, side) float in [0, 1]."""
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return resize(picture, [side, side], antialias=True).clamp(0, 1)


def squares(pictures: Pictures, side: int) -> Tensor:
    """All of them, read once: (N, 3, side, side) uint8."""
    found = torch.empty(len(pictures), 3, side, side, dtype=torch.uint8)
    for i in tqdm(range(len(pictures)), desc="images", unit="image", leave=False):
        found[i] = (square(pictures.image(i), side) * 255).round()
    return found


def fast(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the hardware has them."""
    return torch.autocast(device.type, torch.bfloat16, enabled=machine.best_precision(device.type) == "bfloat16")


def generator(seed: int, *place: int) -> torch.Generator:
    """The only source of chance at a `place` of a training, such as a step: the same wherever training went on."""
    words = np.random.SeedSequence([len(place), seed, *place]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def fit(
    parts: Mapping[str, Any], steps: int, step: Callable[[int], Mapping[str, float]], state: Path, label: str
) -> pd.DataFrame:
    """Take `steps` steps; the table of what they returned, one row a step.

    Now and then all is written to `state`. If there is such a file, training goes on from it; a file of another kind or
    one that is damaged is ignored. The file goes when training ends.

    Args:
        parts: all that changes; each has a `state_dict` and a `load_state_dict`.
        steps: how many.
        step: takes step n, with no other chance than `generator(seed, n)`, and returns its losses.
        state: the file.
        label: text before the progress bar.
    """
    rows = _go_on(parts, state)
    saved = time.monotonic()
    for n in tqdm(range(len(rows), steps), desc=label, unit="step", initial=len(rows), total=steps, leave=False):
        rows.append({"step": n + 1, **step(n)})
        if time.monotonic() - saved > SAVE_EVERY:
            _save(parts, rows, state)
            saved = time.monotonic()
    state.unlink(missing_ok=True)
    return pd.DataFrame(rows, columns=None if rows else ["step"])


def _go_on(parts: Mapping[str, Any], state: Path) -> list[dict[str, float]]:
    """Bring `parts` to what stands in the file; the rows so far, none if it cannot be used."""
    if not state.exists():
        return []
    before = {name: deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        found = torch.load(state, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(found[name])
        return list(found["rows"])
    except Exception:  # a damaged pickle can raise anything
        for name, part in parts.items():
            part.load_state_dict(before[name])
        return []


def _save(parts: Mapping[str, Any], rows: list[dict[str, float]], state: Path) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    beside = state.with_suffix(".writing")
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"rows": rows}, beside)
    beside.replace(state)
