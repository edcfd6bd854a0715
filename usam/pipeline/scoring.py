"""The last stage of a run: methods are evaluated, and each evaluation becomes a row of runs.csv (paper 4)."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from usam import machine, paths
from usam.data import huggingface, published
from usam.data.datasets import Dataset
from usam.errors import UserError
from usam.evaluation.scores import Scores, evaluate, evaluate_each
from usam.files import locked, write_atomically
from usam.pipeline import cache, stages
from usam.pipeline.embedding_store import EmbeddingStore
from usam.pipeline.methods import Ready
from usam.pipeline.records import record
from usam.pipeline.training_images import content_key, source_key
from usam.profiles import Profile
from usam.registry import METHODS

CODE = ("machine.py", "method", "data", "baselines", "evaluation", "pipeline")
SCORES = ("miou", "miou_objects", "map50")  # of a row, as `Scores` has them
# a method, and its evaluation (data set, embeddings, label of the progress bar) -> scores
Prepared = tuple[Ready, Callable[[Dataset, EmbeddingStore, str], Sequence[Scores]]]


def state(profile: Profile) -> str:
    """Key of all that decides a score beside data set, source, method and seed.

    It stands in each row of runs.csv, so that a table never mixes scores of different code.
    """
    place, names = paths.data() / "images", stages.all_class_names(profile)
    found = [content_key(place, name, source, names) for name, source in profile.sources.items()]
    return cache.key([code_state(profile), found])


def code_state(profile: Profile) -> str:
    """Key of settings, code and weights alone, without what a crawl has found: it is known before anything has run."""
    files = [published.checkpoint(profile.sam), *huggingface.model_files(profile.clip.model)]
    for _, rival in profile.rivals or ():
        files += published.begins_with(rival)
    sources = [source_key(source) for source in profile.sources.values()]
    return cache.key([profile.decisive(), sources], [*CODE, *stages.own_code(profile)], files)


def score(
    profile: Profile, dataset_name: str, source: str, seed: int | None, method: str = "U-SAM", split: str | None = None
) -> Scores:
    """Evaluate a method on a data set, training what it needs, and write the row into runs.csv.

    Args:
        profile: the settings.
        dataset_name: of a data set of the profile.
        source: of the training images; "none" for a method that learns from none.
        seed: of the training; None where nothing is trained.
        method: a name of `usam.registry.METHODS`.
        split: test split by default.

    Raises:
        UserError: there is no such method.
    """
    ready = functools.partial(METHODS.find(method), profile, dataset_name, source, seed)
    return evaluated(profile, dataset_name, source, seed, method, ready, split)


def train_ahead(calls: Iterable[tuple[Profile, str, str, int]], method: str, split: str) -> None:
    """Train heads side by side that `score` would train one after the other: those whose scores are not stored.

    `calls` are profile, data set, source and seed, as for `stages.heads`; `method` is one that has such heads.
    """
    missing = []
    for profile, dataset_name, source, seed in calls:
        _crawled(profile, source)
        row = _identity(profile, dataset_name, source, seed, method, split)
        if _load(_file(profile, dataset_name, row)) is None:
            missing.append((profile, dataset_name, source, seed))
    machine.side_by_side(stages.heads, missing)


def evaluated(
    profile: Profile,
    dataset_name: str,
    source: str,
    seed: int | None,
    method: str,
    ready: Callable[[], Ready],
    split: str | None = None,
    settings: Profile | None = None,
) -> Scores:
    """Evaluate a way to annotate on a data set, and write the row into runs.csv, under the name `method`.

    The scores are stored, image by image, and not computed again as long as nothing has changed that decides them. A
    way is known by the name of its method: it must be code of the package or of the registry, not of a notebook.
    `ready` makes the method ready, if its scores are not stored. `settings` are those that were chosen for it, the
    profile's by default: the row belongs to the profile, and has these parameters. The rest is as in `score`.
    """

    def prepare(_missing: list[int]) -> Prepared:
        made = ready()
        return made, lambda data, found, label: [evaluate(data, found, made.annotate, label)]

    _crawled(profile, source)
    row = _identity(profile, dataset_name, source, seed, method, split, settings)
    return _stored_or(prepare, profile, dataset_name, split, [row])[0]


def score_each(
    variants: Sequence[Profile],
    dataset_name: str,
    source: str,
    seed: int | None,
    method: str = "U-SAM",
    split: str | None = None,
) -> list[Scores]:
    """As `score`, for profiles that differ in `inference` alone: class probabilities are computed once for all."""

    def prepare(missing: list[int]) -> Prepared:
        made = METHODS.find(method)(variants[0], dataset_name, source, seed)
        configs = [variants[k].inference for k in missing]
        return made, lambda data, found, label: evaluate_each(data, found, made.name_masks, configs, label)

    _crawled(variants[0], source)
    rows = [_identity(one, dataset_name, source, seed, method, split) for one in variants]
    return _stored_or(prepare, variants[0], dataset_name, split, rows)


def _crawled(profile: Profile, source: str) -> None:
    """Make the training images, if there are any: what a crawl finds is part of the state."""
    if source in profile.sources:
        stages.training_images(profile, source)


def _stored_or(
    prepare: Callable[[list[int]], Prepared],
    profile: Profile,
    dataset_name: str,
    split: str | None,
    rows: list[dict[str, Any]],
) -> list[Scores]:
    """The scores of `rows`, and these in runs.csv. `prepare` is asked for an evaluation of those that are not stored,
    given their places."""
    files = [_file(profile, dataset_name, row) for row in rows]
    with locked(files[0]):
        known = [_load(file) for file in files]
        missing = [k for k, one in enumerate(known) if one is None]
        if missing:
            data, found = stages.dataset(profile, dataset_name, split), stages.embeddings(profile, dataset_name, split)
            made, evaluation = prepare(missing)
            with machine.timed() as cost:
                answers = evaluation(data, found, "{method}, {dataset}, {source}".format(**rows[0]))
            cost["seconds"] /= len(missing)
            for k, scores in zip(missing, answers, strict=True):
                row = rows[k] | {name: getattr(scores, name) for name in SCORES} | cost | machine.provenance()
                if made.training_seconds is not None:
                    row["training_seconds"] = made.training_seconds
                write_atomically(files[k], scores.packed(row=json.dumps(row)))
                known[k] = scores, row
    record(paths.results(profile.name) / "runs.csv", *(row for _, row in known))
    return [scores for scores, _ in known]


def noted(
    profile: Profile,
    dataset_name: str,
    source: str,
    seed: int | None,
    method: str,
    split: str | None = None,
    **numbers: float,
) -> None:
    """Write a row into runs.csv whose `numbers` are other ones than scores: every number of a table stands there."""
    row = _identity(profile, dataset_name, source, seed, method, split)
    record(paths.results(profile.name) / "runs.csv", row | numbers)


def stored(profile: Profile, row: Mapping[str, Any]) -> Scores:
    """The scores, image by image, of a row of runs.csv that belongs to `profile` as it is now.

    Raises:
        UserError: they are not there any more.
    """
    names = ("profile", "dataset", "split", "source", "method", "state")
    seed = None if pd.isna(row["seed"]) else int(row["seed"])
    same = {name: row[name] for name in names} | {"seed": seed, "parameters": json.loads(row["parameters"])}
    known = _load(_file(profile, row["dataset"].partition(",")[0], same))
    if known is None:
        raise UserError(
            f"scores of {row['method']}, {row['dataset']}, are not in {paths.data()} for the data as they are now: "
            "run notebooks 04_evaluate and 05_sam_clip again"
        )
    return known[0]


def _identity(
    profile: Profile,
    dataset_name: str,
    source: str,
    seed: int | None,
    method: str,
    split: str | None,
    settings: Profile | None = None,
) -> dict[str, Any]:
    """The columns that tell a row of runs.csv from all others."""
    config = profile.datasets[dataset_name]
    return dict(
        profile=profile.name,
        dataset=f"{dataset_name}, grouped" if config.groups else dataset_name,
        split=split or config.split,
        source=source,
        method=method,
        seed=seed,
        state=state(profile),
        parameters=(settings or profile).decisive(),
    )


def _file(profile: Profile, dataset_name: str, identity: dict[str, Any]) -> Path:
    """Where the scores of a row are stored: under a key of its identity and of the images and annotations."""
    key = cache.key([identity, stages.data_key(profile, dataset_name, identity["split"])])
    return paths.data() / profile.name / "scores" / f"{key}.npz"


def _load(file: Path) -> tuple[Scores, dict[str, Any]] | None:
    """The stored scores and their row, or None if they are not there or damaged."""
    try:
        with open(file, "rb") as content, np.load(content) as found:
            return Scores.of(found), json.loads(str(found["row"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
