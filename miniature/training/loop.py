"""Trainings that can be stopped: a state on disk to go on from, a running average of the weights, time as the limit."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from usam.errors import UserError

SAVE_EVERY = 300  # seconds


def running_average(model: nn.Module) -> AveragedModel:
    """Exponential moving average of a model's weights, over some 500 updates."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))


def descend(model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down `loss`, with gradients of norm 1 at most, and the average after it."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    average.update_parameters(model)


def save_state(file: Path, parts: dict[str, Any], **numbers: Any) -> None:
    """Write what `load_state` reads, whole or not at all; each part has a `state_dict`."""
    beside = file.with_suffix(".part")
    torch.save({name: part.state_dict() for name, part in parts.items()} | numbers, beside)
    beside.replace(file)


def load_state(file: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Bring `parts` to the state in `file`; returns the numbers beside them, none if there is no file."""
    if not file.exists():
        return {}
    print(f"going on from {file}; delete it to begin anew", flush=True)
    state = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return {name: value for name, value in state.items() if name not in parts}


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, beside `out`; it replaces `out` when the block ends well."""
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)


class Loop:
    """Steps of AdamW until the time is over: the rate rises for 200 steps and falls with a cosine.

    Attributes:
        model: what is trained.
        average: the running average of its weights.
        step, seconds: so far, over all starts.
    """

    def __init__(self, model: nn.Module, rate: float, minutes: float, file: Path, inputs: list[float]):
        """`inputs` are numbers that tell what is learned from.

        Raises:
            UserError: the state in `file` belongs to other inputs.
        """
        self.model, self.average = model, running_average(model)
        self.rate, self.limit, self.file, self.inputs = rate, 60 * minutes, file, inputs
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
        known = load_state(file, self._parts())
        if known.get("inputs", inputs) != inputs:
            raise UserError(f"{file} belongs to other pictures or prompts: delete it, or choose another --out")
        self.step, self.seconds = known.get("step", 0), known.get("seconds", 0.0)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def run(self, loss_of: Callable[[nn.Module, torch.Generator], Tensor]) -> None:
        """Take steps on `loss_of(model, generator)`."""
        generator = torch.Generator().manual_seed(self.step)
        clock = saved = time.monotonic()
        smoothed = None
        while (share := self.seconds / self.limit) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min((self.step + 1) / 200, 1) * (0.5 + 0.5 * math.cos(math.pi * share))
            loss = loss_of(self.model, generator)
            descend(self.model, self.average, self.optimizer, loss)
            self.step += 1
            self.seconds, clock = self.seconds + time.monotonic() - clock, time.monotonic()
            smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
            if self.step % 50 == 0:
                print(f"{self.step} {self.seconds / 60:.1f} min loss {smoothed:.4f}", flush=True)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        save_state(self.file, self._parts(), step=self.step, seconds=self.seconds, inputs=self.inputs)
