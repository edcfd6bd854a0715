"""Times as ratios in one run: what is compared takes turns. Beside them the machine's own rate of matrix products."""

import contextlib
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from usam import machine

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices


@dataclass(frozen=True)
class Work:
    """One thing to be timed.

    Attributes:
        name: what it is called.
        do: what is timed.
        items, unit: how many of what that is.
        precision: of its arithmetic.
        part, parts: what is counted, in one thread, and how many of it make up `do`; nothing is counted by default.
    """

    name: str
    do: Callable[[], object]
    items: int
    unit: str
    precision: str
    part: Callable[[], object] | None = None
    parts: int = 1


@dataclass
class Result:
    """Seconds of each round, floating-point operations of one call, and the largest memory meanwhile in GiB."""

    work: Work
    seconds: list[float]
    operations: float
    peak: float

    @property
    def rate(self) -> float:
        """Items a second, in the middle round."""
        return self.work.items / statistics.median(self.seconds)


def compare(works: list[Work], rounds: int) -> list[Result]:
    """Each of `works` once to warm up, and counted; then all of them in turn, `rounds` times."""
    for work in works:
        work.do()
    results = [Result(work, [], work.parts * _operations(work.part), 0.0) for work in works]
    for _ in range(rounds):
        for result in results:
            _reset_peak()
            start = time.perf_counter()
            result.work.do()
            _wait()
            result.seconds.append(time.perf_counter() - start)
            result.peak = max(result.peak, _peak())
    return results


def matmul_rate(precision: str, seconds: float = 2.0) -> float:
    """Floating-point operations a second of large matrix products: the best of many."""
    device = machine.device()
    side = SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device, dtype=getattr(torch, precision))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        _wait()
        start = time.perf_counter()
        a @ b
        _wait()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _operations(do: Callable[[], object] | None) -> float:
    """Of all matrix products, convolutions and attentions of this thread."""
    if do is None:
        return 0.0
    with FlopCounterMode(display=False) as counter:
        do()
    return counter.get_total_flops()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # Linux: the peak begins anew
            Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with contextlib.suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    return machine.peak_memory()
