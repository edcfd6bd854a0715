"""A user's own pictures, annotated from class names alone: all of the paper's method behind one function.

    usam.annotate("~/photos", ["dog", "bicycle"], "labelled", profile="paper")

Training images are made for the names and a head is trained on them; then SAM looks at picture after picture, and the
head names its masks. What is finished stays: SAM's embeddings of a picture (other names and thresholds use them), and
its answer in the output folder, so that a run that was stopped goes on where it was.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError
from safetensors.torch import save
from tqdm import tqdm

from usam import machine, paths, profiles
from usam.annotation import export
from usam.annotation.export import RECORDS, Answer
from usam.annotation.inputs import InputImage, Unreadable, beside, find, one_large_at_a_time, read
from usam.config import Profile
from usam.data import published
from usam.data.class_names import NOTHING, check_names
from usam.errors import UserError
from usam.files import check_disk, locked, sha256
from usam.method import inference
from usam.method.head import MaskClassifier
from usam.method.masks import MaskEmbeddings
from usam.pipeline import cache, embedding_store, stages

CODE = ("method", "data", "annotation", "report/figures.py")  # decides an annotation
MOST_CLASSES = 254  # a VOC map has 256 values, two of them are background and void
CROWDED = 0.8  # share of all pixels that have a label, from which on something is wrong


@dataclass(frozen=True)
class Annotated:
    """What `annotate` made.

    Attributes:
        out: folder of the data set.
        names: the classes.
        pictures: one row a picture, the most doubtful first: name, original (path), width, height (pixels), objects
            (their number), labelled (share of the pixels), doubt (0 to 1, see `inference.doubt`).
        skipped: one row a picture that cannot be annotated: original, reason.
        head: that named the masks; classes behind `names` are none of the user's.
        profile: the settings, with those that were given to `annotate` in place of its own.
        kept: name -> file of SAM's embeddings (`store.load`).
    """

    out: Path
    names: list[str]
    pictures: pd.DataFrame
    skipped: pd.DataFrame
    head: MaskClassifier
    profile: Profile
    kept: dict[str, Path]

    def embeddings(self, name: str) -> MaskEmbeddings:
        """SAM's embeddings of a picture."""
        return embedding_store.load(self.kept[name]).on_grid(self.profile.grid)


def annotate(
    images: str | Path | Sequence[str | Path],
    classes: str | Sequence[str] | Mapping[str, Sequence[str]],
    out: str | Path | None = None,
    *,
    profile: str | Profile = "mini",
    source: str | None = None,
    seed: int | None = None,
    others: str | Sequence[str] = (),
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    nms_per_class: bool | None = None,
    join_parts: bool | None = None,
    smallest: int | None = None,
    strict: bool = False,
) -> Annotated:
    """Label the objects of `classes` on `images`; write a data set in the formats of COCO, PASCAL VOC and YOLO.

    Args:
        images: a folder (with all folders in it), a pattern such as "photos/*.jpg", a file, or a list of these.
        classes: two names or more, or a class -> the names that it gathers (`{"animal": ["cat", "dog"]}`); as text,
            too: "dog, bicycle", "{animal: [cat, dog], person: [person]}".
        out: folder of the data set: new, empty, or of an earlier run, which goes on (pictures that are not asked for
            any more leave it). By default it lies beside the images' folder, its name followed by "-labelled".
        profile: name of a file of `profiles/`, or a profile.
        source: of the training images, "web" or "synthetic"; by default "web" where the profile has it: nothing must
            be drawn.
        seed: of the head; the profile's first by default.
        others: names of things that are on the images and to be left alone: one more class is trained on theirs.
        score_threshold, nms_iou, nms_per_class, join_parts, smallest: in place of the profile's (`InferenceConfig`).
        strict: fail in the end if an image was skipped.

    The thresholds: masks whose class has a probability below `score_threshold` (0 to 1; the paper's 0.7) are left out;
    of two masks that overlap by an IoU of `nms_iou` (0 to 1; 0.5) or more the one with the lower score is, with
    `nms_per_class` (False) only if both have one class; with `join_parts` (False) masks of one class that touch become
    one; `smallest` (0) is in pixels of the image.

    Few names make poor annotations: every mask gets the likeliest of the names, and of two names one is nearly always
    likely enough. Name what is on the images, and drop what you do not need.

    Returns:
        An `Annotated`: `.pictures`, a table with one row an image, the most doubtful first; `.skipped`; `.out`; and
        what `usam.viewer.Viewer` shows.

    Raises:
        UserError: no image, a class name that is none, a folder that holds something else; with `strict`, a skipped
            image. All that was finished stays.
    """
    chosen = profiles.load(profile) if isinstance(profile, str) else profile
    wanted = dict(score_threshold=score_threshold, nms_iou=nms_iou, nms_per_class=nms_per_class,
                  join_parts=join_parts, smallest=smallest)  # fmt: skip
    chosen = _with(chosen, {key: value for key, value in wanted.items() if value is not None})
    source = source or ("web" if "web" in chosen.sources else next(iter(chosen.sources)))
    seed = chosen.seeds[0] if seed is None else seed
    gathered = _gathered(classes, others)
    folder = (Path(out).expanduser() if out else beside(images)).resolve()
    _check_folder(folder)
    asked = find(images, folder)
    _check_room(folder, asked, chosen.sam.points_per_side**2)
    published.get_files(chosen.model_copy(update={"datasets": {}}))  # SAM, if it is a published one
    model, place = stages.heads_of(chosen, gathered, source, seed).student, stages.single_image_folder(chosen)
    with locked(folder / RECORDS / "run"):
        kept = {p.name: place / p.state[:2] / f"{p.state}.npz" for p in asked}
        skipped = _embed(asked, kept, chosen)
        names = [name for name in gathered if name != NOTHING]
        summaries = _answer([p for p in asked if p.name not in skipped], kept, chosen, model, names, folder, skipped)
        lines = pd.DataFrame([(p.original, skipped[p.name]) for p in asked if p.name in skipped],
                             columns=["original", "reason"])  # fmt: skip
        about = _about(chosen, gathered, source, seed, model)
        table = export.finish(folder, names, summaries, lines, about)
    _report(folder, table, lines, strict)
    return Annotated(folder, names, table, lines, model, chosen, kept)


