"""One setting changed at a time."""

import pandas as pd
import pytest

from usam import ablation, paths, sam, scoring


def test_a_sweep_scores_each_value_with_all_seeds(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    table = ablation.sweep(tiny, "voc", "web", "val", "inference.nms_iou", [0.3, 0.5])
    assert table[["value", "default", "score"]].to_numpy().tolist() == [
        ["0.3", False, "miou"], ["0.3", False, "map50"], ["0.5", True, "miou"], ["0.5", True, "map50"],
    ]  # fmt: skip
    rows = pd.read_csv(paths.results("smoke") / "runs.csv")
    assert len(rows) == 4 and set(rows["seed"]) == {0, 1} and set(rows["split"]) == {"val"}
    own = [scoring.score(tiny, "voc", "web", k, split="val").miou for k in tiny.seeds]
    assert table.loc[2, "mean"] == pytest.approx(sum(own) / 2)


def test_another_mask_of_sam_keeps_the_head(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    ablation.sweep(tiny, "voc", "web", "val", "sam.mask_choice", ["best"])
    heads = sorted(paths.data().glob("smoke/heads/*"))
    taken = []
    monkeypatch.setattr(sam.Extractor, "__call__", counted(sam.Extractor.__call__, taken))
    table = ablation.sweep(tiny, "voc", "web", "val", "sam.mask_choice", ["single"])
    assert not table["default"].any() and sorted(paths.data().glob("smoke/heads/*")) == heads
    assert len(taken) == 1  # the one validation image, and no training image


def counted(function, calls: list):
    def call(self, image):
        calls.append(image.shape)
        return function(self, image)

    return call
