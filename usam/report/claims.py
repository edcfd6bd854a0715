"""The paper's claims (section 4) as differences between two methods, in the paper and in a run, and what they say.

docs/statistics.md explains the intervals, the p-values and the control of false discoveries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from usam.evaluation import intervals
from usam.evaluation.intervals import Interval
from usam.evaluation.scores import Scores

SCORES = {"miou": "mIoU", "map50": "mAP50"}
FLOOR = ("all background", "none")  # method and training images of the row that paints nothing
AT_FLOOR = "baseline at the floor"
FALSE_DISCOVERY_RATE = 0.05
COLUMNS = ("claim", "where", "on", "score", "paper", "here", "95%", "p", "adjusted p", "reading")
# a reading, and how `sentences` says it
READINGS = {
    "holds here": "holds in",
    "does not hold here": "does not hold in",
    "cannot tell": "undecided in",
    AT_FLOOR: AT_FLOOR + " in",
    "not run": "not run in",
}


class Run(NamedTuple):
    """A method on a data set, with a source of training images ("none" if it has none)."""

    dataset: str
    method: str
    source: str


PaperScores = Mapping[Run, Sequence[float | None]]  # mIoU and mAP50 in percent; None where the paper has no number
ImageScores = Mapping[Run, Sequence[Scores]]  # one per seed


def effect(score: str, paper: float | None, here: Interval | None) -> dict[str, str]:
    """Return the cells of a difference, in percentage points: score, paper, here, 95% and p (three digits).

    `paper` is None if the paper gives no number; `here` (shares in [0, 1]) is None if it was not run, and NaN if it is
    not defined.
    """
    cells = {"score": score, "paper": "–" if paper is None else f"{paper:+.2f}"}
    if here is None or pd.isna(here.value):
        return cells | {"here": "not run" if here is None else "undefined", "95%": "–", "p": "–"}
    p = "–" if pd.isna(here.p) else f"{here.p:.3g}"
    return cells | {"here": here.percent("+"), "95%": here.brackets(), "p": p}


def compare(claim: str, where: str, first: Run, second: Run, paper: PaperScores, here: ImageScores) -> list[dict]:
    """Return a row per score of the claim that `first` scores higher than `second`, with their differences.

    A run that `here` lacks makes the difference "not run". It is left out if the paper's tables have both runs, but no
    such score. To beat a method that is not clearly better than painting nothing says nothing: then p is `AT_FLOOR`.
    """
    same_data = first.dataset == second.dataset
    label = {"claim": claim, "where": where, "on": _on(first, second)}
    rows = []
    for place, (score, name) in enumerate(SCORES.items()):
        values = [paper[run][place] if run in paper else None for run in (first, second)]
        printed = None if None in values else values[0] - values[1]
        known = here.get(first) and here.get(second)
        if known:  # methods that label pixels have no mAP50, here as in the paper
            undefined = score == "map50" and None in (here[first][0].matches, here[second][0].matches)
        else:
            undefined = {first, second} <= set(paper)
        if undefined and printed is None:
            continue
        found = intervals.difference(here[first], here[second], score, same_data) if known else None
        cells = effect(name, printed, found)
        floor = here.get(Run(second.dataset, *FLOOR))
        if found is not None and floor and not intervals.difference(here[second], floor, score).low > 0:
            cells["p"] = AT_FLOOR
        rows.append(label | cells)
    return rows


def _on(first: Run, second: Run) -> str:
    """Return the data set and the training images; those of the second run, too, if they are others."""
    if first.dataset != second.dataset:
        return first.source
    against = "" if second.source in (first.source, "none") else f" against {second.source}"
    return f"{first.dataset}, {first.source}{against}"


def read(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows of all claims as a table (`COLUMNS`), with a reading of each comparison.

    The family of tests is every row with a p-value. Their p-values, as printed, are adjusted together (Benjamini and
    Hochberg), and a comparison is decided if its adjusted p-value is below `FALSE_DISCOVERY_RATE`: it "holds here" if
    the difference is positive, else it "does not hold here".
    """
    table = pd.DataFrame(rows, columns=COLUMNS).astype(object)
    p = pd.to_numeric(table["p"], errors="coerce")
    tested = p.notna()
    adjusted = pd.Series(stats.false_discovery_control(p[tested]), p[tested].index) if tested.any() else p[tested]
    decided = tested & (adjusted.reindex(p.index) < FALSE_DISCOVERY_RATE)
    negative = table["here"].str.startswith("-")
    table["reading"] = "cannot tell"
    table.loc[decided & ~negative, "reading"] = "holds here"
    table.loc[decided & negative, "reading"] = "does not hold here"
    table.loc[table["p"] == AT_FLOOR, "reading"] = AT_FLOOR
    table.loc[table["here"] == "not run", "reading"] = "not run"
    table["adjusted p"] = adjusted.reindex(p.index).map("{:.3g}".format).where(tested, "–")
    table["p"] = table["p"].where(tested, "–")
    return table


def family(table: pd.DataFrame) -> str:
    """Return a sentence about the tests of a table of `read`: how many are decided, and how many would be without the
    control of false discoveries."""
    p = pd.to_numeric(table["p"], errors="coerce")
    holds, fails = ((table["reading"] == reading).sum() for reading in ("holds here", "does not hold here"))
    return (
        f"Of {p.notna().sum()} tested comparisons, {holds + fails} are decided at a false discovery rate of "
        f"{FALSE_DISCOVERY_RATE:.0%}: {holds} for the claim, and {fails} against it. Without this control, "
        f"{(p < 1 - intervals.CONFIDENCE).sum()} would have been decided."
    )


def sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence for each claim of a table of `read`: in how many comparisons it holds, and in which not."""
    return [f"{claim}: {_counted(rows)}." for claim, rows in table.groupby("claim", sort=False)]


def _counted(rows: pd.DataFrame) -> str:
    groups = {words: rows[rows["reading"] == reading] for reading, words in READINGS.items()}
    groups = {words: some for words, some in groups.items() if len(some)}
    parts = []
    for n, (words, some) in enumerate(groups.items()):
        of = f" of {len(rows)} comparison{'s' if len(rows) > 1 else ''}" if n == 0 else ""
        places = "; ".join(f"{on}: {', '.join(same['score'])}" for on, same in some.groupby("on", sort=False))
        parts.append(f"{words} {len(some)}{of}" + (f" ({places})" if n else ""))
    return ", ".join(parts)