def _about(
    profile: Profile, gathered: Mapping[str, Sequence[str]], source: str, seed: int, model: MaskClassifier
) -> dict[str, Any]:
    """What it takes to do it again."""
    made = stages.training_images(profile, source, sorted({name for of in gathered.values() for name in of}))
    return dict(
        classes={name: list(of) for name, of in gathered.items()},
        source=source,
        training_images={"images": len(made.table), "key": made.key},
        seed=seed,
        profile=profile.name,
        settings=profile.decisive(),
        sam_sha256=sha256(stages.find_checkpoint(profile)),
        head_sha256=_digest(model),
        commit=machine.commit(),
        versions=machine.versions(),
    )


def _with(profile: Profile, wanted: dict[str, Any]) -> Profile:
    """The profile with other values of `inference`."""
    for key, value in wanted.items():
        try:
            profile = profile.changed(f"inference.{key}", value)
        except ValidationError as error:
            raise UserError(f"{key}={value!r}: {error.errors()[0]['msg']}") from error
    return profile


def _gathered(
    classes: str | Sequence[str] | Mapping[str, Sequence[str]], others: str | Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Class -> names that it gathers, `NOTHING` last.

    Raises:
        UserError: fewer than two classes, or too many; a name that is none, or stands in two of them.
    """
    said, left = _listed(classes), _listed(others)
    gathered = said if isinstance(said, dict) else {name: (name,) for name in said}
    if NOTHING in gathered:
        raise UserError(f"'{NOTHING}' is the name of the class of `others`: name those things there")
    if isinstance(said, list) and len(gathered) < len(said):
        raise UserError(f"a class is named twice in '{', '.join(said)}': name each once")
    if left:
        gathered = gathered | {NOTHING: tuple(left)}
    every = [name for of in gathered.values() for name in of]
    if not gathered:
        raise UserError("no class names: name two or more, 'dog, bicycle'")
    if twice := sorted(name for name, count in Counter(every).items() if count > 1):
        raise UserError(f"'{twice[0]}' is in two classes, or twice in one: put each name into one class, once")
    if len(gathered) < 2:
        raise UserError(
            f"one class alone, '{next(iter(gathered))}', cannot be told from anything: name two or more, with commas "
            "between them, or `others` to leave alone"
        )
    if len(gathered) > MOST_CLASSES:
        raise UserError(f"{len(gathered)} classes: a VOC map has room for {MOST_CLASSES}")
    check_names(list(gathered))
    check_names(every)
    if empty := [name for name, of in gathered.items() if not of]:
        raise UserError(f"class '{empty[0]}' gathers nothing: name what belongs to it, or leave it out")
    return gathered


def _listed(names: Any) -> list[str] | dict[str, tuple[str, ...]]:
    """Names as they were given, text as YAML: "dog, bicycle", "[dog, bicycle]", "{animal: [cat, dog]}"."""
    if isinstance(names, str):
        try:
            names = yaml.safe_load(names) or []
        except yaml.YAMLError as error:
            raise UserError(f"class names {names!r} are neither 'dog, bicycle' nor '{{animal: [cat, dog]}}'") from error
    if isinstance(names, Mapping):
        return {str(name): tuple(_listed(of)) for name, of in names.items()}
    if not isinstance(names, str):
        return [str(name).strip() for name in (names if isinstance(names, Sequence) else [names])]
    return [name.strip() for name in names.split(",") if name.strip()]


def _check_folder(out: Path) -> None:
    """A folder of something else is left alone."""
    if out.exists() and not (out.is_dir() and ((out / RECORDS).is_dir() or not any(out.iterdir()))):
        raise UserError(f"{out} holds something else: choose a new folder, or an empty one")


def _check_room(out: Path, asked: Sequence[InputImage], points: int) -> None:
    """A disk that is too small is found out before any work; SAM says some 2 kB about each point, rarely 3."""
    new = [p.size for p in asked if not (out / export.FILES[0].format(p.name)).exists()]
    check_disk(out, 2 * sum(new) / 2**30 + len(new) * 1e-4)
    check_disk(paths.data(), len(new) * points * 3e-6)


def _embed(asked: Sequence[InputImage], kept: Mapping[str, Path], profile: Profile) -> dict[str, str]:
    """Keep SAM's embeddings of all pictures; returns name -> reason of those that cannot be read."""
    todo = deque(p for p in asked if not kept[p.name].exists())
    skipped: dict[str, str] = {}

    def load(picture: InputImage) -> np.ndarray:
        """The picture, or a pixel in place of one that cannot be read: the others go on."""
        try:
            with one_large_at_a_time(picture.file):
                return read(picture.file)
        except Unreadable as error:
            skipped[picture.name] = str(error)
            return np.zeros((1, 1, 3), np.uint8)

    done = len(asked) - len(todo)
    with tqdm(total=len(asked), initial=done, desc="SAM", unit="image", disable=not todo) as bar:
        for picture in list(todo):  # for unreadable ones alone SAM is not loaded
            load(picture)
            if picture.name not in skipped:
                break
            todo.popleft()
            bar.update()
        if todo:
            with closing(stages.extractor(profile).stream(todo, load)) as found:
                for picture, embeddings in zip(todo, found, strict=True):
                    if picture.name not in skipped:
                        embedding_store.save(kept[picture.name], embeddings)
                    bar.update()
    return skipped


def _answer(
    asked: Sequence[InputImage],
    kept: Mapping[str, Path],
    profile: Profile,
    model: MaskClassifier,
    names: Sequence[str],
    out: Path,
    skipped: dict[str, str],
) -> list[dict[str, Any]]:
    """Write the answer of each picture that has none yet with these settings; returns the summary of each.

    A picture that cannot be read any more is added to `skipped`.
    """
    masks = stages.single_image_folder(profile).name  # a key of SAM and its settings
    key = cache.key([_digest(model), names, profile.inference, profile.grid, masks], CODE)

    def one(picture: InputImage) -> dict[str, Any] | None:
        mine = f"{key}-{picture.state}"
        if (known := export.answered(out, picture.name, mine)) is not None:
            return known
        embeddings = embedding_store.load(kept[picture.name]).on_grid(profile.grid)
        probability = inference.probabilities(model, embeddings.tokens)
        found = inference.choose(probability, embeddings, profile.inference, len(names))
        try:
            with one_large_at_a_time(picture.file):
                image = read(picture.file)
                if image.shape[:2] != embeddings.image_size:
                    raise Unreadable("changed while it was looked at: start again")
                answer = Answer(picture.name, picture.original, picture.file, image, found, embeddings.extent)
                return export.write(out, answer, names, mine)
        except Unreadable as error:
            skipped[picture.name] = str(error)
            return None

    with machine.workers(machine.cores()) as each:
        summaries = tqdm(each(one, asked), "annotated", len(asked), unit="image")
        return [summary for summary in summaries if summary is not None]


def _digest(model: MaskClassifier) -> str:
    return hashlib.sha256(save({name: value.cpu() for name, value in model.state_dict().items()})).hexdigest()


def _report(out: Path, table: pd.DataFrame, skipped: pd.DataFrame, strict: bool) -> None:
    here = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    print(f"{len(table)} pictures annotated, {table['objects'].sum()} objects; look first: {here / 'index.html'}")
    if (covered := table["labelled"].mean()) > CROWDED:
        print(
            f"{100 * covered:.0f}% of all pixels have a label, which is rarely true: name more of what is on the "
            "pictures, as classes or as `others`"
        )
    if len(skipped):
        shown = [f"  {line.original}: {line.reason}" for line in skipped.head(10).itertuples()]
        more = [f"  ... and {len(skipped) - 10} more"] * (len(skipped) > 10)
        print("\n".join([f"{len(skipped)} skipped, all of them in {here / 'skipped.csv'}:", *shown, *more]))
        if strict:
            first = skipped.iloc[0]
            raise UserError(
                f"{len(skipped)} of {len(skipped) + len(table)} pictures were skipped, {first['original']} for one "
                f"({first['reason']}); the others are in {here}: mend or remove those in skipped.csv and start again"
            )
