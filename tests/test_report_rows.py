"""Tables and claims: which rows of runs.csv they use, and what they say about them."""

import re
import time

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from usam import machine, profiles
from usam.errors import UserError
from usam.evaluation.intervals import Interval
from usam.evaluation.metrics import match
from usam.evaluation.scores import Scores
from usam.pipeline import scoring
from usam.pipeline.records import record
from usam.profiles import Profile
from usam.report import claims, paper, tables
from usam.report.claims import Run


@pytest.fixture
def smoke(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path))
    return profiles.load("smoke")


def row_of(profile: Profile, **row) -> None:
    same = {"profile": profile.name, "dataset": "voc", "split": "test", "source": "web", "method": "U-SAM"}
    same |= {"state": scoring.state(profile), "parameters": profile.decisive()}
    record(tables.runs_file(profile), same | row)


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
    for action in (lambda: tables.read_runs(smoke), lambda: record(tables.runs_file(smoke), {"seed": 0})):
        with pytest.raises(UserError, match=r"runs\.csv cannot be read .*: restore it"):
            action()


def test_first_seed_can_be_chosen():
    assert profiles.load("study").seeds[:3] == (0, 1, 2) and len(profiles.load("study").seeds) == 10
    assert profiles.load("study", seed=70).seeds == (70, *range(9))
    assert profiles.load("study", seed=2).seeds == (2, 0, 1, *range(3, 10))
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
        ["voc", "test", "web", "U-SAM", "12.0 ± 2.8", "30.00 ± 0.00", 2],
        ["voc", "test", "any", "oracle", "50.0", "–", 1],
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
    assert tables.mean_sd(values) == "11.0 ± 1.4" and tables.mean_sd(10 * values) == "110 ± 14"
    assert tables.mean_sd(values / 10) == "1.10 ± 0.14"
    assert tables.mean_sd(-values[:1]) == "-10.0" and tables.mean_sd(values[:0]) == "not run"
    assert tables.mean_sd(values * float("nan")) == "–"  # run, but a method that labels pixels has no mAP50


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
        ["U-SAM", "web", "22.42", "42.0 ± 2.8", "[40, 50]", "45.59", "60.00 ± 0.00", "[40, 50]", 2],
    ]
    assert calls == [(["scores"], "miou"), (["scores"], "map50")]


def row(claim: str, here: str, p: str, on: str = "voc, web", score: str = "mIoU") -> dict[str, str]:
    return {"claim": claim, "where": "", "on": on, "score": score, "paper": "–", "here": here, "95%": "", "p": p}


def test_readings_follow_from_p_values_adjusted_over_the_whole_family():
    """Five tests, by hand: p times 5 / rank, and no more than that of the next rank."""
    p = ["0.04", "0.001", "–", "0.03", claims.AT_FLOOR, "0.5", "–", "0.0002"]
    here = ["+1", "-2.0", "not run", "+3.00", "+4", "+5", "undefined", "+6"]
    table = claims.read([row("a", *cells) for cells in zip(here, p, strict=True)])
    assert table["adjusted p"].tolist() == ["0.05", "0.0025", "–", "0.05", "–", "0.5", "–", "0.001"]
    assert table["reading"].tolist() == [
        "cannot tell", "does not hold here", "not run", "cannot tell", claims.AT_FLOOR, "cannot tell", "cannot tell",
        "holds here",
    ]  # fmt: skip
    assert claims.family(table) == (
        "Of 5 tested comparisons, 2 are decided at a false discovery rate of 5%: 1 for the claim, and 1 against it. "
        "Without this control, 4 would have been decided."
    )


def test_a_single_test_needs_no_adjustment_and_no_test_has_none():
    table = claims.read([row("a", "+1", "0.049"), row("a", "not run", "–")])
    assert table["adjusted p"].tolist() == ["0.049", "–"] and table["reading"].tolist() == ["holds here", "not run"]
    assert claims.read([row("a", "not run", "–")])["reading"].tolist() == ["not run"]
    assert claims.family(claims.read([])).startswith("Of 0 tested comparisons, 0 are decided")


def test_one_sentence_for_each_claim():
    table = claims.read(
        [
            row("good", "+1", "0.001"), row("good", "+1", "0.001", score="mAP50"),
            row("mixed", "+1", "0.001"), row("mixed", "-1", "0.001", "coco, web"),
            row("mixed", "-1", "0.9", "coco, web", "mAP50"), row("mixed", "+1", claims.AT_FLOOR, "voc, synthetic"),
            row("absent", "not run", "–"),
        ]
    )  # fmt: skip
    assert claims.sentences(table) == [
        "good: holds in 2 of 2 comparisons.",
        "mixed: holds in 1 of 4 comparisons, does not hold in 1 (coco, web: mIoU), undecided in 1 (coco, web: mAP50), "
        "baseline at the floor in 1 (voc, synthetic: mIoU).",
        "absent: not run in 1 of 1 comparison.",
    ]


