"""Scoring: what is computed once, what is computed again, and what stands in runs.csv."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from usam import paths
from usam.data.datasets import VOID
from usam.errors import UserError
from usam.evaluation import intervals
from usam.pipeline import scoring, stages
from usam.pipeline.methods import Ready
from usam.profiles import Profile


@pytest.fixture
def results(tiny: Profile, tmp_path, monkeypatch):
    """runs.csv of the tiny profile."""
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    return paths.results(tiny.name) / "runs.csv"


def test_a_score_is_kept_image_by_image_and_not_computed_again(tiny, results, monkeypatch):
    first = scoring.score(tiny, "voc", "web", 0)
    row = pd.read_csv(results).iloc[0]
    assert (row["miou"], row["map50"]) == pytest.approx((first.miou, first.map50), nan_ok=True)
    assert first.confusion.shape == (2, 3, 3)  # test images, two classes and background
    results.unlink()
    monkeypatch.setattr(scoring, "evaluate", None)
    again = scoring.score(tiny, "voc", "web", 0)
    assert (again.confusion == first.confusion).all()
    pd.testing.assert_series_equal(pd.read_csv(results).iloc[0], row)  # with the time and commit of its making


def test_painting_nothing_is_right_about_the_background_alone(tiny, results):
    floor = scoring.score(tiny, "voc", "none", None, "all background")
    total = floor.confusion.sum(0)
    assert total[:, 1:].sum() == 0  # no pixel has a class
    assert floor.iou[0] == total[0, 0] / total.sum() and np.nansum(floor.iou[1:]) == 0 and floor.map50 == 0


def test_a_method_that_labels_pixels_has_no_mean_average_precision(tiny, results):
    def ready() -> Ready:
        return Ready(lambda example, _found: np.where(example.semantic == VOID, 0, example.semantic))

    first = scoring.evaluated(tiny, "voc", "none", None, "truth", ready)
    assert first.miou == 1 and np.isnan(first.map50) and first.matches is None
    assert pd.read_csv(results)["map50"].isna().all()
    again = scoring.evaluated(tiny, "voc", "none", None, "truth", None)  # stored
    assert again.matches is None and (again.confusion == first.confusion).all()
    assert np.isnan(intervals.mean([again], "map50").value) and intervals.mean([again], "miou").value == 1


def test_other_settings_seeds_and_splits_have_scores_of_their_own(tiny, results):
    stricter = tiny.changed({"inference.score_threshold": 1.0})
    for profile, seed, split in (tiny, 0, None), (tiny, 1, None), (tiny, 0, "val"), (stricter, 0, None):
        scoring.score(profile, "voc", "web", seed, split=split)
    assert len(pd.read_csv(results)) == len(list(paths.data().glob("smoke/scores/*.npz"))) == 4


def test_a_changed_annotation_of_a_real_set_is_scored_again(tiny, results):
    stages.dataset(tiny, "voc")
    root = paths.data() / "smoke" / "VOC2012"
    (root / stages.STAMP).unlink()
    shutil.move(root, paths.data() / "real")
    voc = tiny.datasets["voc"].model_copy(update={"maker": None, "root": "real"})
    real = tiny.model_copy(update={"datasets": {"voc": voc}})
    first = scoring.score(real, "voc", "web", 0)
    one = min((paths.data() / "real" / "SegmentationClass").glob("test*.png"))
    picture = Image.open(one)
    blank = picture.point(lambda _value: 0)
    blank.putpalette(picture.getpalette())
    blank.save(one)
    objects = paths.data() / "real" / "SegmentationObject" / one.name
    blank.save(objects)
    again = scoring.score(real, "voc", "web", 0)
    assert again.confusion[:, 1:].sum() < first.confusion[:, 1:].sum()  # what was an object is background now
    assert len(pd.read_csv(results)) == 1


def test_a_damaged_score_is_computed_again(tiny, results):
    first = scoring.score(tiny, "voc", "web", 0)
    (file,) = paths.data().glob("smoke/scores/*.npz")
    for content in (b"", file.read_bytes()[:500], b"PK nothing"):
        file.write_bytes(content)
        assert (scoring.score(tiny, "voc", "web", 0).confusion == first.confusion).all()
    assert len(pd.read_csv(results)) == 1


def test_a_full_disk_is_one_line(tiny, results, monkeypatch):
    stages.heads(tiny, "voc", "web", 0)
    stages.embeddings(tiny, "voc")

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*npz: No space left on device"):
        scoring.score(tiny, "voc", "web", 0)


def test_unknown_method(tiny):
    with pytest.raises(UserError, match="no method 'MIL': choose from U-SAM, MIL only"):
        scoring.score(tiny, "voc", "web", 0, "MIL")
