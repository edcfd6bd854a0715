"""A user's own images, annotated from class names alone: the paper's whole method in one function.

    usam.annotate("~/photos", ["dog", "bicycle"], "labelled", profile="paper")

Training images are made for the names, and a head is trained on them; then SAM finds the masks of each image, and the
head names them. Everything finished is kept: SAM's embeddings of an image, which serve other names and thresholds too,
and the result of an image in the output folder, so that a run that was stopped can be resumed.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from safetensors.torch import save
from tqdm import tqdm

from usam import machine, paths, profiles
from usam.annotation import export, inputs
from usam.annotation.inputs import RECORDS, ClassChoice, ImageChoice, InputImage, Unreadable, reading
from usam.data import published
from usam.data.class_names import NOTHING
from usam.errors import UserError
from usam.files import check_disk, locked, sha256
from usam.method import inference
from usam.method.head import MaskClassifier
from usam.method.masks import MaskEmbeddings
from usam.pipeline import cache, embedding_store, stages
from usam.profiles import Profile

CODE = ("method", "data", "annotation", "report/figures.py")  # decides an image's files
UNREADABLE = np.zeros((1, 1, 3), np.uint8)  # in place of an image that cannot be read: its batch goes on
CROWDED = 0.8  # a larger share of labelled pixels is rarely right


@dataclass(frozen=True)
class Annotated:
    """What `annotate` made; `usam.annotation.viewer.Viewer` shows it.

    Attributes:
        out: folder of the data set.
        names: the classes.
        images: one row per image, highest expected error first: name, original (path), width, height (pixels), objects
            (their number), labelled (share of the pixels), expected_error (0 to 1, see `export.expected_error`).
        skipped: one row per image that could not be annotated: original, reason.
        head: names the masks; its classes after `names` are those of `others`.
        profile: the settings, with those given to `annotate` in place of its own.
        embedding_files: name of an image -> file with SAM's embeddings of it.
    """

    out: Path
    names: list[str]
    images: pd.DataFrame
    skipped: pd.DataFrame
    head: MaskClassifier
    profile: Profile
    embedding_files: dict[str, Path]

    def embeddings(self, name: str) -> MaskEmbeddings:
        """SAM's embeddings of an image."""
        return embedding_store.load(self.embedding_files[name]).on_grid(self.profile.grid)


def annotate(
    images: ImageChoice,
    classes: ClassChoice,
    out: str | Path | None = None,
    *,
    profile: str | Profile = "mini",
    source: str | None = None,
    others: str | Sequence[str] = (),
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    nms_per_class: bool | None = None,
    join_parts: bool | None = None,
    smallest: int | None = None,
    strict: bool = False,
) -> Annotated:
    """Label the objects of `classes` in `images`, and write a data set in the formats of COCO, PASCAL VOC and YOLO.

    Every mask gets the likeliest of the names, and with few names to choose from, one of them nearly always scores
    high. So name whatever is in the images, and delete what you do not need.

    Args:
        images: a folder (with its sub-folders), a pattern such as "photos/*.jpg", a file, or a list of these.
        classes: two or more names, or classes that gather names (`{"animal": ["cat", "dog"]}`); also as text: "dog,
            bicycle" or "{animal: [cat, dog], person: [person]}".
        out: folder of the data set: new, empty, or that of an earlier run, which is resumed (images that are no longer
            asked for are removed from it). By default, the images' folder with "-labelled" added to its name.
        profile: name of a file in `profiles/`, or a profile; the head is trained with its first seed.
        source: of the training images, "web" or "synthetic"; by default "web" if the profile has it.
        others: names of things in the images to leave alone: they train one more class, whose masks are dropped.
        score_threshold: masks whose class has a lower probability are dropped (0 to 1; in the paper 0.7).
        nms_iou: of two masks that overlap by this IoU or more, the one with the lower score is dropped (0 to 1; 0.5).
        nms_per_class: only if both have the same class (False).
        join_parts: masks of one class that touch become one (False).
        smallest: masks of fewer pixels of the image are dropped (0).
        strict: fail in the end if an image was skipped.

    Settings from `score_threshold` to `smallest` that are not given are the profile's.

    Returns:
        An `Annotated`, with the tables `.images` and `.skipped`; `usam.annotation.viewer.Viewer` shows it.

    Raises:
        UserError: no image was found, a class name or setting cannot be used, or `out` holds something else; with
            `strict`, an image was skipped. Everything finished is kept.
    """
    chosen = profiles.load(profile) if isinstance(profile, str) else profile
    chosen = _with(chosen, score_threshold=score_threshold, nms_iou=nms_iou, nms_per_class=nms_per_class,
                   join_parts=join_parts, smallest=smallest)  # fmt: skip
    source = source or ("web" if "web" in chosen.sources else next(iter(chosen.sources)))
    gathered = inputs.gathered_names(classes, others)
    names = [name for name in gathered if name != NOTHING]
    folder = (Path(out).expanduser() if out else inputs.default_out(images)).resolve()
    if folder.exists() and not (folder / RECORDS).is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else: choose a new folder for the result, or an empty one")
    found = inputs.find(images, folder)
    _check_disks(folder, found, chosen.sam.points_per_side**2)
    published.get_files(chosen.model_copy(update={"datasets": {}}))  # SAM, if it is a published one
    head, place = stages.heads_of(chosen, gathered, source, chosen.seeds[0]).student, stages.single_image_folder(chosen)
    files = {image.name: place / image.state[:2] / f"{image.state}.npz" for image in found}
    with locked(folder / RECORDS / "run"):
        reasons = _embed(found, files, chosen)
        rows = _label(found, files, chosen, head, names, folder, reasons)
        without = [(image.original, reasons[image.name]) for image in found if image.name in reasons]
        skipped = pd.DataFrame(without, columns=["original", "reason"])
        table = export.finish(folder, names, rows, skipped, _provenance(chosen, gathered, source, head))
    _report(folder, table, skipped, strict)
    return Annotated(folder, names, table, skipped, head, chosen, files)


