"""How sure a score is: 95% intervals by bootstrap over the images and over the seeds of the heads."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from usam.evaluation import Scores
from usam.metrics import Reliability

RESAMPLES, CONFIDENCE = 1000, 0.95


class Interval(NamedTuple):
    """A value and where it would lie if other images and seeds had been drawn, with a confidence of 95%."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Shares in percent: "12.34 [10.00, 14.50]"."""
        return f"{100 * self.value:.2f} {self.brackets()}"

    def brackets(self) -> str:
        """The ends alone, in percent; a dash if they are not known."""
        if not np.isfinite([self.low, self.high]).all():
            return "–"
        return f"[{100 * self.low:.2f}, {100 * self.high:.2f}]"


def mean(runs: Sequence[Scores], score: str) -> Interval:
    """Mean over the seeds of `score` ("miou", "map50").

    Args:
        runs: the same method on the same images, one a seed.
        score: which one.
    """
    found = bootstrap(lambda weights: _of_runs(runs, score, weights), len(runs), images_of(runs))
    return _within(found)


def difference(runs: Sequence[Scores], others: Sequence[Scores], score: str, same_images: bool = True) -> Interval:
    """Mean over the seeds of `score` of `runs` minus that of `others`.

    Pairs stay together: both sides have the same images drawn, and the same seeds where both have several.

    Args:
        runs, others: as in `mean`, with the same seeds; or one of them has none, and stands against all of the other's.
        score: which one.
        same_images: False where the sides were scored on different data sets: then each has a draw of its own.
    """
    sizes = [images_of(runs)] if same_images else [images_of(runs), images_of(others)]

    def values(*weights: np.ndarray) -> np.ndarray:
        return _of_runs(runs, score, weights[0]) - _of_runs(others, score, weights[-1])  # (S, B)

    return bootstrap(values, max(len(runs), len(others)), *sizes)


def calibration(runs: Sequence[Reliability], others: Sequence[Reliability] = ()) -> Interval:
    """Mean over the seeds of the expected calibration error of `runs`, minus that of `others` if there are any."""

    def values(weights: np.ndarray) -> np.ndarray:
        errors = np.stack([run.error(weights) for run in runs])  # (S, B)
        return errors - np.stack([other.error(weights) for other in others]) if others else errors

    found = bootstrap(values, len(runs), len(runs[0].count))
    return found if others else _within(found)


def _within(found: Interval) -> Interval:
    """No score is below 0 or above 1."""
    return Interval(found.value, *np.clip(found[1:], 0, 1).tolist())


def share(runs: Sequence[np.ndarray], others: Sequence[np.ndarray] = ()) -> Interval:
    """Mean over the seeds of a share, minus that of `others` if there are any; `others` may be one for all seeds.

    NaN if one of them has nothing that it could be a share of.

    Args:
        runs, others: (N, 2) counts of each image: of what the share is, and of all.
    """

    def of(sides: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        counts = np.stack([weights @ side for side in sides])  # (S, B, 2)
        return counts[..., 0] / np.maximum(counts[..., 1], 1)

    def values(weights: np.ndarray) -> np.ndarray:
        return of(runs, weights) - (of(others, weights) if others else 0)

    if not all(side[:, 1].any() for side in (*runs, *others)):
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap(values, len(runs), len(runs[0]))


def images_of(runs: Sequence[Scores]) -> int:
    """Number of images that were scored."""
    return len(runs[0].confusion)


def _of_runs(runs: Sequence[Scores], score: str, weights: np.ndarray) -> np.ndarray:
    return np.stack([run.resampled(score, weights) for run in runs])


def bootstrap(values: Callable[..., np.ndarray], seeds: int, *images: int) -> Interval:
    """Interval of a mean over seeds when images and seeds are drawn again, each with replacement.

    The interval is the "basic" one, 2 x - q: among images that are drawn twice mIoU and mAP50 are a little higher than
    on the split itself (a rare class drops out, or is found twice), and by as much the ends would be too high.

    Args:
        values: (B, N) numbers of times that each image is there, one array for each of `images` -> (S, B) values, one
            a seed.
        seeds: S. One seed is not drawn again.
        images: N of each set of images.
    """

    def statistic(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        flat = [np.atleast_2d(indices) for indices in drawn]
        weights = [_counts(indices, count) for indices, count in zip(flat, images, strict=False)]
        found = values(*weights)  # (S, B)
        if seeds > 1:
            found = np.take_along_axis(found, flat[-1].T, 0)
        return found.mean(0).reshape(drawn[0].shape[:-1])

    data = [np.arange(count) for count in images] + [np.arange(seeds)] * (seeds > 1)
    whole = float(statistic(*data))
    if min(images) < 2:
        return Interval(whole, np.nan, np.nan)
    found = stats.bootstrap(
        data, statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="basic",
        vectorized=True, batch=100, rng=np.random.default_rng(0),
    )  # fmt: skip
    return Interval(whole, *map(float, found.confidence_interval))


def _counts(indices: np.ndarray, count: int) -> np.ndarray:
    """How many times each of `count` images is among (B, N) drawn ones: (B, count)."""
    rows = np.arange(len(indices))[:, None]
    return np.bincount((rows * count + indices).ravel(), minlength=len(indices) * count).reshape(-1, count)
