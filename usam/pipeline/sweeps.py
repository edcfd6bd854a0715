"""What if one setting were another one? (paper 4, Table 4; what the paper leaves open; what it does not have)."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import pandas as pd

from usam import machine
from usam.data.class_names import NOTHING
from usam.evaluation import intervals
from usam.evaluation.scores import Scores, by_head
from usam.pipeline import scoring, stages
from usam.pipeline.methods import Ready
from usam.profiles import Profile


def sweep(
    profile: Profile, dataset_name: str, source: str, split: str, key: str, values: Sequence[Any]
) -> pd.DataFrame:
    """U-SAM's scores with each of `values` in place of the profile's own at `key`, all else as it is.

    Each value is run with the profile's `validation_seeds`; each run is a row of runs.csv. SAM's embeddings are those
    that are stored, and a head is trained only if it is another one.

    Args:
        profile, dataset_name, source: the settings, data set and training images.
        split: of the data set: the validation split, if choices are to be made.
        key: "head.a" for instance.
        values: for it; the profile's own is added if it is not among them.

    Returns:
        One row a value and score, numbers from small to large: key, value ("all" for None), default (is it the
        profile's?), score (of `scoring.SCORES`), mean, low, high (95% interval), in [0, 1].
    """
    tried = _in_order(profile, key, values)
    seeds, runs = profile.validating().seeds, []
    if not key.startswith(("inference.", "sam.")):
        scoring.train_ahead([(one, dataset_name, source, k) for k in seeds for one, _ in tried], "U-SAM", split)
    for seed in seeds:
        if key.startswith("inference."):
            runs.append(scoring.score_each([one for one, _ in tried], dataset_name, source, seed, split=split))
        else:
            runs.append([_score(profile, one, dataset_name, source, seed, split) for one, _ in tried])
    rows = []
    for (changed, value), of_seeds in zip(tried, zip(*runs, strict=True), strict=True):
        for score in scoring.SCORES:
            rows.append((key, _words(value), changed == profile, score, *intervals.mean(of_seeds, score)[:3]))
    return pd.DataFrame(rows, columns=["key", "value", "default", "score", "mean", "low", "high"])


def _in_order(profile: Profile, key: str, values: Sequence[Any]) -> list[tuple[Profile, Any]]:
    """The profile with each value at `key` in turn, its own among them, and that value."""

    def at_key(one: Profile) -> Any:
        return functools.reduce(operator.getitem, key.split("."), one.model_dump(mode="json"))

    own, each = at_key(profile), {}
    for value in (*values, own):
        changed = profile.changed({key: value})
        each.setdefault(changed.model_dump_json(), (changed, at_key(changed)))
    if isinstance(own, str):
        return list(each.values())
    return sorted(each.values(), key=lambda one: (one[1] is None, one[1] or 0))  # None, which stands for all, is last


def _score(profile: Profile, changed: Profile, dataset_name: str, source: str, seed: int, split: str) -> Scores:
    """A run of `changed`. If only the choice among SAM's masks differs, the head stays: tokens do not depend on it."""
    if changed == profile or changed.changed({"sam.mask_choice": profile.sam.mask_choice}) != profile:
        return scoring.score(changed, dataset_name, source, seed, split=split)
    student = stages.heads(profile, dataset_name, source, seed).student
    return scoring.evaluated(
        changed, dataset_name, source, seed, "U-SAM", lambda: Ready(by_head(student, changed.inference)), split
    )


def _words(value: Any) -> str:
    if value is None:
        return "all"
    if isinstance(value, list):
        return " · ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


BEYOND_THE_PAPER = {
    "suppression per class": ("nms_per_class", True),
    "join parts": ("join_parts", True),
    "smallest 400 pixels": ("smallest", 400),
    "smallest 1600 pixels": ("smallest", 1600),
}


def beyond_the_paper(profile: Profile, dataset_name: str, source: str, split: str) -> dict[str, list[Scores]]:
    """Scores of the validation seeds for each setting of `inference` that the paper does not have, its own first."""
    profiles = {"the paper's protocol": profile}
    profiles |= {name: profile.changed({f"inference.{key}": value}) for name, (key, value) in BEYOND_THE_PAPER.items()}
    tried = list(profiles.values())
    seeds = profile.validating().seeds
    runs = [scoring.score_each(tried, dataset_name, source, seed, split=split) for seed in seeds]
    return dict(zip(profiles, map(list, zip(*runs, strict=True)), strict=True))


def others(profile: Profile, dataset_name: str, source: str, split: str) -> dict[str, list[Scores]]:
    """Scores of the validation seeds where every second class is wanted and the rest is background, without and with a
    class for the others.
    """
    names = stages.class_names(profile, dataset_name)
    wanted = {name: [name] for name in names[::2]}
    config = profile.datasets[dataset_name].model_copy(update={"groups": wanted})
    fewer = profile.model_copy(update={"datasets": profile.datasets | {dataset_name: config}})
    variants = {"the paper's protocol": wanted, f"{NOTHING}: the others": wanted | {NOTHING: names[1::2]}}
    scores: dict[str, list[Scores]] = {}
    seeds = profile.validating().seeds
    for variant, gathered in variants.items():
        name = f"{len(wanted)} of the classes, {variant}"
        scores[name] = []
        calls = [(profile, gathered, source, seed) for seed in seeds]
        for seed, heads in zip(seeds, machine.side_by_side(stages.heads_of, calls), strict=True):
            ready = functools.partial(Ready, by_head(heads.student, profile.inference, len(wanted)))
            scores[name].append(scoring.evaluated(fewer, dataset_name, source, seed, f"U-SAM, {name}", ready, split))
    return scores
