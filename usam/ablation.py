"""What if one setting were another one? (paper 4, Table 4; and all that the paper leaves open)."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from usam import evaluation, intervals, scoring, stages
from usam.evaluation import Scores
from usam.profiles import Profile


def sweep(profile: Profile, which: str, source: str, split: str, key: str, values: Sequence[Any]) -> pd.DataFrame:
    """U-SAM's scores with each of `values` in place of the profile's own at `key`, all else as it is.

    Each value is run with all seeds of the profile; each run is a row of runs.csv. SAM's embeddings are those that are
    stored, and a head is trained only if it is another one.

    Args:
        profile: the settings around which one is changed.
        which, source: data set, and images that the head learns from.
        split: of the data set: the validation split, if choices are to be made.
        key: "head.a" for instance.
        values: for it.

    Returns:
        One row a value and score: key, value, default (is it the profile's?), score ("miou", "map50"), mean, low,
        high (95% interval), in [0, 1].
    """
    rows = []
    for value in values:
        changed = profile.changed(key, value)
        runs = [_score(profile, changed, which, source, seed, split) for seed in profile.seeds]
        for score in ("miou", "map50"):
            rows.append((key, _words(value), changed == profile, score, *intervals.mean(runs, score)))
    return pd.DataFrame(rows, columns=["key", "value", "default", "score", "mean", "low", "high"])


def _score(profile: Profile, changed: Profile, which: str, source: str, seed: int, split: str) -> Scores:
    """A run of `changed`. Where only SAM's masks are others, the head stays: its tokens do not depend on the choice."""
    if changed.sam == profile.sam:
        return scoring.score(changed, which, source, seed, split=split)
    student = stages.heads(profile, which, source, seed).student
    return scoring.recorded(
        changed, which, source, seed, "U-SAM", lambda: evaluation.by_head(student, changed.inference), split
    )


def _words(value: Any) -> str:
    return " · ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value}"
