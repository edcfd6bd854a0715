"""The last stage of a run: methods are evaluated, and each evaluation becomes a row of runs.csv (paper 4)."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from usam import machine, paths
from usam.baselines.sam_clip import PAPER, View
from usam.config import Profile
from usam.data import huggingface
from usam.errors import UserError
from usam.evaluation.scores import Scores, evaluate
from usam.files import locked, write_atomically
from usam.pipeline import cache, methods, stages
from usam.pipeline.methods import Ready
from usam.pipeline.records import record
from usam.pipeline.training_images import content_key, source_key
from usam.registry import METHODS

CODE = ("method", "data", "baselines", "evaluation", "pipeline")


def state(profile: Profile) -> str:
    """Key of all that decides a score beside data set, source, method and seed.

    It stands in each row of runs.csv, so that a table never mixes scores of different code.
    """
    place, names = paths.data() / "images", stages.all_class_names(profile)
    found = [content_key(place, name, source, names) for name, source in profile.sources.items()]
    return cache.key([code_state(profile), found])


def code_state(profile: Profile) -> str:
    """Key of settings, code and weights alone, without what a crawl has found: it is known before anything has run."""
    files = [stages.find_checkpoint(profile), *huggingface.model_files(profile.clip.model)]
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


def score_clip(profile: Profile, dataset_name: str, view: View = PAPER, split: str | None = None) -> Scores:
    """SAM+CLIP with another `view` of the masks than the paper's, if one is named."""
    ready = functools.partial(methods.sam_clip, profile, dataset_name, "none", None, view)
    return evaluated(profile, dataset_name, "none", None, view.method, ready, split)


def evaluated(
    profile: Profile,
    dataset_name: str,
    source: str,
    seed: int | None,
    method: str,
    ready: Callable[[], Ready],
    split: str | None = None,
) -> Scores:
    """Evaluate a way to annotate on a data set, and write the row into runs.csv, under the name `method`.

    The scores are stored, image by image, and not computed again as long as nothing has changed that decides them. A
    way is known by the name of its method: it must be code of the package or of the registry, not of a notebook.
    `ready` makes the method ready, if its scores are not stored; the rest is as in `score`.
    """
    if source in profile.sources:
        stages.training_images(profile, source)  # what a crawl finds is part of the key
    row = _identity(profile, dataset_name, source, seed, method, split)
    file = _file(profile, dataset_name, row)
    with locked(file):
        known = _load(file)
        if known is None:
            data, found = stages.dataset(profile, dataset_name, split), stages.embeddings(profile, dataset_name, split)
            annotate, training_seconds = ready()
            with machine.timed() as cost:
                scores = evaluate(data, found, annotate, f"{method}, {dataset_name}, {source}")
            row |= dict(miou=scores.miou, map50=scores.map50) | cost | machine.provenance()
            if training_seconds is not None:
                row["training_seconds"] = training_seconds
            write_atomically(file, scores.packed(row=json.dumps(row)))
        else:
            scores, row = known
    record(paths.results(profile.name) / "runs.csv", **row)
    return scores


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
    record(paths.results(profile.name) / "runs.csv", **row, **numbers)


def stored(profile: Profile, row: Mapping[str, Any]) -> Scores:
    """The scores, image by image, of a row of runs.csv that belongs to `profile` as it is now.

    Raises:
        UserError: they are not there any more.
    """
    names = ("profile", "dataset", "split", "source", "method", "state")
    seed = None if pd.isna(row["seed"]) else int(row["seed"])
    same = {name: row[name] for name in names} | {"seed": seed, "parameters": profile.decisive()}
    known = _load(_file(profile, row["dataset"].partition(",")[0], same))
    if known is None:
        raise UserError(
            f"scores of {row['method']}, {row['dataset']}, are not in {paths.data()} for the data as they are now: "
            "run notebooks 04_evaluate and 05_sam_clip again"
        )
    return known[0]


def _identity(
    profile: Profile, dataset_name: str, source: str, seed: int | None, method: str, split: str | None
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
        parameters=profile.decisive(),
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
