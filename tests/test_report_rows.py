"""Tables and claims: which rows of runs.csv they use, and what they say about them."""

import re
import time

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from usam import machine, profiles
from usam.config import Profile
from usam.errors import UserError
from usam.evaluation.intervals import Interval
from usam.evaluation.metrics import match
from usam.evaluation.scores import Scores
from usam.pipeline import scoring
from usam.pipeline.records import record
from usam.report import claims, paper, tables
from usam.report.claims import Run


@pytest.fixture
def smoke(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path))
    return profiles.load("smoke")


def row_of(profile: Profile, **row) -> None:
    same = {"profile": profile.name, "dataset": "voc", "split": "test", "source": "web", "method": "U-SAM"}
    same |= {"state": scoring.state(profile), "parameters": profile.decisive()}
    record(tables.runs_file(profile), **same | row)


def test_rows_of_other_settings_code_and_seeds_are_not_used(smoke):
    other = smoke.model_copy(update={"head": smoke.head.model_copy(update={"a": 2.0})})
    for seed, profile in (0, smoke), (1, smoke), (7, smoke), (0, other):
        row_of(profile, seed=seed, miou=seed / 10)
    row_of(smoke, seed=1, source="synthetic", state="of older code", miou=0.9)
    row_of(smoke, seed=None, method="our masks + true labels", miou=0.5)
    rows = tables.current_runs(smoke)
    assert rows["seed"].fillna(-1).tolist() == [0, 1, -1] and rows["miou"].tolist() == [0.0, 0.1, 0.5]
    assert len(tables.read_runs(smoke)) == 6


def test_commits_that_look_like_numbers_are_text(smoke, monkeypatch):
    monkeypatch.setattr(machine, "commit", lambda: "1234567e8901")
    row_of(smoke, seed=0, miou=0.5)
    assert tables.current_runs(smoke)["commit"].tolist() == ["1234567e8901"]


def test_no_row_names_the_notebook_that_writes_them(smoke):
    with pytest.raises(UserError, match="04_evaluate"):
        tables.current_runs(smoke)
    row_of(smoke, seed=9, miou=0.5)
    with pytest.raises(UserError, match="04_evaluate"):
        tables.current_runs(smoke)


def test_damaged_runs_file_is_an_error_of_one_line(smoke):
    tables.runs_file(smoke).parent.mkdir()
    tables.runs_file(smoke).write_bytes(b"")
    for action in (lambda: tables.read_runs(smoke), lambda: record(tables.runs_file(smoke), seed=0)):
        with pytest.raises(UserError, match=r"runs\.csv cannot be read .*: restore it"):
            action()


def test_first_seed_can_be_chosen():
    assert profiles.load("mini").seeds == (0, 1, 2)
    assert profiles.load("mini", seed=7).seeds == (7, 0, 1)
    assert profiles.load("mini", seed=2).seeds == (2, 0, 1)
    assert profiles.load("mini", seed=0) == profiles.load("mini")


def test_settings_without_an_explanation_are_listed_all_the_same(smoke):
    class Plain(BaseModel):
        side: int = 64

    source = smoke.sources["web"].model_copy(update={"settings": Plain()})
    table = tables.settings(smoke.model_copy(update={"sources": {"toy": source}})).set_index("setting")
    assert table.loc["sources.toy.settings.side"].tolist() == ["64", ""]


def test_score_table_has_the_order_of_the_runs():
    run = pd.DataFrame(
        [("voc", "test", "web", "U-SAM", s, m, a) for s, m, a in [(0, 0.10, 0.3), (1, 0.14, 0.3)]]
        + [("voc", "test", "any", "oracle", 0, 0.5, float("nan"))],
        columns=["dataset", "split", "source", "method", "seed", "miou", "map50"],
    )
    table = tables.score_table(run)
    assert table.to_numpy().tolist() == [
        ["voc", "test", "web", "U-SAM", "12.00 ± 2.83", "30.00 ± 0.00", 2],
        ["voc", "test", "any", "oracle", "50.00", "not run", 1],
    ]


