"""Tables of a run, the paper's numbers beside ours."""

import inspect
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from usam import machine, paths
from usam.config import Profile
from usam.errors import UserError
from usam.evaluation import intervals
from usam.evaluation.intervals import Interval
from usam.evaluation.scores import Scores
from usam.files import locked, read_csv, write_atomically
from usam.pipeline import cache, scoring

PaperRow = tuple[str, str, float | None, float | None]


def settings(profile: Profile) -> pd.DataFrame:
    """Every setting of a profile with its value and its meaning, which is the docstring's: setting, value, meaning."""
    return pd.DataFrame(_explained(profile, ""), columns=["setting", "value", "meaning"])


def _explained(model: BaseModel, place: str) -> list[tuple[str, str, str]]:
    meanings, rows = _attributes(type(model)), []
    for key, value in model:
        parts = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        for name, part in parts.items():
            if isinstance(part, BaseModel):
                rows += _explained(part, f"{place}{name}.")
            else:
                said = ", ".join(map(str, part)) if isinstance(part, (tuple, list)) else str(part)
                rows.append((place + name, "–" if part is None else said, meanings[key]))
    return rows


def _attributes(config: type[BaseModel]) -> dict[str, str]:
    """Meanings of a class's attributes: one entry a line under "Attributes:", its continuation indented deeper."""
    text = inspect.getdoc(config).partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text):
        names, _, meaning = entry.strip().partition(": ")
        found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def runs_file(profile: Profile) -> Path:
    """The profile's runs.csv: one row a training and evaluation."""
    return paths.results(profile.name) / "runs.csv"


def read_runs(profile: Profile) -> pd.DataFrame:
    """All rows of runs.csv; empty when nothing was evaluated yet."""
    file = runs_file(profile)
    if not file.exists():
        return pd.DataFrame(columns=["dataset", "split", "source", "method", "seed"])
    return read_csv(file, dtype={"commit": str, "seed": "Int64"})  # a commit may look like a number


def current_runs(profile: Profile, notebook: str = "04_evaluate") -> pd.DataFrame:
    """The rows of runs.csv that belong to the profile, code and weights as they are now, and to the profile's seeds.

    Rows of other settings or code stay in the file, but not in a table that says "this profile".

    Raises:
        UserError: there is none; the message names `notebook`, which makes them.
    """
    rows = read_runs(profile)
    if len(rows):
        same = rows.get("state", "") == scoring.state(profile)
        rows = rows[same & (rows["seed"].isna() | rows["seed"].isin(profile.seeds))].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{runs_file(profile)} has no run of this profile: run notebook {notebook} first")
    return rows


def require(run: pd.DataFrame, profile: Profile, method: str, notebook: str) -> None:
    """Check that `method` was scored on the test split of each data set, with each source and seed of the profile.

    Raises:
        UserError: a row is missing; the message names `notebook`, which makes it.
    """
    rows = run[run["method"] == method]
    there = set(rows[["dataset", "split", "source", "seed"]].itertuples(index=False, name=None))
    wanted = itertools.product(profile.datasets.items(), profile.sources, profile.seeds)
    missing = [(w, s, k) for (w, config), s, k in wanted if (w, config.split, s, k) not in there]
    if missing:
        dataset_name, source, seed = missing[0]
        raise UserError(
            f"{runs_file(profile)} lacks {len(missing)} rows of {method}, first {dataset_name}, {source} images, seed {seed}: "
            f"run notebook {notebook} first"
        )


StoredScores = dict[tuple[str, str], list[Scores]]  # (method, training images) -> scores, one a seed


def stored_scores(profile: Profile, run: pd.DataFrame) -> StoredScores:
    """The scores, image by image, of the rows `run` of one data set and split, seeds in the order of their numbers."""
    scored = run[run["miou"].notna()].sort_values("seed", kind="stable")
    groups = scored.groupby(["method", "source"], sort=False)
    return {key: [scoring.stored(profile, row) for row in rows.to_dict("records")] for key, rows in groups}


def reading(effect: Interval) -> str:
    """What an effect says of a claim that it is positive."""
    if effect.low > 0:
        return "holds here"
    return "does not hold here" if effect.high < 0 else "cannot tell"


def effect_cells(effect: Interval | None) -> tuple[str, str, str]:
    """An effect in percentage points, its interval, and what it says; None was not run, NaN is not defined."""
    if effect is None or pd.isna(effect.value):
        return "not run" if effect is None else "undefined", "–", "cannot tell"
    return f"{100 * effect.value:+.2f}", effect.brackets(), reading(effect)


