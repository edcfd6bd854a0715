"""The paper's claims (section 4) as differences between two methods, in the paper and in a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from usam.evaluation import intervals
from usam.evaluation.intervals import Interval
from usam.evaluation.scores import Scores

SCORES = {"miou": "mIoU", "map50": "mAP50"}
FLOOR = ("all background", "none")  # method and training images of the row that paints nothing
AT_FLOOR = "baseline at the floor"


class Run(NamedTuple):
    """A method on a data set, with a source of training images ("none" if it has none)."""

    dataset: str
    method: str
    source: str


PaperScores = Mapping[Run, Sequence[float | None]]  # mIoU and mAP50 in percent; None where the paper has no number
ImageScores = Mapping[Run, Sequence[Scores]]  # one per seed


def effect(score: str, paper: float | None, here: Interval | None) -> dict[str, str]:
    """Return the cells of a difference, in percentage points: score, paper, here, 95% and reading.

    The reading is what the interval says about the claim that the difference is positive. `paper` is None if the paper
    gives no number; `here` (shares in [0, 1]) is None if it was not run, and NaN if it is not defined.
    """
    cells = {"score": score, "paper": "–" if paper is None else f"{paper:+.2f}"}
    if here is None or pd.isna(here.value):
        return cells | {"here": "not run" if here is None else "undefined", "95%": "–", "reading": "cannot tell"}
    reading = "holds here" if here.low > 0 else "does not hold here" if here.high < 0 else "cannot tell"
    return cells | {"here": f"{100 * here.value:+.2f}", "95%": here.brackets(), "reading": reading}


def compare(claim: str, where: str, first: Run, second: Run, paper: PaperScores, here: ImageScores) -> list[dict]:
    """Return a row per score of the claim that `first` scores higher than `second`, with their differences.

    A run that `here` lacks makes the difference "not run"; a score that neither the paper nor `here` has is left out.
    To beat a method that is not clearly better than painting nothing says nothing: then the reading is `AT_FLOOR`.
    """
    same_data = first.dataset == second.dataset
    label = {"claim": claim, "where": where, "on": f"{first.dataset}, {first.source}" if same_data else first.source}
    rows = []
    for place, (score, name) in enumerate(SCORES.items()):
        values = [paper[run][place] if run in paper else None for run in (first, second)]
        printed = None if None in values else values[0] - values[1]
        known = here.get(first) and here.get(second)
        found = intervals.difference(here[first], here[second], score, same_data) if known else None
        if printed is not None or found is not None:
            cells = effect(name, printed, found)
            floor = here.get(Run(second.dataset, *FLOOR))
            if found is not None and floor and not intervals.difference(here[second], floor, score).low > 0:
                cells["reading"] = AT_FLOOR
            rows.append(label | cells)
    return rows