def test_require_names_the_first_row_that_is_missing(smoke):
    splits = {w: config.split for w, config in smoke.datasets.items()}
    rows = [(w, splits[w], s, "U-SAM", k) for w in splits for s in smoke.sources for k in smoke.seeds]
    run = pd.DataFrame(rows, columns=["dataset", "split", "source", "method", "seed"])
    tables.require(run, smoke, "U-SAM", "04_evaluate")
    with pytest.raises(UserError, match=r"lacks 8 rows of SAM\+CLIP.*05_sam_clip"):
        tables.require(run, smoke, "SAM+CLIP", "05_sam_clip")
    run.loc[3, "split"] = "val"  # the fourth: voc, web, seed 1
    with pytest.raises(UserError, match="lacks 1 rows of U-SAM, first voc, web images, seed 1"):
        tables.require(run, smoke, "U-SAM", "04_evaluate")


def test_mean_and_deviation_as_text():
    values = pd.Series([0.10, 0.12])
    assert tables.mean_sd(values) == "11.00 ± 1.41"
    assert tables.mean_sd(-values[:1]) == "-10.00" and tables.mean_sd(values[:0]) == "not run"


def test_beside_the_paper_stand_mean_deviation_and_interval(monkeypatch):
    run = pd.DataFrame(
        [("U-SAM", "web", 0, 0.40, 0.6), ("U-SAM", "web", 1, 0.44, 0.6)],
        columns=["method", "source", "seed", "miou", "map50"],
    )
    calls = []

    def mean(scores: list, score: str) -> Interval:
        calls.append((scores, score))
        return Interval(0.42, 0.4, 0.5)

    monkeypatch.setattr(tables.intervals, "mean", mean)
    rows = [("Leopart", "web", 6.79, None), ("U-SAM", "web", 22.42, 45.59)]
    table = tables.beside_paper(rows, run, {("U-SAM", "web"): ["scores"]})
    assert table.to_numpy().tolist() == [
        ["Leopart", "web", "6.79", "not run", "–", "–", "not run", "–", 0],
        ["U-SAM", "web", "22.42", "42.00 ± 2.83", "[40.00, 50.00]", "45.59", "60.00 ± 0.00", "[40.00, 50.00]", 2],
    ]
    assert calls == [(["scores"], "miou"), (["scores"], "map50")]


@pytest.mark.parametrize(
    "low, high, words",
    [(0.01, 0.2, "holds here"), (-0.2, -0.01, "does not hold here"), (-0.1, 0.1, "cannot tell"),
     (0.0, 0.1, "cannot tell"), (float("nan"), float("nan"), "cannot tell")],
)  # fmt: skip
def test_reading_of_an_effect(low, high, words):
    assert claims.effect("mIoU", None, Interval(0.05, low, high))["reading"] == words


def test_a_table_in_three_formats(smoke):
    table = pd.DataFrame({"a_b": ["1.00 ± 0.50", "–"], "95%": ["[0.50, 1.50]", "not run"]})
    file = tables.write_table(smoke, "t", table, "50% of it")
    assert pd.read_csv(file.with_suffix(".csv"), dtype=str).equals(table)
    latex = file.with_suffix(".tex").read_text()
    assert r"a\_b & 95\% \\" in latex and r"1.00 ± 0.50 & [0.50, 1.50] \\" in latex and r"50\% of it" in latex
    assert tables.read_table(smoke, "t", "08_tables").equals(table)
    with pytest.raises(UserError, match=r"u\.csv is missing: run notebook 08_tables first"):
        tables.read_table(smoke, "u", "08_tables")


def test_a_table_of_other_settings_or_seeds_is_an_error(smoke):
    tables.write_table(smoke, "t", pd.DataFrame({"a": ["1"]}), "some")
    tables.read_table(smoke, "t", "06_ablation")
    for other in smoke.changed("head.a", 3), profiles.load("smoke", seed=5):
        with pytest.raises(UserError, match=r"t\.csv is of other settings, seeds or code: run notebook 06_ablation"):
            tables.read_table(other, "t", "06_ablation")


def test_an_effect_in_cells():
    gain, undefined = Interval(0.05, 0.01, 0.09), Interval(*[float("nan")] * 3)
    for here, cells in (
        (gain, ["+5.00", "[1.00, 9.00]", "holds here"]),
        (None, ["not run", "–", "cannot tell"]),
        (undefined, ["undefined", "–", "cannot tell"]),
    ):
        assert list(claims.effect("mIoU", 2.3, here).values()) == ["mIoU", "+2.30", *cells]