def over_the_first(tried: Mapping[str, Sequence[Scores]]) -> pd.DataFrame:
    """Both scores in percent, and what they gain against the first row's, seed by seed and on the same images."""
    first, rows = next(iter(tried.values())), []
    for words, scores in tried.items():
        row = {"setting": words}
        for score, name in (("miou", "mIoU"), ("map50", "mAP50")):
            row[name] = f"{100 * intervals.mean(scores, score).value:.2f}"
            gain = ("", "") if scores is first else effect_cells(intervals.difference(scores, first, score))[:2]
            row |= dict(zip((f"{name}, difference", f"{name}, 95%"), gain, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def mean_sd(values: pd.Series) -> str:
    """Shares as "mean ± standard deviation" in percent; one value stands alone, none is "not run"."""
    values = values.dropna() * 100
    if values.empty:
        return "not run"
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def score_table(run: pd.DataFrame) -> pd.DataFrame:
    """Mean ± standard deviation over the seeds: one row a data set, split, source of training images and method."""
    rows = []
    for key, same in run.groupby(["dataset", "split", "source", "method"], sort=False):
        rows.append((*key, mean_sd(same["miou"]), mean_sd(same["map50"]), len(same)))
    return pd.DataFrame(rows, columns=["data set", "split", "training images", "method", "mIoU", "mAP50", "seeds"])


def beside_paper(rows: Sequence[PaperRow], run: pd.DataFrame, kept: StoredScores) -> pd.DataFrame:
    """The paper's rows with this run's scores beside them.

    Args:
        rows: of `usam.paper`, in percent.
        run: rows of runs.csv of one data set and split.
        kept: the same, image by image, for the 95% intervals over images and seeds.
    """
    table = []
    for method, source, *theirs in rows:
        ours = run[(run["method"] == method) & (run["source"] == source)]
        cells = []
        for score, paper in zip(("miou", "map50"), theirs, strict=True):
            said = intervals.mean(kept[method, source], score).brackets() if len(ours) else "–"
            cells += [_percent(paper), mean_sd(ours[score]) if len(ours) else "not run", said]
        table.append((method, source, *cells, len(ours)))
    scores = [f"{score} {what}" for score in ("mIoU", "mAP50") for what in ("paper", "here", "95%")]
    return pd.DataFrame(table, columns=["method", "training images", *scores, "seeds"])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def write_table(profile: Profile, name: str, table: pd.DataFrame, caption: str) -> Path:
    """Write results/<profile>/tables/<name>.csv, .md and .tex; the caption says which world the numbers are from.

    The .md ends with a comment that tells settings, seeds, code and weights from others: `read_table` looks at it.
    """
    folder = paths.results(profile.name) / "tables"
    said = f"{caption} ({profile.world}; profile {profile.name}, commit {machine.commit()}, {machine.hardware()})"
    write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
    latex = table.to_latex(index=False, escape=True, caption=_escaped(said), label=f"tab:{name}")
    write_atomically(folder / f"{name}.tex", latex)
    write_atomically(folder / f"{name}.md", f"**{said}**\n\n{_markdown(table)}\n\n{_mark(profile)}\n")
    return folder / f"{name}.md"


def read_table(profile: Profile, name: str, notebook: str) -> pd.DataFrame:
    """A table that another notebook has written, every cell as it stands.

    Raises:
        UserError: it is not there, or of other settings, seeds, code or weights; the message names `notebook`.
    """
    file = paths.results(profile.name) / "tables" / f"{name}.csv"
    if not file.exists():
        raise UserError(f"{file} is missing: run notebook {notebook} first")
    about = file.with_suffix(".md")
    if not about.exists() or _mark(profile) not in about.read_text(encoding="utf-8"):
        raise UserError(f"{file} is of other settings, seeds or code: run notebook {notebook} again")
    return read_csv(file, dtype=str, keep_default_na=False)


def _mark(profile: Profile) -> str:
    return f"<!-- {cache.key([scoring.state(profile), profile.seeds])} -->"


def read_costs(profile: Profile) -> pd.DataFrame:
    """What each notebook has cost so far, one row each: notebook, seconds, peak_gib, and where and with what it ran.

    Raises:
        UserError: the file is missing or damaged.
    """
    text = dict.fromkeys(("notebook", "commit", "hardware", "versions", "when"), str)  # a commit may look like a number
    file = paths.results(profile.name) / "notebooks.csv"
    return read_csv(file, dtype=text, usecols=[*text, "seconds", "peak_gib"])


def notebook_cost(profile: Profile, notebook: str, start: float) -> None:
    """Say what a notebook has cost since `start` (of `time.perf_counter`), and keep it in notebooks.csv."""
    file = paths.results(profile.name) / "notebooks.csv"
    row = {"notebook": notebook, "seconds": time.perf_counter() - start, "peak_gib": machine.peak_memory()}
    with locked(file):
        new = pd.DataFrame([row | machine.provenance()]).round(2)
        if file.exists():
            old = read_costs(profile)
            new = pd.concat([old[old["notebook"] != notebook], new]).sort_values("notebook")
        write_atomically(file, new.to_csv(index=False))
    print(f"{row['seconds']:.0f} s, peak memory {row['peak_gib']:.1f} GiB, on {machine.hardware()}")


def _escaped(text: str) -> str:
    return re.sub(r"([%&_#$])", r"\\\1", text)


def _markdown(table: pd.DataFrame) -> str:
    """A pipe table with aligned columns, so that it reads well on a terminal too."""
    cells = [list(map(str, table.columns)), *[["" if pd.isna(v) else str(v) for v in row] for row in table.to_numpy()]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
