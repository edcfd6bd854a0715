"""The last room of a run: heads and baselines are evaluated, each evaluation becomes a row of runs.csv (paper 4)."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from usam import (
    classes,
    clip_baseline,
    datasets,
    decoder,
    encoder,
    evaluation,
    granularity,
    head,
    hub,
    images,
    inference,
    metrics,
    paths,
    rle,
    runs,
    sam,
    sources,
    stages,
    store,
    training,
)
from usam.clip_baseline import PAPER, ClipLabeller, View, by_clip
from usam.errors import UserError
from usam.evaluation import Annotate, Scores
from usam.profiles import Profile


def state(profile: Profile) -> str:
    """Key of all that decides a score of `profile` beside data set, source, method and seed: settings, code, weights.

    It stands in each row of runs.csv, so that a table never mixes scores of different code.
    """
    code = (
        classes, clip_baseline, datasets, decoder, encoder, evaluation, granularity, head, images, inference, metrics,
        rle, sam, stages, store, training,
    )  # fmt: skip
    place = paths.data() / "images"
    made = [sources.content_key(place, name, source) for name, source in profile.sources.items()]
    makers = sorted({config.maker for config in profile.datasets.values() if config.maker})
    files = [file for maker in makers for file in images.sources_of(maker)]
    files += hub.model_files(profile.clip.model)
    return runs.stage_key([profile.decisive(), made], code, (*stages.sam_files(profile), *files))


METHODS = ("U-SAM", "MIL only", "shuffled labels")


def score(
    profile: Profile, which: str, source: str, seed: int, method: str = "U-SAM", split: str | None = None
) -> Scores:
    """Train (or reuse) the head of `method`, evaluate it on data set `which`, and write the row into runs.csv.

    Args:
        profile: the settings.
        which: "voc" or "coco".
        source: "synthetic" or "web".
        seed: of the head.
        method: "U-SAM" (the student), "MIL only" (its teacher), or "shuffled labels" (a student that cannot know).
        split: test split by default.
    """
    if method not in METHODS:
        raise UserError(f"no method '{method}': choose from {', '.join(METHODS)}")
    both = stages.heads(profile, which, source, seed, shuffled=method == "shuffled labels")
    model = both.teacher if method == "MIL only" else both.student
    return recorded(profile, which, source, seed, method, lambda: evaluation.by_head(model, profile.inference), split,
                    training_seconds=both.seconds)  # fmt: skip


def score_clip(profile: Profile, which: str, view: View = PAPER, split: str | None = None) -> Scores:
    """SAM+CLIP on data set `which` (test split by default), written into runs.csv; nothing is trained for it.

    `view` is what CLIP is shown of a mask.
    """

    def annotate() -> Annotate:
        labeller = ClipLabeller(profile.clip, stages.class_names(profile, which), view, runs.device())
        return by_clip(labeller, profile.inference)

    return recorded(profile, which, "none", None, view.method, annotate, split)


def recorded(
    profile: Profile,
    which: str,
    source: str,
    seed: int | None,
    method: str,
    annotate: Callable[[], Annotate],
    split: str | None = None,
    **more: float,
) -> Scores:
    """Evaluate a way to annotate on a data set, and write the row into runs.csv, under the name `method`.

    The scores are kept, image by image, and not computed again as long as nothing has changed that decides them. A
    way is known by the name of its method: it must be code of a module that `state` lists, not of a notebook.

    Args:
        profile, which, split: what is evaluated.
        source, seed: of the training; "none" and None where nothing was trained.
        method: the name.
        annotate: makes the way, if it is needed.
        more: further columns of the row.
    """
    row = _identity(profile, which, source, seed, method, split)
    file = _file(profile, which, row)
    with runs.alone(file):
        known = _load(file)
        if known is None:
            data, found = stages.dataset(profile, which, split), stages.embeddings(profile, which, split)
            way = annotate()
            with runs.timed() as cost:
                scores = evaluation.evaluate(data, found, way, f"{method}, {which}, {source}")
            row |= dict(miou=scores.miou, map50=scores.map50) | cost | more | runs.provenance()
            _save(file, scores, row)
        else:
            scores, row = known
    runs.record(paths.results(profile.name) / "runs.csv", **row)
    return scores


def noted(
    profile: Profile, which: str, source: str, seed: int | None, method: str, split: str | None = None, **numbers: float
) -> None:
    """Write a row into runs.csv whose `numbers` are other ones than scores: every number of a table stands there."""
    row = _identity(profile, which, source, seed, method, split)
    runs.record(paths.results(profile.name) / "runs.csv", **row, **numbers)


def kept(profile: Profile, row: Mapping[str, Any]) -> Scores:
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
    profile: Profile, which: str, source: str, seed: int | None, method: str, split: str | None
) -> dict[str, Any]:
    """What tells a row of runs.csv from all others."""
    config = profile.datasets[which]
    return dict(
        profile=profile.name,
        dataset=f"{which}, grouped" if config.groups else which,
        split=split or config.split,
        source=source,
        method=method,
        seed=seed,
        state=state(profile),
        parameters=profile.decisive(),
    )


def _file(profile: Profile, which: str, identity: dict[str, Any]) -> Path:
    """Where the scores of a row are kept: under a key of what tells it from others, and of what was looked at."""
    key = runs.stage_key([identity, stages.data_key(profile, which, identity["split"])])
    return paths.data() / profile.name / "scores" / f"{key}.npz"


def _save(file: Path, scores: Scores, row: dict[str, Any]) -> None:
    content = io.BytesIO()
    scores.save(content, row=json.dumps(row))
    runs.write_atomically(file, content.getvalue())


def _load(file: Path) -> tuple[Scores, dict[str, Any]] | None:
    """What `_save` wrote, or None if it is not there or damaged."""
    try:
        with open(file, "rb") as content, np.load(content) as found:
            return Scores.of(found), json.loads(str(found["row"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
