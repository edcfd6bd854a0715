"""The steps by name, and the rows that they fill."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import works
from benchmarks.measure import Result, Work, compare, matmul_rate

GPU = torch.cuda.is_available()
STEPS: dict[str, tuple[Callable[[int], list[Work]], int]] = {  # and how many images take about a minute
    "sam-mini": (partial(works.extraction, "mini"), 256 if GPU else 48),
    "sam-vit_b": (partial(works.extraction, "vit_b"), 512 if GPU else 4),
    "sam-vit_h": (partial(works.extraction, "vit_h"), 256 if GPU else 1),
    "generation-mini": (partial(works.generation, "mini"), 200 if GPU else 40),
    "generation-sd": (partial(works.generation, "sd v1-4"), 16 if GPU else 1),
    "training": (works.heads, 4000 if GPU else 100),
    "evaluation": (works.scores, 200),
}
SLOW = () if GPU else ("sam-vit_h", "generation-sd")  # not by default


def write_rows(step: str, images: int | None, rounds: int) -> None:
    """Time a step and print its rows."""
    make, usual = STEPS[step]
    results = compare(make(images or usual), rounds)
    for result in results:
        print(_row(result, results[-1].rate), flush=True)


def _row(result: Result, other: float) -> str:
    work, rate = result.work, ""
    if result.operations:
        done = result.operations * result.rate / work.items
        rate = f"{done / 1e12:.2f} | {done / matmul_rate(work.precision):.0%}"
    cells = (
        work.name, work.precision, f"{result.rate:,.4g} {work.unit}", f"{result.rate / other:.2f} x",
        rate or "– | –", f"{result.peak:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
