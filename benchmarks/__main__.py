"""`python -m benchmarks` prints a table: how fast each step is, beside other ways to do it and what the machine can do.

Steps that are compared take turns in one process. "of the machine" is the share of the rate of large matrix products in
the same precision, measured in the same run; memory is the process's on a CPU, torch's on a GPU.
"""

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks import works
from benchmarks.measure import Result, Work, compare, matmul_rate
from usam import runs
from usam.errors import UserError

GPU = torch.cuda.is_available()
STEPS: dict[str, tuple[Callable[[int], list[Work]], int]] = {  # with the images that take seconds here, not minutes
    "sam-mini": (lambda n: works.extraction("mini", n), 256 if GPU else 48),
    "sam-vit_b": (lambda n: works.extraction("vit_b", n), 512 if GPU else 4),
    "sam-vit_h": (lambda n: works.extraction("vit_h", n), 256 if GPU else 2),
    "generation-mini": (lambda n: works.generation("mini", n), 200 if GPU else 40),
    "generation-sd": (lambda n: works.generation("sd v1-4", n), 16 if GPU else 1),
    "training": (works.heads, 4000 if GPU else 400),
    "evaluation": (works.scores, 200),
}
SLOW = () if GPU else ("sam-vit_h", "generation-sd")  # not by default


def main() -> None:
    """Run what is asked for, print a table as soon as a step is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "steps", nargs="*", help=f"of {', '.join(STEPS)}; all but {', '.join(SLOW) or 'none'} by default"
    )
    parser.add_argument("--images", type=int, help="how many; by default some seconds' worth")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed; the middle one counts")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.steps) - set(STEPS)):
        parser.error(f"no step {', '.join(unknown)}: choose from {', '.join(STEPS)}")
    print(f"{runs.hardware()}; {runs.versions()}; commit {runs.commit()}\n")
    print("| step | arithmetic | a second | to the last | TFLOP/s | of the machine | memory [GiB] |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for step in arguments.steps or [name for name in STEPS if name not in SLOW]:
        make, images = STEPS[step]
        results = compare(make(arguments.images or images), arguments.rounds)
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


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