def _with(profile: Profile, **wanted: Any) -> Profile:
    """The profile with other values of `inference`, where they are not None."""
    for key, value in wanted.items():
        try:
            profile = profile if value is None else profile.changed({f"inference.{key}": value})
        except ValidationError as error:
            raise UserError(f"{key}={value!r}: {error.errors()[0]['msg']}") from error
    return profile


def _check_disks(out: Path, images: Sequence[InputImage], points: int) -> None:
    """Find out before any work if a disk is too small; a point takes 2 kB of tokens, and a mask of up to some 2 kB."""
    sizes = [image.size for image in images if not (out / export.FILES[0].format(image.name)).exists()]
    check_disk(out, 2 * sum(sizes) / 2**30 + len(sizes) * 1e-4)
    check_disk(paths.data(), len(sizes) * points * 4e-6)


def _embed(images: Sequence[InputImage], files: Mapping[str, Path], profile: Profile) -> dict[str, str]:
    """Write SAM's embeddings of each image that has none; returns name -> reason of those that cannot be read."""
    reasons: dict[str, str] = {}

    def load(image: InputImage) -> np.ndarray:
        try:
            with reading(image.file) as pixels:
                return pixels
        except Unreadable as error:
            reasons[image.name] = str(error)
            return UNREADABLE

    missing = [image for image in images if not files[image.name].exists()]
    missing = list(itertools.dropwhile(lambda image: load(image) is UNREADABLE, missing))  # without SAM, so far
    if missing:
        with closing(stages.extractor(profile).stream(missing, load)) as stream:
            bar = tqdm(stream, "SAM", len(images), initial=len(images) - len(missing), unit="image")
            for image, embeddings in zip(missing, bar, strict=True):
                if image.name not in reasons:
                    embedding_store.save(files[image.name], embeddings)
    return reasons


def _label(
    images: Sequence[InputImage],
    files: Mapping[str, Path],
    profile: Profile,
    head: MaskClassifier,
    names: Sequence[str],
    out: Path,
    reasons: dict[str, str],
) -> list[dict[str, Any]]:
    """Write the files of each image that has none with these settings; returns the row of each in images.csv.

    Leaves out the images in `reasons`, and adds those that can no longer be read.
    """
    sam = stages.single_image_folder(profile).name  # a key of SAM and its settings
    settings = cache.key([_digest(head), names, profile.inference, profile.grid, sam], CODE)

    def one(image: InputImage) -> dict[str, Any] | None:
        key = f"{settings}-{image.state}"
        if (row := export.finished_row(out, image.name, key)) is not None:
            return row
        embeddings = embedding_store.load(files[image.name]).on_grid(profile.grid)
        probability = inference.probabilities(head, embeddings.tokens)
        found = inference.choose(probability, embeddings, profile.inference, len(names))
        try:
            with reading(image.file) as pixels:
                if pixels.shape[:2] != embeddings.image_size:
                    raise Unreadable("changed during the run: start again")
                return export.write(out, image, pixels, found, embeddings.extent, names, key)
        except Unreadable as error:
            reasons[image.name] = str(error)
            return None

    readable = [image for image in images if image.name not in reasons]
    with machine.workers(machine.cores()) as each:
        rows = tqdm(each(one, readable), "annotated", len(readable), unit="image")
        return [row for row in rows if row is not None]


def _provenance(
    profile: Profile, gathered: Mapping[str, Sequence[str]], source: str, head: MaskClassifier
) -> dict[str, Any]:
    """All that is needed to make the data set again."""
    made = stages.training_images(profile, source, sorted({name for names in gathered.values() for name in names}))
    return dict(
        classes=gathered,
        source=source,
        training_images={"images": len(made.table), "key": made.key},
        seed=profile.seeds[0],
        profile=profile.name,
        settings=profile.decisive(),
        sam_sha256=sha256(published.checkpoint(profile.sam)),
        head_sha256=_digest(head),
        commit=machine.commit(),
        versions=machine.versions(),
    )


def _digest(head: MaskClassifier) -> str:
    return hashlib.sha256(save({name: value.cpu() for name, value in head.state_dict().items()})).hexdigest()


def _report(out: Path, table: pd.DataFrame, skipped: pd.DataFrame, strict: bool) -> None:
    """Print what came out, and what should be looked at.

    Raises:
        UserError: an image was skipped, and `strict`.
    """
    here = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    if here == out and out.is_relative_to(paths.data()):  # in a notebook that others read
        here = out.relative_to(paths.data().parent)
    print(f"{len(table)} images annotated, {table['objects'].sum()} objects; start with {here / 'index.html'}")
    if (labelled := table["labelled"].mean()) > CROWDED:
        print(
            f"{100 * labelled:.0f}% of all pixels have a label, which is rarely right: name more of what is in the "
            "images, as classes or as `others`"
        )
    if skipped.empty:
        return
    print(f"{len(skipped)} images skipped, all listed in {here / 'skipped.csv'}; the first of them:")
    for row in skipped.head(10).itertuples():
        print(f"  {row.original}: {row.reason}")
    if strict:
        raise UserError(
            f"{len(skipped)} of {len(skipped) + len(table)} images were skipped, for example {skipped['original'][0]} "
            f"({skipped['reason'][0]}): repair or remove those in {here / 'skipped.csv'}, then start again"
        )
