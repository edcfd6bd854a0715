"""One setting changed at a time."""

import numpy as np
import pandas as pd
import pytest

from usam import paths
from usam.evaluation.metrics import match
from usam.evaluation.scores import Scores
from usam.method import sam
from usam.pipeline import scoring, sweeps
from usam.report import tables


def test_a_sweep_scores_each_value_with_all_seeds(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    table = sweeps.sweep(tiny, "voc", "web", "val", "inference.nms_iou", [0.5, 0.3, 0.3])
    wanted = [[v, v == "0.5", score] for v in ("0.3", "0.5") for score in ("miou", "miou_objects", "map50")]
    assert table[["value", "default", "score"]].to_numpy().tolist() == wanted
    rows = pd.read_csv(paths.results("smoke") / "runs.csv")
    assert len(rows) == 4 and set(rows["seed"]) == {0, 1} and set(rows["split"]) == {"val"}
    own = [scoring.score(tiny, "voc", "web", k, split="val").miou for k in tiny.seeds]
    assert table.loc[3, "mean"] == pytest.approx(sum(own) / 2)


@pytest.mark.parametrize(
    "key, values, order, own",
    [
        ("head.a", [50, 2], ["2", "10", "50"], "10"),
        ("grid", [8, 5], ["5", "8", "all"], "all"),
        ("head.widths", [(512, 256, 128), (64, 32, 16)], ["64 · 32 · 16", "512 · 256 · 128"], "512 · 256 · 128"),
        ("distillation.reduction", ["mean"], ["mean", "sum"], "sum"),
        ("inference.nms_per_class", [True, False], ["False", "True"], "False"),
    ],
)
def test_the_profile_s_own_value_is_among_them_once(tiny, monkeypatch, key, values, order, own):
    monkeypatch.setattr(sweeps.stages, "heads", lambda *_: None)
    monkeypatch.setattr(sweeps, "_score", lambda _profile, changed, *_rest: changed)
    monkeypatch.setattr(sweeps.scoring, "score_each", lambda tried, *_rest, **_options: tried)
    monkeypatch.setattr(sweeps.intervals, "mean", lambda *_: (0.5, 0.4, 0.6))
    table = sweeps.sweep(tiny, "voc", "web", "val", key, values).query("score == 'miou'")
    assert table["value"].tolist() == order and table.loc[table["default"], "value"].tolist() == [own]


def test_another_mask_of_sam_keeps_the_head(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    sweeps.sweep(tiny, "voc", "web", "val", "sam.mask_choice", ["best"])
    heads = sorted(paths.data().glob("smoke/heads/*"))
    taken = []
    monkeypatch.setattr(sam.Extractor, "prepare", counted(sam.Extractor.prepare, taken))
    table = sweeps.sweep(tiny, "voc", "web", "val", "sam.mask_choice", ["single"])
    assert table["default"].tolist() == [False] * 3 + [True] * 3 and sorted(paths.data().glob("smoke/heads/*")) == heads
    assert len(taken) == 1  # the one validation image, and no training image


def test_another_grid_of_sam_trains_another_head(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    sweeps.sweep(tiny, "voc", "web", "val", "sam.points_per_side", [10, 3])
    students = {p.name for p in paths.data().glob("smoke/heads/*student*.safetensors")}
    assert len(students) == 4  # two seeds, two grids


def counted(function, calls: list):
    def call(self, image):
        calls.append(image.shape)
        return function(self, image)

    return call


def test_settings_beyond_the_paper_and_others_are_scored_with_all_seeds(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    four = tiny.datasets["voc"].model_copy(update={"classes": ["bicycle", "car", "dog", "sofa"]})
    profile = tiny.model_copy(update={"datasets": {"voc": four}})
    beyond = sweeps.beyond_the_paper(profile, "voc", "web", "val")
    assert list(beyond) == ["the paper's protocol", *sweeps.BEYOND_THE_PAPER]
    others = sweeps.others(profile, "voc", "web", "val")
    assert list(others) == ["2 of the classes, the paper's protocol", "2 of the classes, nothing of these: the others"]
    assert all(len(scores) == 2 for scores in (*beyond.values(), *others.values()))
    assert next(iter(others.values()))[0].confusion.shape[1:] == (3, 3)  # bicycle, dog and background
    rows = pd.read_csv(paths.results("smoke") / "runs.csv")
    assert sorted(rows.loc[rows["dataset"] == "voc, grouped", "seed"]) == [0, 0, 1, 1]


def test_gains_over_the_first_row_are_in_percentage_points():
    def scores(right: int) -> Scores:
        confusion = np.array([[[right, 10 - right], [0, 10]]] * 3, np.int32)
        return Scores(confusion, match([(k, (4, 5), []) for k in range(3)], [], 1))

    table = tables.over_the_first({"one": [scores(5), scores(5)], "two": [scores(10), scores(10)]})
    assert table["mIoU"].tolist() == [f"{100 * (5 / 10 + 10 / 15) / 2:.2f}", "100.00"]
    assert table["mIoU, difference"].tolist() == ["", "+41.67"]
