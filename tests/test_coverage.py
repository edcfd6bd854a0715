"""`python -m benchmarks.coverage`: worlds drawn from a population whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.coverage import METHODS, Coverage, coverage, main
from usam.evaluation.intervals import Interval
from usam.evaluation.metrics import Matches
from usam.evaluation.scores import Scores


def seed_of(rng: np.random.Generator, skill: float) -> Scores:
    """60 images of 100 pixels of the one class, of which about the share `skill` is found; no detections."""
    right = rng.binomial(100, np.clip(rng.normal(skill, 0.2, 60), 0, 1))
    confusion = np.zeros((60, 2, 2), np.int32)
    confusion[:, 1, 1], confusion[:, 1, 0], confusion[:, 0, 0] = right, 100 - right, 400
    none = np.zeros(0, int)
    return Scores(confusion, Matches(none, none, none.astype(float), none.astype(bool), np.ones((60, 1), int)))


def test_most_intervals_hold_the_truth_of_the_population():
    rng = np.random.default_rng(0)
    ours, theirs = ([seed_of(rng, skill) for skill in rng.normal(mean, 0.05, 8)] for mean in (0.7, 0.5))
    mean, difference = coverage([ours, theirs], "miou", images=40, seeds=6, worlds=200, resamples=50)
    assert mean.truth == pytest.approx(np.mean([run.miou for run in ours]))
    assert difference.truth == pytest.approx(mean.truth - np.mean([run.miou for run in theirs]))
    for one in (mean, difference):
        assert len(one.found) == 200 and 0.88 <= one.held / 200 < 1
        assert np.mean([interval.value for interval in one.found]) == pytest.approx(one.truth, abs=0.01)
    assert np.std([interval.value for interval in mean.found]) > 0.005  # worlds differ


def test_intervals_that_hold_the_truth_are_counted():
    found = [Interval(0.5, 0.4, 0.6), Interval(0.7, 0.55, 0.85), Interval(0.5, 0.45, 0.55), Interval(0.4, 0.3, 0.5)]
    one = Coverage(0.5, found)
    assert one.held == 3
    assert one.cells() == ["50.0", "2.5", "10.0", "75.0", "[30.1, 95.4]"]  # Wilson's interval, 3 of 4


def test_a_row_for_each_data_set_source_score_and_value(monkeypatch, capsys):
    rng = np.random.default_rng(1)
    stored = {(m, s): [seed_of(rng, 0.6), seed_of(rng, 0.6)] for m in METHODS for s in ("synthetic", "web")}
    run = pd.DataFrame(columns=["dataset", "split", "method"])
    for name, answer in (("current_runs", run), ("require", None), ("stored_scores", stored)):
        monkeypatch.setattr(f"benchmarks.coverage.tables.{name}", lambda *_, answer=answer: answer)
    monkeypatch.setattr("sys.argv", ["coverage", "--profile", "smoke", "--images", "30", "--worlds", "5"])
    main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 * 2 * 2 * 2 and {len(row) for row in rows} == {11}
    assert rows[1][:6] == ["voc", "synthetic", "30", "2", "mIoU", "U-SAM"]


def test_too_few_images_are_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["coverage", "--images", "1"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--images 1: choose 2 or more" in capsys.readouterr().err


def test_a_run_without_results_is_an_error_of_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["coverage", "--profile", "smoke"])
    with pytest.raises(SystemExit, match=r"error: .*runs\.csv has no run of this profile: run notebook 04_evaluate"):
        main()