def test_a_table_in_three_formats(smoke):
    table = pd.DataFrame({"a_b": ["1.00 ± 0.50", "–"], "95%": ["[0.50, 1.50]", "not run"]})
    file = tables.write_table(smoke, "t", table, "50% of it")
    assert pd.read_csv(file.with_suffix(".csv"), dtype=str).equals(table)
    latex = file.with_suffix(".tex").read_text()
    assert r"a\_b & 95\% \\" in latex and r"1.00 ± 0.50 & [0.50, 1.50] \\" in latex and r"50\% of it" in latex
    assert tables.read_table(smoke, "t", "09_tables").equals(table)
    with pytest.raises(UserError, match=r"u\.csv is missing: run notebook 09_tables first"):
        tables.read_table(smoke, "u", "09_tables")


def test_a_table_of_other_settings_or_seeds_is_an_error(smoke):
    tables.write_table(smoke, "t", pd.DataFrame({"a": ["1"]}), "some")
    tables.read_table(smoke, "t", "07_ablation")
    for other in smoke.changed({"head.a": 3}), profiles.load("smoke", seed=5):
        with pytest.raises(UserError, match=r"t\.csv is of other settings, seeds or code: run notebook 07_ablation"):
            tables.read_table(other, "t", "07_ablation")


def test_an_effect_in_cells():
    gain, undefined = Interval(0.05, 0.01, 0.09, 0.012345), Interval(*[float("nan")] * 3)
    for here, cells in (
        (gain, ["+5", "[1, 9]", "0.0123"]),
        (gain._replace(low=float("nan"), high=float("nan"), p=float("nan")), ["+5.0", "–", "–"]),
        (None, ["not run", "–", "–"]),
        (undefined, ["undefined", "–", "–"]),
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
    assert float(miou.pop("p")) < 1e-9
    assert miou == label | dict(score="mIoU", paper="+9.00", here=f"+{gain:.2f}") | {"95%": f"[{gain:.2f}, {gain:.2f}]"}
    assert map50["paper"] == "–" and map50["here"] == "undefined" and map50["p"] == "–"


def test_a_method_without_rows_was_not_run():
    (miou,) = claims.compare("better", "Table 1", ours, rival, PRINTED, {ours: [scores(10)]})
    assert (miou["score"], miou["paper"], miou["here"], miou["95%"]) == ("mIoU", "+9.00", "not run", "–")
    rows = claims.compare("better", "", ours, baseline, PRINTED, {ours: [scores(10)], baseline: [scores(5)]})
    assert [row["paper"] for row in rows] == ["–", "–"] and rows[0]["here"].startswith("+")
    rows = claims.compare("better", "", ours, baseline, PRINTED, {ours: [scores(10)]})
    assert [(row["paper"], row["here"]) for row in rows] == [("–", "not run")] * 2  # neither has it


def test_to_beat_what_paints_nothing_is_no_reading():
    floor = Run("voc", *claims.FLOOR)
    here = {ours: [scores(10)], baseline: [scores(5)], floor: [scores(5)]}
    assert claims.compare("better", "", ours, baseline, {}, here)[0]["p"] == claims.AT_FLOOR
    assert claims.compare("better", "", ours, baseline, {}, here | {floor: [scores(1)]})[0]["p"] != claims.AT_FLOOR


def test_other_training_images_of_the_second_run_are_named():
    second = Run("voc", "ACR", "synthetic")
    (miou,) = claims.compare("better", "", ours, second, {ours: (22.42, 45.59), second: (3.49, None)}, {})
    assert (miou["on"], miou["paper"]) == ("voc, web against synthetic", "+18.93")
    assert claims.compare("better", "", ours, Run("voc", "SAM+CLIP", "none"), {}, {})[0]["on"] == "voc, web"


def test_headlines_of_the_text_are_differences_of_the_tables():
    values = {(w, *row[:2]): row[2] for w, rows in (("voc", paper.TABLE_1), ("coco", paper.TABLE_2)) for row in rows}
    for w, source, method, other, difference, _ in paper.HEADLINES:
        assert values[w, "U-SAM", source] - values[w, method, other] == pytest.approx(difference)


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
