"""Tables of a run, with the paper's numbers beside its own (section 4)."""

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from usam import machine, paths
from usam.errors import UserError
from usam.evaluation import intervals
from usam.evaluation.scores import Scores
from usam.files import locked, read_csv, write_atomically
from usam.pipeline import cache, scoring
from usam.profiles import Profile
from usam.report import claims

PaperRow = tuple[str, str, float | None, float | None]  # see `usam.report.paper`
StoredScores = dict[tuple[str, str], list[Scores]]  # (method, training images) -> scores, one per seed
FLOOR: PaperRow = (*claims.FLOOR, None, None)  # the last row of each table: what painting nothing scores


def settings(profile: Profile) -> pd.DataFrame:
    """Return every setting of a profile: columns setting, value, and meaning (the text below it in `usam.config`)."""
    return pd.DataFrame(_explained(profile, ""), columns=["setting", "value", "meaning"])


def _explained(model: BaseModel, prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for key, value in model:
        meaning = " ".join((type(model).model_fields[key].description or "").split())
        parts = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        for name, part in parts.items():
            if isinstance(part, BaseModel):
                rows += _explained(part, f"{prefix}{name}.")
            else:
                text = ", ".join(map(str, part)) if isinstance(part, (tuple, list)) else str(part)
                rows.append((prefix + name, "–" if part is None else text, meaning))
    return rows


def runs_file(profile: Profile) -> Path:
    """Return the path of the profile's runs.csv, which has one row per evaluation or other measured number."""
    return paths.results(profile.name) / "runs.csv"


def read_runs(profile: Profile) -> pd.DataFrame:
    """Return all rows of runs.csv; none if nothing has been evaluated yet."""
    file = runs_file(profile)
    if not file.exists():
        return pd.DataFrame(columns=["dataset", "split", "source", "method", "seed"])
    return read_csv(file, dtype={"commit": str, "seed": "Int64"})  # a commit may look like a number


def current_runs(profile: Profile, notebook: str = "04_evaluate") -> pd.DataFrame:
    """Return the rows of runs.csv made with the profile's seeds and the current settings, code and weights.

    Raises:
        UserError: there is none; the message names `notebook`, which writes them.
    """
    rows = read_runs(profile)
    if len(rows):
        current = rows.get("state", "") == scoring.state(profile)
        rows = rows[current & (rows["seed"].isna() | rows["seed"].isin(profile.seeds))].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{runs_file(profile)} has no run of this profile: run notebook {notebook} first")
    return rows


def require(run: pd.DataFrame, profile: Profile, method: str, notebook: str) -> None:
    """Check that `run` has scores of `method` on each test split, with each source and seed of the profile.

    Raises:
        UserError: a row is missing; the message names `notebook`, which writes it.
    """
    rows = run[run["method"] == method]
    present = set(rows[["dataset", "split", "source", "seed"]].itertuples(index=False, name=None))
    wanted = itertools.product(profile.datasets.items(), profile.sources, profile.seeds)
    missing = [(w, s, k) for (w, config), s, k in wanted if (w, config.split, s, k) not in present]
    if missing:
        rows = "{} rows of {}, first {}, {} images, seed {}".format(len(missing), method, *missing[0])
        raise UserError(f"{runs_file(profile)} lacks {rows}: run notebook {notebook} first")


def stored_scores(profile: Profile, run: pd.DataFrame) -> StoredScores:
    """Return the stored scores, image by image, of the rows `run` of one data set and split, in the order of seeds."""
    scored = run[run["miou"].notna()].sort_values("seed", kind="stable")
    groups = scored.groupby(["method", "source"], sort=False)
    return {key: [scoring.stored(profile, row) for row in rows.to_dict("records")] for key, rows in groups}


def over_the_first(tried: Mapping[str, Sequence[Scores]]) -> pd.DataFrame:
    """Return both scores of each setting in percent, and their gains over the first one's, paired by seed and image."""
    first, rows = next(iter(tried.values())), []
    for words, scores in tried.items():
        row = {"setting": words}
        for score, name in claims.SCORES.items():
            row[name] = intervals.mean(scores, score).percent()
            gain = {} if scores is first else claims.effect(name, None, intervals.difference(scores, first, score))
            row |= {f"{name}, difference": gain.get("here", ""), f"{name}, 95%": gain.get("95%", "")}
        rows.append(row)
    return pd.DataFrame(rows)


def mean_sd(values: pd.Series) -> str:
    """Return shares as "mean ± standard deviation" in percent, with the digits that the deviation deserves.

    A single value has no deviation and one decimal; no row is "not run", and rows without a value are "–".
    """
    if values.empty:
        return "not run"
    values = values.dropna() * 100
    if values.empty:
        return "–"
    spread = values.std(ddof=1)
    places = intervals.decimals(spread)
    return f"{values.mean():.{places}f}" + (f" ± {spread:.{places}f}" if len(values) > 1 else "")


def score_table(run: pd.DataFrame) -> pd.DataFrame:
    """Return mean ± standard deviation over the seeds per data set, split, source of training images and method."""
    groups = run.groupby(["dataset", "split", "source", "method"], sort=False)
    rows = [(*key, mean_sd(same["miou"]), mean_sd(same["map50"]), len(same)) for key, same in groups]
    return pd.DataFrame(rows, columns=["data set", "split", "training images", "method", "mIoU", "mAP50", "seeds"])


def beside_paper(rows: Sequence[PaperRow], run: pd.DataFrame, image_scores: StoredScores) -> pd.DataFrame:
    """Return the paper's rows with this run's scores beside them, in percent.

    Args:
        rows: a table of `usam.report.paper`.
        run: rows of runs.csv of one data set and split.
        image_scores: their scores image by image, for the 95% intervals over images and seeds.
    """
    table = []
    for method, source, *printed in rows:
        here = run[(run["method"] == method) & (run["source"] == source)]
        cells = []
        for score, paper in zip(("miou", "map50"), printed, strict=True):
            ends = intervals.mean(image_scores[method, source], score).brackets() if len(here) else "–"
            cells += ["–" if paper is None else f"{paper:.2f}", mean_sd(here[score]), ends]
        table.append((method, source, *cells, len(here)))
    scores = [f"{score} {what}" for score in ("mIoU", "mAP50") for what in ("paper", "here", "95%")]
    return pd.DataFrame(table, columns=["method", "training images", *scores, "seeds"])


def write_table(profile: Profile, name: str, table: pd.DataFrame, caption: str) -> Path:
    """Write results/<profile>/tables/<name>.csv, .md and .tex; the caption names the world the numbers come from.

    The .md ends with a comment that identifies settings, seeds, code and weights: `read_table` checks it.
    """
    file = paths.results(profile.name) / "tables" / f"{name}.md"
    about = f"{caption} ({profile.world}; profile {profile.name}, commit {machine.commit()}, {machine.hardware()})"
    write_atomically(file.with_suffix(".csv"), table.to_csv(index=False))
    escaped = re.sub(r"([%&_#$])", r"\\\1", about)
    latex = table.to_latex(index=False, escape=True, caption=escaped, label=f"tab:{name}")
    write_atomically(file.with_suffix(".tex"), latex)
    write_atomically(file, f"**{about}**\n\n{_markdown(table)}\n\n{_state_comment(profile)}\n")
    return file


def read_table(profile: Profile, name: str, notebook: str) -> pd.DataFrame:
    """Return a table that another notebook has written, its cells as text.

    Raises:
        UserError: it is missing, or of other settings, seeds, code or weights; the message names `notebook`.
    """
    file = paths.results(profile.name) / "tables" / f"{name}.csv"
    if not file.exists():
        raise UserError(f"{file} is missing: run notebook {notebook} first")
    about = file.with_suffix(".md")
    if not about.exists() or _state_comment(profile) not in about.read_text(encoding="utf-8"):
        raise UserError(f"{file} is of other settings, seeds or code: run notebook {notebook} again")
    return read_csv(file, dtype=str, keep_default_na=False)


def _state_comment(profile: Profile) -> str:
    return f"<!-- {cache.key([scoring.state(profile), profile.seeds])} -->"


def _markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table; its columns are aligned, for terminals."""
    rows = [list(map(str, table.columns)), *table.astype(object).fillna("").astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def read_costs(profile: Profile) -> pd.DataFrame:
    """Return what each notebook has cost, one row each: notebook, seconds, peak_gib, and where and with what it ran.

    Raises:
        UserError: the file is missing or damaged.
    """
    text = dict.fromkeys(("notebook", "commit", "hardware", "versions", "when"), str)  # a commit may look like a number
    file = paths.results(profile.name) / "notebooks.csv"
    return read_csv(file, dtype=text, usecols=[*text, "seconds", "peak_gib"])


def notebook_cost(profile: Profile, notebook: str, start: float) -> None:
    """Print what a notebook has cost since `start` (of `time.perf_counter`), and store it in notebooks.csv."""
    file = paths.results(profile.name) / "notebooks.csv"
    row = {"notebook": notebook, "seconds": time.perf_counter() - start, "peak_gib": machine.peak_memory()}
    with locked(file):
        new = pd.DataFrame([row | machine.provenance()]).round(2)
        if file.exists():
            old = read_costs(profile)
            new = pd.concat([old[old["notebook"] != notebook], new]).sort_values("notebook")
        write_atomically(file, new.to_csv(index=False))
    print(f"{row['seconds']:.0f} s, peak memory {row['peak_gib']:.1f} GiB, on {machine.hardware()}")
