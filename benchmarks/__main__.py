"""`python -m benchmarks` prints a table: how fast each step is, beside other ways to do it and what the machine can do.

Steps that are compared take turns in one process. "of the machine" is the share of the rate of large matrix products in
the same precision, measured in the same run; memory is the process's on a CPU, torch's on a GPU.
"""

import argparse
import sys
from multiprocessing import get_context

from benchmarks.table import SLOW, STEPS, write_rows
from usam import machine


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
    print(f"{machine.hardware()}; {machine.versions()}; commit {machine.commit()}\n")
    print("| step | arithmetic | a second | to the last | TFLOP/s | of the machine | memory [GiB] |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for step in arguments.steps or [name for name in STEPS if name not in SLOW]:
        process = get_context("spawn").Process(target=write_rows, args=(step, arguments.images, arguments.rounds))
        process.start()  # a process each: memory that one step took is not counted for the next
        process.join()
        if process.exitcode:
            sys.exit(f"error: step {step} failed; the others can be asked for by name")


if __name__ == "__main__":
    main()
