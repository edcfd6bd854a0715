"""Heads on disk: weights as safetensors, with what is known about their training in the header."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from usam import machine
from usam.method.head import MaskClassifier


class StoredHead(NamedTuple):
    """A head, its table of epochs, and the seconds that training took."""

    model: MaskClassifier
    history: pd.DataFrame
    seconds: float


class Heads(NamedTuple):
    """A teacher and its student, a table of each with one row an epoch, and the seconds that training both took."""

    teacher: MaskClassifier
    student: MaskClassifier
    teacher_history: pd.DataFrame
    student_history: pd.DataFrame
    seconds: float


def load_noted(file: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Weights of a safetensors file and what is noted in its header, or None if there is none or it is damaged."""
    try:
        content = file.read_bytes()
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return load(content), json.loads(header)["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def load_head(file: Path, classes: int, widths: tuple[int, int, int]) -> StoredHead | None:
    """A head with what is noted in its file, or None if there is none or it is damaged."""
    if (found := load_noted(file)) is None:
        return None
    weights, about = found
    try:
        model = MaskClassifier(classes, weights["mean"], weights["std"], widths)
        model.load_state_dict(weights)
        history = pd.read_csv(io.StringIO(about["history"]))
        return StoredHead(model.eval().requires_grad_(False).to(machine.device()), history, float(about["seconds"]))
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None