def test_missing_scores_name_the_notebooks(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_DATA", str(tmp_path / "data"))
    row_of(smoke, seed=0, miou=0.5)
    with pytest.raises(UserError, match=r"scores of U-SAM, voc, are not in .*04_evaluate and 05_sam_clip"):
        tables.stored_scores(smoke, tables.current_runs(smoke))


def test_cost_of_a_notebook_replaces_the_previous_one(smoke, capsys):
    for notebook in ("02_b", "01_a", "02_b"):
        tables.notebook_cost(smoke, notebook, time.perf_counter() - 5)
    costs = tables.read_costs(smoke)
    assert costs["notebook"].tolist() == ["01_a", "02_b"] and (costs["seconds"].round() == 5).all()
    assert capsys.readouterr().out.startswith("5 s, peak memory ")


def scores(right: int) -> Scores:
    """Three images of 20 pixels; of the ten pixels of the only class, `right` are found, and there are no objects."""
    confusion = np.array([[[10, 0], [10 - right, right]]] * 3, np.int32)
    return Scores(confusion, match([(k, (4, 5), []) for k in range(3)], [], 1))


ours, rival, baseline = (Run("voc", method, "web") for method in ("U-SAM", "ACR", "another method"))
PRINTED = {ours: (22.42, 45.59), rival: (13.42, None)}


def test_a_claim_compares_the_rows_of_the_paper_and_of_the_run():
    here = {ours: [scores(10), scores(10)], rival: [scores(5), scores(5)]}
    miou, map50 = claims.compare("better", "Table 1", ours, rival, PRINTED, here)
    label = {"claim": "better", "where": "Table 1", "on": "voc, web"}
    gain = 100 - 100 * (5 / 10 + 10 / 15) / 2
    assert miou == label | dict(score="mIoU", paper="+9.00", here=f"+{gain:.2f}", reading="holds here") | {
        "95%": f"[{gain:.2f}, {gain:.2f}]"
    }
    assert map50["paper"] == "–" and map50["here"] == "undefined" and map50["reading"] == "cannot tell"


def test_a_method_without_rows_was_not_run():
    (miou,) = claims.compare("better", "Table 1", ours, rival, PRINTED, {ours: [scores(10)]})
    assert (miou["score"], miou["paper"], miou["here"], miou["95%"]) == ("mIoU", "+9.00", "not run", "–")
    rows = claims.compare("better", "", ours, baseline, PRINTED, {ours: [scores(10)], baseline: [scores(5)]})
    assert [row["paper"] for row in rows] == ["–", "–"] and rows[0]["here"].startswith("+")
    assert claims.compare("better", "", ours, baseline, PRINTED, {ours: [scores(10)]}) == []


def test_to_beat_what_paints_nothing_is_no_reading():
    floor = Run("voc", *claims.FLOOR)
    here = {ours: [scores(10)], baseline: [scores(5)], floor: [scores(5)]}
    assert claims.compare("better", "", ours, baseline, {}, here)[0]["reading"] == claims.AT_FLOOR
    assert claims.compare("better", "", ours, baseline, {}, here | {floor: [scores(1)]})[0]["reading"] == "holds here"


def test_a_claim_about_two_data_sets_resamples_each_for_itself(monkeypatch):
    other, calls = Run("coco", "U-SAM", "web"), []
    monkeypatch.setattr(claims.intervals, "difference", lambda *call: calls.append(call) or Interval(0.1, 0.0, 0.2))
    here = {ours: [scores(10)], other: [scores(5)]}
    rows = claims.compare(
        "COCO is harder", "Tables 1 and 2", ours, other, {ours: (22.42, 45.59), other: (9.01, 31.8)}, here
    )
    assert [(row["on"], row["paper"]) for row in rows] == [("web", "+13.41"), ("web", "+13.79")]
    assert [call[2:] for call in calls] == [("miou", False), ("map50", False)]


def test_numbers_of_the_contradictions_are_those_of_the_tables():
    tables_of_paper = (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3_VOC, paper.TABLE_3_COCO, paper.TABLE_4_VOC)
    printed = {value for rows in (*tables_of_paper, paper.TABLE_4_COCO) for row in rows for value in row[2:] if value}
    differences = {round(a - b, 2) for a in printed for b in printed}
    wrong = {2.53, 6.56, 5.0}  # printed differences that are not those of the values, and "+5%"
    for line in paper.CONTRADICTIONS:
        for sign, number in re.findall(
            r"(\+?)(\d+(?:\.\d+)?)(?=%|\b)", re.sub(r"Tables? \d( and \d)?|MSCOCO-80|mAP50", "", line)
        ):
            assert float(number) in (differences | wrong if sign else printed), (number, line)
