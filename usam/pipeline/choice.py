"""Settings that the paper leaves open, chosen on the validation split and frozen before the test split is scored.

Each method may try as many variants as any other (`usam.config.SearchConfig`). What is chosen depends on the source of
training images; it is chosen on the first data set that has a validation split, and used on all.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from usam.errors import UserError
from usam.evaluation.scores import Scores
from usam.pipeline import scoring
from usam.profiles import Profile
from usam.registry import METHODS

CHOSEN = ", chosen on validation"  # behind a method's name in runs.csv and in tables
COLUMNS = ["method", "training images", "variant", "score threshold", "miou", "map50", "mean"]


class Choice(NamedTuple):
    """What was chosen for a method, and all that was tried.

    Attributes:
        profile: the profile with the chosen settings.
        change: these settings alone.
        tried: one row a variant and threshold, `COLUMNS`; both scores and their mean are in [0, 1].
    """

    profile: Profile
    change: dict[str, Any]
    tried: pd.DataFrame


def validation(profile: Profile) -> tuple[str, str] | None:
    """The first data set that has a validation split, and that split; None if there is none."""
    return next(((name, one.validation) for name, one in profile.datasets.items() if one.validation), None)


def choose(profile: Profile, method: str, source: str) -> Choice:
    """Try all variants of a method with all thresholds and seeds on the validation split, and take the best.

    Scores are stored, and not computed again.

    Args:
        profile: the settings, and what may be tried instead.
        method: "U-SAM", "MIL only" or "SAM+CLIP".
        source: of the training images; "none" for SAM+CLIP, which learns from none.

    Raises:
        UserError: the profile has no search, or no validation split.
    """
    place = validation(profile)
    if profile.search is None or place is None:
        what = "no key 'search'" if profile.search is None else "no data set with a validation split"
        raise UserError(f"profile '{profile.name}' has {what}: nothing can be chosen, add it to profiles/")
    heads = method != "SAM+CLIP"
    seeds = profile.validating().seeds if heads else (None,)
    rows, changes = [], []
    variants = [{}, *(profile.search.heads if heads else profile.search.clip)]
    if heads:
        last = {"inference.score_threshold": profile.search.score_thresholds[-1]}
        tried = [profile.changed(variant | last) for variant in variants]
        scoring.train_ahead([(one, place[0], source, seed) for one in tried for seed in seeds], method, place[1])
    for variant in variants:
        steps = [variant | {"inference.score_threshold": threshold} for threshold in profile.search.score_thresholds]
        tried = [profile.changed(step) for step in steps]
        runs = [scoring.score_each(tried, place[0], source, seed, method, place[1]) for seed in seeds]
        for threshold, of_seeds in zip(profile.search.score_thresholds, zip(*runs, strict=True), strict=True):
            miou, map50 = (float(np.mean([getattr(run, score) for run in of_seeds])) for score in ("miou", "map50"))
            rows.append((method, source, in_words(variant), threshold, miou, map50, (miou + map50) / 2))
        changes += steps
    best = int(np.argmax([row[-1] for row in rows]))  # the first of equal ones
    return Choice(profile.changed(changes[best]), changes[best], pd.DataFrame(rows, columns=COLUMNS))


def in_words(change: dict[str, Any]) -> str:
    """ "a = 4, fill = mean": what differs from the profile's own settings."""
    return ", ".join(f"{key.rpartition('.')[2]} = {value}" for key, value in change.items()) or "the profile's own"


def score(profile: Profile, choice: Choice, dataset_name: str, source: str, seed: int | None, method: str) -> Scores:
    """Evaluate a method with its chosen settings on the test split; its row in runs.csv is called method + `CHOSEN`."""
    ready = functools.partial(METHODS.find(method), choice.profile, dataset_name, source, seed)
    return scoring.evaluated(profile, dataset_name, source, seed, method + CHOSEN, ready, settings=choice.profile)
