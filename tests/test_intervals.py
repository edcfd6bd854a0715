"""Intervals: against the textbook where there is one, and by what a bootstrap must do."""

import numpy as np
import pytest
from scipy import stats

from usam.evaluation import intervals
from usam.evaluation.metrics import Matches, Reliability
from usam.evaluation.scores import Scores


def split(rights: np.ndarray, pixels: int = 100) -> Scores:
    """One class beside background, on images of which `rights` (N,) of the object's pixels are found; no detections."""
    confusion = np.zeros((len(rights), 2, 2), np.int32)
    confusion[:, 1, 1], confusion[:, 1, 0], confusion[:, 0, 0] = rights, pixels - rights, 900
    none = np.zeros(0, int)
    return Scores(confusion, Matches(none, none, none.astype(float), none.astype(bool), np.ones((len(rights), 1), int)))


def test_a_mean_of_images_has_the_interval_of_the_textbook():
    """One seed and a score that is a plain mean over images: mean ± 1.96 standard errors."""
    shares = np.random.default_rng(0).random(400)

    def values(weights: np.ndarray) -> np.ndarray:
        return (weights @ shares / weights.sum(1))[None]

    found = intervals.of_mean(values, len(shares))
    error = stats.sem(shares)
    assert found.value == pytest.approx(shares.mean())
    assert (found.low, found.high) == pytest.approx(
        (shares.mean() - 1.96 * error, shares.mean() + 1.96 * error), abs=0.2 * error
    )


def test_seeds_alone_have_students_interval_and_p_value():
    """All images alike, so that only the seeds differ: as scipy says of the mean of three numbers."""
    each = np.array([0.1, 0.2, 0.6])
    found = intervals.of_mean(lambda weights: np.repeat(each[:, None], len(weights), 1), 50)
    assert found[:3] == pytest.approx((0.3, *stats.t.interval(0.95, 2, each.mean(), stats.sem(each))))
    assert found.p == pytest.approx(stats.ttest_1samp(each, 0).pvalue)


@pytest.mark.parametrize("seeds", [3, 10])
def test_zero_is_in_the_interval_if_and_only_if_p_is_above_five_percent(seeds):
    """Means and noise of all kinds, so that images and seeds have all shares of the spread."""
    rng = np.random.default_rng(seeds)
    for _ in range(200):
        each, noise = rng.normal(0.1, rng.random(), seeds), rng.normal(0, rng.random() / 5, 200)
        found = intervals.around(each, each.mean() + noise, 30)
        assert (found.low <= 0 <= found.high) == (found.p >= 0.05)


def test_p_values_are_uniform_where_there_is_no_difference():
    """Truth 0, seeds and images normal: a tenth of the p-values is below 0.1, and so on."""
    rng, found = np.random.default_rng(5), []
    for _ in range(2000):
        error, shift = 0.3, rng.normal(0, 0.3)  # of the images: the bootstrap sees the first, the world has the second
        each = rng.normal(0, 1, 10) + shift
        found.append(intervals.around(each, rng.normal(each.mean(), error, 100), 200).p)
    assert [np.mean(np.array(found) < level) for level in (0.05, 0.1, 0.5)] == pytest.approx([0.05, 0.1, 0.5], abs=0.04)


def test_without_any_spread_zero_is_certain_or_impossible():
    assert intervals.around(np.array([0.0, 0.0]), np.zeros(10), 5) == (0, 0, 0, 1)
    assert intervals.around(np.array([0.2, 0.2]), np.full(10, 0.2), 5) == pytest.approx((0.2, 0.2, 0.2, 0))


def test_what_resampling_adds_to_the_score_is_taken_off_the_interval():
    each, noise = np.array([0.5]), np.array([-0.01, 0.01] * 500)
    plain, biased = (intervals.around(each, 0.5 + bias + noise, 1000) for bias in (0, 0.015))
    assert biased.value == plain.value == 0.5
    assert (biased.low, biased.high) == pytest.approx((plain.low - 0.015, plain.high - 0.015))
    far = intervals.around(each, 0.6 + noise, 1000)
    assert far.low == pytest.approx(0.4 - 0.0196, abs=1e-4) and far.high == 0.5  # the value is always inside


def test_draws_are_as_many_as_there_are_images():
    drawn = intervals.draws(np.random.default_rng(0), 500, 40)
    assert drawn.shape == (500, 40) and (drawn.sum(1) == 40).all() and drawn.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(noise):
    """Worlds with known truth 0: seeds that differ, images that differ by `noise`, and both together in each value."""
    rng, held, worlds = np.random.default_rng(4), 0, 400
    for _ in range(worlds):
        seeds, images = rng.normal(0, 1, 3), rng.normal(0, noise, 25)

        def values(weights: np.ndarray, seeds=seeds, images=images) -> np.ndarray:
            return seeds[:, None] + weights @ images / weights.sum(1)

        found = intervals.of_mean(values, 25)
        held += found.low <= 0 <= found.high
    assert 0.90 <= held / worlds <= 0.98


