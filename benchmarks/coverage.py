"""`python -m benchmarks.coverage` prints how often the 95% intervals of `usam.evaluation.intervals` hold the truth.

The stored scores of a run are taken for the whole population, all images and seeds that there are, so that the truth is
known. Many worlds are drawn from it, each with some of its images and seeds (with replacement), and in each world the
intervals are computed as if the world were all that is known. docs/statistics.md reports what came out.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from usam import machine, profiles
from usam.errors import UserError
from usam.evaluation import intervals
from usam.evaluation.intervals import Interval
from usam.evaluation.scores import Scores
from usam.report import claims, tables

RESAMPLES = 100  # within a world; the tables have more, but the standard error needs few
METHODS = ("U-SAM", "MIL only")  # the intervals are those of the first one, and of the first minus the second


class Coverage(NamedTuple):
    """What became of the intervals of all worlds.

    Attributes:
        truth: the value in the population.
        found: the interval of each world.
    """

    truth: float
    found: list[Interval]

    @property
    def held(self) -> int:
        """In how many worlds the interval contains the truth."""
        return sum(one.low <= self.truth <= one.high for one in self.found)

    def cells(self) -> list[str]:
        """Truth, bias (mean over the worlds minus truth), mean half-width, share of worlds; all in percent."""
        ends = stats.binomtest(self.held, len(self.found)).proportion_ci(method="wilson")
        bias = np.mean([one.value for one in self.found]) - self.truth
        half = np.mean([one.high - one.low for one in self.found]) / 2
        share = Interval(self.held / len(self.found), ends.low, ends.high)
        numbers = [f"{100 * number:.1f}" for number in (self.truth, bias, half, share.value)]
        return [*numbers, f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"]


def coverage(
    runs: Sequence[Sequence[Scores]], score: str, images: int, seeds: int, worlds: int, resamples: int = RESAMPLES
) -> list[Coverage]:
    """Coverage of the mean of the first method and of its difference from the second one.

    Args:
        runs: of two methods, on the same images with the same seeds: the population.
        score: "miou" or "map50".
        images, seeds: how many a world has.
        worlds: how many there are.
        resamples: how many times a world's images are drawn again for its intervals.
    """
    rng, population = np.random.default_rng(0), len(runs[0][0].confusion)
    everything = np.ones((1, population))
    ours, theirs = (np.mean([run.resampled(score, everything) for run in of]) for of in runs)
    results = Coverage(float(ours), []), Coverage(float(ours - theirs), [])
    for _ in range(worlds):
        drawn = np.eye(population)[rng.integers(0, population, images)]  # (images, population)
        weights = np.concatenate([np.ones((1, images)), intervals.draws(rng, resamples, images)]) @ drawn
        chosen, place = np.unique(rng.integers(0, len(runs[0]), seeds), return_inverse=True)
        values = np.array([[of[k].resampled(score, weights) for k in chosen] for of in runs])[:, place]
        for result, each in zip(results, (values[0], values[0] - values[1]), strict=True):  # each is (seeds, 1 + B)
            result.found.append(intervals.around(each[:, 0], each[:, 1:].mean(0), images))
    return list(results)


def main() -> None:
    """Print a row for each data set, source of training images and score."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--profile", default="mini", help="whose stored scores are the population (default: mini)")
    parser.add_argument("--images", type=int, help="in a world; as many as the run has by default")
    parser.add_argument("--seeds", type=int, help="in a world; as many as the run has by default")
    parser.add_argument("--worlds", type=int, default=200, help="how many (default: 200)")
    arguments = parser.parse_args()
    for name in ("images", "seeds", "worlds"):
        least = 2 if name == "images" else 1
        if (number := getattr(arguments, name)) is not None and number < least:
            parser.error(f"--{name} {number}: choose {least} or more")
    try:
        _print_table(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def _print_table(arguments: argparse.Namespace) -> None:
    profile = profiles.load(arguments.profile)
    run = tables.current_runs(profile)
    for method in METHODS:
        tables.require(run, profile, method, "04_evaluate")
    print(f"{machine.hardware()}; {machine.versions()}; commit {machine.commit()}; {arguments.worlds} worlds\n")
    columns = ["data set", "training images", "images", "seeds", "score", "value", "truth", "bias", "half-width"]
    columns += ["coverage", "95%"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for dataset_name, config in profile.datasets.items():
        rows = run[(run["dataset"] == dataset_name) & (run["split"] == config.split) & run["method"].isin(METHODS)]
        stored = tables.stored_scores(profile, rows)
        for source in profile.sources:
            runs = [stored[method, source] for method in METHODS]
            images, seeds = arguments.images or len(runs[0][0].confusion), arguments.seeds or len(runs[0])
            for score, name in claims.SCORES.items():
                found = coverage(runs, score, images, seeds, arguments.worlds)
                for value, one in zip(("U-SAM", "U-SAM minus MIL only"), found, strict=True):
                    cells = [dataset_name, source, str(images), str(seeds), name, value, *one.cells()]
                    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
