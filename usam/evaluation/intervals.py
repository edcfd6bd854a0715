"""How sure a score is: 95% intervals for other images (bootstrap) and other seeds of the heads (Student's t)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from usam.evaluation.metrics import Reliability
from usam.evaluation.scores import Scores

RESAMPLES = 1000
AT_ONCE = 100  # resamples, so that they fit the memory
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A value, and between which ends it lies for images and seeds in general, with a confidence of 95%.

    Attributes:
        value, low, high: shares in [0, 1], or differences of two in [-1, 1]; the ends are NaN if they are not known.
        p: two-sided p-value of the hypothesis that the value is 0 for images and seeds in general, from the same
            standard error and the same t distribution as the ends; NaN if these are.
    """

    value: float
    low: float
    high: float
    p: float = np.nan

    @property
    def decimals(self) -> int:
        """With how many decimals to print value and ends in percent; see `decimals`."""
        return decimals(50 * (self.high - self.low))

    def percent(self, sign: str = "") -> str:
        """The value in percent; with `sign` "+", a positive one has its sign, too."""
        return f"{_rounded(self.value, self.decimals):{sign}.{self.decimals}f}"

    def brackets(self) -> str:
        """The ends alone, in percent; a dash if they are not known."""
        if not np.isfinite([self.low, self.high]).all():
            return "–"
        low, high = (f"{_rounded(end, self.decimals):.{self.decimals}f}" for end in (self.low, self.high))
        return f"[{low}, {high}]"


def decimals(spread: float) -> int:
    """How many decimals a number deserves whose spread (standard deviation or half an interval) is `spread`, both in
    percent: so many that the spread has two significant digits if they are below 30, else one, but at most 2 decimals
    (18 ± 9, 45.1 ± 2.4); 1 if the spread is not known (NaN).
    """
    if np.isnan(spread):
        return 1
    return 0 if spread >= 2.95 else 1 if spread >= 0.295 else 2


def _rounded(share: float, places: int) -> float:
    return round(100 * share, places) + 0.0  # no "-0"


def mean(runs: Sequence[Scores], score: str) -> Interval:
    """Mean over the seeds of `score` ("miou", "map50"); `runs` are the same method on the same images, one a seed."""
    return _compared(lambda run, weights: run.resampled(score, weights), [len(runs[0].confusion)], runs)


def difference(runs: Sequence[Scores], others: Sequence[Scores], score: str, same_images: bool = True) -> Interval:
    """Mean over the seeds of `score` of `runs` minus that of `others`.

    The comparison is paired: the difference is taken seed by seed, and both sides draw the same images.

    Args:
        runs, others: as in `mean`, with the same seeds; or one of them has none, and stands against all of the other's.
        score: "miou" or "map50".
        same_images: False where the sides were scored on different data sets: then each draws its own images.
    """
    images = [len(side[0].confusion) for side in ([runs] if same_images else [runs, others])]
    return _compared(lambda run, weights: run.resampled(score, weights), images, runs, others)


def calibration(runs: Sequence[Reliability], others: Sequence[Reliability] = ()) -> Interval:
    """Mean over the seeds of the expected calibration error of `runs`, minus that of `others` if there are any."""
    return _compared(Reliability.error, [len(runs[0].count)], runs, others)


def share(runs: Sequence[np.ndarray], others: Sequence[np.ndarray] = ()) -> Interval:
    """Mean over the seeds of a share, minus that of `others` if there are any; `others` may be one for all seeds.

    NaN if one of them has nothing that it could be a share of.

    Args:
        runs, others: (N, 2) counts of each image: of what the share is, and of all.
    """

    def value(run: np.ndarray, weights: np.ndarray) -> np.ndarray:
        counts = weights @ run  # (B, 2)
        return counts[:, 0] / np.maximum(counts[:, 1], 1)

    if not all(side[:, 1].any() for side in (*runs, *others)):
        return Interval(np.nan, np.nan, np.nan)
    return _compared(value, [len(runs[0])], runs, others)


def _compared(
    value: Callable[[Any, np.ndarray], np.ndarray], images: Sequence[int], runs: Sequence[Any], others: Sequence = ()
) -> Interval:
    """Interval of the mean of `value` (run, weights (B, N)) -> (B,) over `runs`, minus that over `others`, if any."""

    def values(*weights: np.ndarray) -> np.ndarray:
        """(S, B), from one array of weights, or from one for each side."""
        ours = np.stack([value(run, weights[0]) for run in runs])
        return ours - np.stack([value(other, weights[-1]) for other in others]) if others else ours

    found = of_mean(values, *images)
    if others:
        return found
    low, high = np.clip([found.low, found.high], 0, 1).tolist()  # no score is below 0 or above 1
    return found._replace(low=low, high=high)


def of_mean(values: Callable[..., np.ndarray], *images: int) -> Interval:
    """Interval of a mean over seeds, for other images (bootstrap) and other seeds; see `around`.

    Args:
        values: (B, N) numbers of times that each image is there, one array for each of `images` -> (S, B) values, one
            a seed.
        images: N of each set of images.

    Returns:
        The interval; its ends are NaN for a single image, and all of it where there is no value.
    """
    each = values(*(np.ones((1, count)) for count in images))[:, 0]  # (S,)
    if min(images) < 2 or np.isnan(each).any():
        return Interval(float(each.mean()), np.nan, np.nan)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES // AT_ONCE):
        drawn.append(values(*(draws(rng, AT_ONCE, count) for count in images)).mean(0))
    return around(each, np.concatenate(drawn), min(images))


def around(each: np.ndarray, resampled: np.ndarray, images: int) -> Interval:
    """Interval of a mean x over seeds: x - b ± t (e² + s² / S)^(1/2).

    e is the standard error of the mean when images are drawn again with replacement (bootstrap), s the standard
    deviation over the S seeds on the images as they are, t Student's with the degrees of freedom of Welch and
    Satterthwaite. b is the bias: both scores tend to be a little too high on few images, and by how much is estimated
    by how much higher they are on resampled images. docs/statistics.md explains the choices, and how often such
    intervals hold the truth. A method without seeds has S = 1 and s = 0. The ends always enclose x.

    Args:
        each: (S,) values of the seeds on the images as they are.
        resampled: (B,) means over the seeds, each on images that were drawn again.
        images: how many images there are.
    """
    whole, seeds = float(each.mean()), len(each)
    parts = np.array([resampled.std(ddof=1) ** 2, each.var(ddof=1) / seeds if seeds > 1 else 0.0])
    if not parts.any():  # no spread: the value is what it is
        return Interval(whole, whole, whole, float(whole == 0))
    freedom = np.array([images - 1, max(seeds - 1, 1)])
    error, degrees = np.sqrt(parts.sum()), parts.sum() ** 2 / (parts**2 / freedom).sum()
    middle, half = float(2 * whole - resampled.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees) * error)
    # where the bias is larger than x itself, the sign is open: then the interval, which encloses x, holds zero as well
    p = float(2 * stats.t.sf(abs(middle) / error, degrees)) if middle * whole > 0 else 1.0
    return Interval(whole, min(middle - half, whole), max(middle + half, whole), p)


def draws(rng: np.random.Generator, times: int, images: int) -> np.ndarray:
    """How many times each of N images is there when N are drawn with replacement: (times, N) int."""
    drawn = rng.integers(0, images, (times, images))
    return np.bincount((np.arange(times)[:, None] * images + drawn).ravel(), minlength=drawn.size).reshape(drawn.shape)
