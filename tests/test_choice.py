"""Settings chosen on the validation split."""

import pandas as pd
import pytest

from usam import paths
from usam.errors import UserError
from usam.pipeline import choice, scoring, stages
from usam.profiles import SearchConfig
from usam.report import tables


@pytest.fixture
def searching(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    search = SearchConfig(heads=[{"head.a": 3}], clip=[{"clip.crop": True}], score_thresholds=[0.0, 0.5, 0.9])
    return tiny.model_copy(update={"search": search})


@pytest.mark.parametrize("method, source", [("U-SAM", "web"), ("MIL only", "web"), ("SAM+CLIP", "none")])
def test_each_method_tries_every_variant_with_every_threshold_on_validation_alone(searching, method, source):
    found = choice.choose(searching, method, source)
    other = "crop = True" if method == "SAM+CLIP" else "a = 3"
    assert found.tried[["variant", "score threshold"]].to_numpy().tolist() == [
        [variant, t] for variant in ("the profile's own", other) for t in (0.0, 0.5, 0.9)
    ]
    best = found.tried.loc[found.tried["mean"].idxmax()]
    assert best["mean"] == pytest.approx((best["miou"] + best["map50"]) / 2)
    assert found.change["inference.score_threshold"] == best["score threshold"]
    assert found.profile == searching.changed(found.change)
    rows = pd.read_csv(paths.results("smoke") / "runs.csv")
    seeds = 1 if method == "SAM+CLIP" else 2
    assert set(rows["split"]) == {"val"} and len(rows) == 6 * seeds


def test_tried_scores_are_those_of_the_same_settings_in_a_profile(searching):
    found = choice.choose(searching, "U-SAM", "web").tried
    changed = searching.changed({"head.a": 3, "inference.score_threshold": 0.5})
    alone = [scoring.score(changed, "voc", "web", seed, split="val") for seed in searching.seeds]
    row = found[(found["variant"] == "a = 3") & (found["score threshold"] == 0.5)].iloc[0]
    assert row["miou"] == pytest.approx(sum(one.miou for one in alone) / 2, abs=1e-12)
    assert row["map50"] == pytest.approx(sum(one.map50 for one in alone) / 2, abs=1e-12)


def test_the_chosen_row_belongs_to_the_profile_and_keeps_its_own_settings(searching):
    chosen = choice.Choice(searching.changed({"head.a": 3}), {"head.a": 3}, pd.DataFrame())
    scores = choice.score(searching, chosen, "voc", "web", 0, "U-SAM")
    assert scores.miou == scoring.score(chosen.profile, "voc", "web", 0).miou
    run = tables.current_runs(searching)
    assert run["method"].tolist() == ["U-SAM, chosen on validation"] and '"a": 3.0' in run["parameters"][0]
    assert tables.stored_scores(searching, run)["U-SAM, chosen on validation", "web"][0].miou == scores.miou


def test_a_second_search_computes_nothing(searching, monkeypatch):
    first = choice.choose(searching, "MIL only", "web")
    monkeypatch.setattr(stages, "heads", None)
    monkeypatch.setattr(stages, "embeddings", None)
    pd.testing.assert_frame_equal(choice.choose(searching, "MIL only", "web").tried, first.tried)


def test_nothing_is_chosen_without_a_validation_split_or_a_search(searching):
    voc = searching.datasets["voc"].model_copy(update={"validation": None})
    with pytest.raises(UserError, match="no data set with a validation split"):
        choice.choose(searching.model_copy(update={"datasets": {"voc": voc}}), "U-SAM", "web")
    with pytest.raises(UserError, match="no key 'search'"):
        choice.choose(searching.model_copy(update={"search": None}), "U-SAM", "web")