def test_mean_of_runs_is_the_mean_of_their_scores_and_repeats_itself():
    rng = np.random.default_rng(1)
    runs = [split(rng.integers(0, 101, 40)) for _ in range(3)]
    found = intervals.mean(runs, "miou")
    assert found.value == pytest.approx(np.mean([r.miou for r in runs])) and found.low < found.value < found.high
    assert intervals.mean(runs, "miou") == found
    assert intervals.mean(runs, "map50") == (0.0, 0.0, 0.0, 1.0)  # objects, and nothing found


def test_pairs_stay_together():
    """Always one pixel better on images that differ wildly: paired, the difference is sure; apart, nothing is."""
    rng = np.random.default_rng(2)
    rights = [rng.integers(0, 100, 30) for _ in range(3)]
    better, worse = ([split(r + more) for r in rights] for more in (1, 0))
    paired = intervals.difference(better, worse, "miou")
    apart = intervals.difference(better, worse, "miou", same_images=False)
    assert paired.value == apart.value == pytest.approx(np.mean([b.miou - w.miou for b, w in zip(better, worse)]))  # noqa: B905
    assert paired.low > 0 and paired.high < 0.01
    assert apart.low < 0 < apart.high


def test_one_without_seeds_stands_against_all_of_the_other():
    rng = np.random.default_rng(3)
    runs, fixed = [split(rng.integers(50, 101, 30)) for _ in range(3)], [split(rng.integers(0, 50, 30))]
    found = intervals.difference(fixed, runs, "miou")
    assert found.value == pytest.approx(fixed[0].miou - np.mean([r.miou for r in runs])) and found.high < 0


def test_a_share_is_of_sums_and_one_side_may_stand_against_all_seeds():
    counts = np.array([[1, 2], [3, 4], [0, 0], [5, 6]])
    found = intervals.share([counts, counts])
    assert found.value == pytest.approx(9 / 12) and 0.4 < found.low < 0.75 < found.high == 1
    less = intervals.share([counts, counts], [counts * [1, 2]])
    assert less.value == pytest.approx(9 / 12 - 9 / 24) and less.low > 0
    assert np.isnan(intervals.share([counts * 0], [counts])).all()  # of nothing there is no share


def test_calibration_of_seeds_and_its_difference():
    right = Reliability.of([(np.full(10, 0.7), np.arange(10) < 7) for _ in range(5)])
    wrong = Reliability.of([(np.full(10, 0.7), np.arange(10) < 0) for _ in range(5)])
    assert intervals.calibration([right, wrong]).value == pytest.approx(0.35)
    better = intervals.calibration([wrong, wrong], [right, right])
    assert better == pytest.approx((0.7, 0.7, 0.7, 0))


def test_a_bias_larger_than_the_value_leaves_the_sign_open():
    resampled = np.random.default_rng(0).normal(-0.2, 0.01, 1000)  # x - b is 0.1 + 0.3, far from 0
    found = intervals.around(np.array([-0.05]), resampled + 0.0, 50)
    assert found.low <= 0 and found.low == -0.05 and found.high > 0 and found.p == 1
    assert intervals.around(np.array([0.05]), resampled, 50).p < 0.001


def test_one_image_has_no_interval():
    found = intervals.mean([split(np.array([40]))], "miou")
    assert np.isfinite(found.value) and np.isnan([found.low, found.high]).all() and found.brackets() == "–"


@pytest.mark.parametrize(
    "half, words, ends",
    [(0.12345, "+45", "[33, 57]"), (0.0296, "+45", "[42, 48]"), (0.0294, "+45.1", "[42.2, 48.1]"),
     (0.012345, "+45.1", "[43.9, 46.4]"), (0.0025, "+45.12", "[44.87, 45.37]"),
     (0.0002, "+45.12", "[45.10, 45.14]"), (0.0, "+45.12", "[45.12, 45.12]")],
)  # fmt: skip
def test_a_number_has_the_digits_that_its_spread_deserves(half, words, ends):
    found = intervals.Interval(0.4512, 0.4512 - half, 0.4512 + half)
    assert (found.percent("+"), found.brackets()) == (words, ends)


def test_nothing_is_minus_zero():
    found = intervals.Interval(-0.001, -0.302, 0.3)
    assert found.percent("+") == "+0" and found.brackets() == "[-30, 30]"
    assert intervals.Interval(-0.2, -0.4, -0.001).brackets() == "[-40, 0]"


def test_without_ends_there_is_one_decimal():
    assert intervals.Interval(0.12345, np.nan, np.nan).percent() == "12.3"


def test_draws_without_any_object_leave_no_interval_and_no_warning(recwarn):
    """Of three images one has an object: many draws have none, and the mean is not a number there."""

    def values(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] > 0, 0.25, np.nan)[None]

    found = intervals.of_mean(values, 3)
    assert found.value == 0.25 and np.isnan(found.low) and np.isnan(found.high)
    assert not [warning for warning in recwarn if "confidence interval" in str(warning.message)]
