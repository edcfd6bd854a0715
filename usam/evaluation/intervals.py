"""How sure a score is: 95% intervals for other images (bootstrap) and other seeds of the heads (Student's t)."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from usam.evaluation.metrics import Reliability
from usam.evaluation.scores import Scores

RESAMPLES, CONFIDENCE = 1000, 0.95


class Interval(NamedTuple):
    """A value, and between which ends it lies for images and seeds in general, with a confidence of 95%."""

    value: float
    low: float
    high: float

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
    return _within(of_mean(lambda weights: _of_runs(runs, score, weights), images_of(runs)))


def difference(runs: Sequence[Scores], others: Sequence[Scores], score: str, same_images: bool = True) -> Interval:
    """Mean over the seeds of `score` of `runs` minus that of `others`.

    The comparison is paired: the difference is taken seed by seed, and both sides draw the same images.

    Args:
        runs, others: as in `mean`, with the same seeds; or one of them has none, and stands against all of the other's.
        score: which one.
        same_images: False where the sides were scored on different data sets: then each draws its own images.
    """
    sizes = [images_of(runs)] if same_images else [images_of(runs), images_of(others)]

    def values(*weights: np.ndarray) -> np.ndarray:
        return _of_runs(runs, score, weights[0]) - _of_runs(others, score, weights[-1])  # (S, B)

    return of_mean(values, *sizes)


def calibration(runs: Sequence[Reliability], others: Sequence[Reliability] = ()) -> Interval:
    """Mean over the seeds of the expected calibration error of `runs`, minus that of `others` if there are any."""

    def values(weights: np.ndarray) -> np.ndarray:
        errors = np.stack([run.error(weights) for run in runs])  # (S, B)
        return errors - np.stack([other.error(weights) for other in others]) if others else errors

    found = of_mean(values, len(runs[0].count))
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
    found = of_mean(values, len(runs[0]))
    return found if others else _within(found)


def images_of(runs: Sequence[Scores]) -> int:
    """Number of images that were scored."""
    return len(runs[0].confusion)


def _of_runs(runs: Sequence[Scores], score: str, weights: np.ndarray) -> np.ndarray:
    return np.stack([run.resampled(score, weights) for run in runs])


def of_mean(values: Callable[..., np.ndarray], *images: int) -> Interval:
    """Interval of a mean over seeds, for other images and other seeds: x ± t (e² + s² / S)^(1/2).

    e is the standard error of the mean when images are drawn again with replacement (bootstrap), s the standard
    deviation over the S seeds on the images as they are, t Student's with the degrees of freedom of Welch and
    Satterthwaite. (To draw three seeds again as well would be simpler, and far too sure: without an influence of the
    images such an interval holds the truth in 67 of 100 cases. This one did in 92 to 95 of 100 worlds that were made
    with three seeds, 25 images and several strengths of either.) A method without seeds has S = 1 and s = 0.

    Args:
        values: (B, N) numbers of times that each image is there, one array for each of `images` -> (S, B) values, one
            a seed.
        images: N of each set of images.
    """
    each = values(*(np.ones((1, count)) for count in images))[:, 0]  # (S,)
    whole, seeds = float(each.mean()), len(each)
    if min(images) < 2:
        return Interval(whole, np.nan, np.nan)

    def statistic(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        weights = (_counts(np.atleast_2d(indices), count) for indices, count in zip(drawn, images, strict=True))
        return values(*weights).mean(0).reshape(drawn[0].shape[:-1])

    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):  # then there is no interval
        found = stats.bootstrap(
            [np.arange(count) for count in images], statistic, n_resamples=RESAMPLES, method="basic",
            vectorized=True, batch=100, rng=np.random.default_rng(0),
        )  # fmt: skip
    parts = np.array([found.standard_error**2, each.var(ddof=1) / seeds if seeds > 1 else 0.0])
    freedom = np.array([min(images) - 1, max(seeds - 1, 1)])
    half = 0.0
    if parts.any():
        degrees = parts.sum() ** 2 / (parts**2 / freedom).sum()
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees) * np.sqrt(parts.sum()))
    return Interval(whole, whole - half, whole + half)


def _counts(indices: np.ndarray, count: int) -> np.ndarray:
    """How many times each of `count` images is among (B, N) drawn ones: (B, count)."""
    rows = np.arange(len(indices))[:, None]
    return np.bincount((rows * count + indices).ravel(), minlength=len(indices) * count).reshape(-1, count)
