"""Which rows of runs.csv a table of the profile may use."""

import pandas as pd
import pytest

from usam import profiles, report, runs, scoring
from usam.errors import UserError


@pytest.fixture
def smoke(tmp_path, monkeypatch) -> profiles.Profile:
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path))
    return profiles.load("smoke")


def record(profile: profiles.Profile, **row) -> None:
    same = {"profile": profile.name, "dataset": "voc", "split": "test", "source": "web", "method": "U-SAM"}
    same |= {"state": scoring.state(profile), "parameters": profile.decisive()}
    runs.record(report.runs_file(profile), **same | row)


def test_rows_of_other_settings_code_and_seeds_stay_out(smoke):
    other = smoke.model_copy(update={"head": smoke.head.model_copy(update={"a": 2.0})})
    for seed, profile in (0, smoke), (1, smoke), (7, smoke), (0, other):
        record(profile, seed=seed, miou=seed / 10)
    record(smoke, seed=1, source="synthetic", state="of older code", miou=0.9)
    record(smoke, seed=None, method="our masks + true labels", miou=0.5)
    rows = report.current_runs(smoke)
    assert rows["seed"].fillna(-1).tolist() == [0, 1, -1] and rows["miou"].tolist() == [0.0, 0.1, 0.5]
    assert len(report.read_runs(smoke)) == 6


def test_commits_that_look_like_numbers_stay_text(smoke, monkeypatch):
    monkeypatch.setattr(runs, "commit", lambda: "1234567e8901")
    record(smoke, seed=0, miou=0.5)
    assert report.current_runs(smoke)["commit"].tolist() == ["1234567e8901"]


def test_no_row_names_the_notebook_that_makes_them(smoke):
    with pytest.raises(UserError, match="04_evaluate"):
        report.current_runs(smoke)
    record(smoke, seed=9, miou=0.5)
    with pytest.raises(UserError, match="04_evaluate"):
        report.current_runs(smoke)


def test_damaged_runs_file_is_one_line(smoke):
    report.runs_file(smoke).parent.mkdir()
    report.runs_file(smoke).write_bytes(b"")
    for action in (lambda: report.read_runs(smoke), lambda: record(smoke, seed=0)):
        with pytest.raises(UserError, match=r"runs\.csv cannot be read .*: restore it"):
            action()


def test_difference_pairs_seeds():
    one = pd.DataFrame({"seed": [0, 1, 2], "miou": [0.3, 0.5, 0.9]})
    other = pd.DataFrame({"seed": [1, 0], "miou": [0.1, 0.2]})
    assert report.difference(one, other, "miou").to_dict() == pytest.approx({0: 0.1, 1: 0.4})


def test_first_seed_can_be_chosen():
    assert profiles.load("mini").seeds == (0, 1, 2)
    assert profiles.load("mini", seed=7).seeds == (7, 0, 1)
    assert profiles.load("mini", seed=2).seeds == (2, 0, 1)
    assert profiles.load("mini", seed=0) == profiles.load("mini")


def test_score_table_keeps_the_order_of_the_runs():
    run = pd.DataFrame(
        [("voc", "test", "web", "U-SAM", s, m, a) for s, m, a in [(0, 0.10, 0.3), (1, 0.14, 0.3)]]
        + [("voc", "test", "any", "oracle", 0, 0.5, float("nan"))],
        columns=["dataset", "split", "source", "method", "seed", "miou", "map50"],
    )
    table = report.score_table(run)
    assert table.to_numpy().tolist() == [
        ["voc", "test", "web", "U-SAM", "12.00 ± 2.83", "30.00 ± 0.00", 2],
        ["voc", "test", "any", "oracle", "50.00", "not run", 1],
    ]


def test_require_names_the_first_row_that_is_missing(smoke):
    splits = {w: config.split for w, config in smoke.datasets.items()}
    rows = [(w, splits[w], s, "U-SAM", k) for w in splits for s in smoke.sources for k in smoke.seeds]
    run = pd.DataFrame(rows, columns=["dataset", "split", "source", "method", "seed"])
    report.require(run, smoke, "U-SAM", "04_evaluate")
    with pytest.raises(UserError, match=r"lacks 8 rows of SAM\+CLIP.*05_sam_clip"):
        report.require(run, smoke, "SAM+CLIP", "05_sam_clip")
    run.loc[3, "split"] = "val"  # the fourth: voc, web, seed 1
    with pytest.raises(UserError, match="lacks 1 rows of U-SAM, first voc, web images, seed 1"):
        report.require(run, smoke, "U-SAM", "04_evaluate")


def test_differences_bear_their_sign():
    values = pd.Series([0.10, 0.12])
    assert report.mean_sd(values) == "11.00 ± 1.41" and report.mean_sd(values, "+") == "+11.00 ± 1.41"
    assert report.mean_sd(-values[:1], "+") == "-10.00" and report.mean_sd(values[:0], "+") == "not run"
