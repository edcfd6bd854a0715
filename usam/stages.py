"""The rooms of a run, one after the other. Each stage keeps what it made under a key of all its inputs, says whether
it was made or reused, and makes only what is missing: images -> embeddings -> heads."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from usam import classes, evaluation, head, images, paths, runs, sam, store, training
from usam.datasets import CocoDataset, Dataset, VocDataset
from usam.errors import UserError
from usam.evaluation import Scores
from usam.head import MaskClassifier
from usam.profiles import Profile
from usam.store import EmbeddingStore

_said: set[Path] = set()  # once is enough: a notebook opens the same embeddings many times


def _say(what: str, hit: bool, folder: Path) -> None:
    if folder in _said:
        return
    _said.add(folder)
    print(f"{what}: {'reused from' if hit else 'made in'} {folder.relative_to(paths.data())}")


def class_names(profile: Profile, which: str) -> list[str]:
    """The classes of data set `which`: the profile's, else all of VOC or COCO that the set knows."""
    config = profile.datasets[which]
    return list(config.classes) if config.classes else list(dataset(profile, which).class_names)


def dataset(profile: Profile, which: str, split: str | None = None) -> Dataset:
    """Data set `which` ("voc", "coco"), test split by default; a set that the profile can make is made if missing.

    Raises:
        UserError: unknown data set or split; a real data set that is missing or half there.
    """
    if which not in profile.datasets:
        raise UserError(f"profile '{profile.name}' has no data set '{which}': it has {', '.join(profile.datasets)}")
    config = profile.datasets[which]
    root = paths.data() / config.root
    if config.maker:
        _make_dataset(profile, which, root)
    split = split or config.split
    if config.format == "voc":
        return VocDataset(root, split, config.classes)
    return CocoDataset(root / "annotations" / f"instances_{split}.json", root / split, config.classes)


def _make_dataset(profile: Profile, which: str, root: Path) -> None:
    config = profile.datasets[which]
    make, stamp = images.imported(config.maker), root / "made.json"
    key = runs.stage_key([config.maker, config.images, config.classes], files=tuple(_package_of(config.maker)))
    if stamp.is_file() and json.loads(stamp.read_text()).get("key") == key:
        return
    shutil.rmtree(root, ignore_errors=True)  # made by other code or settings, or a leftover
    make(root, config.images, config.classes)
    runs.write_atomically(stamp, json.dumps({"key": key, "maker": config.maker, "images": config.images}))


def _package_of(maker: str) -> list[Path]:
    """All sources of the package in which a maker lies: any of them may change what it makes."""
    module = Path(images.imported(maker).__code__.co_filename)
    return sorted(module.parent.glob("*.py"))


@dataclass(frozen=True)
class TrainingImages:
    """Images of a source.

    Attributes:
        folder: in which they lie.
        table: one row an image: class, index, prompt, file (relative to the folder).
        key: of everything that made them.
    """

    folder: Path
    table: pd.DataFrame
    key: str


def training_images(profile: Profile, source: str, seed: int = 0) -> TrainingImages:
    """Images of every class of the profile's data sets from `source` ("synthetic", "web") (paper 3.4)."""
    if source not in profile.sources:
        raise UserError(f"profile '{profile.name}' has no source '{source}': it has {', '.join(profile.sources)}")
    config = profile.sources[source]
    names = sorted({name for which in profile.datasets for name in class_names(profile, which)})
    key = runs.stage_key([config.maker, seed], (classes, images), tuple(_package_of(config.maker)))
    folder = paths.data() / profile.name / "images" / f"{source}-{key}"
    hit = (folder / images.image_file(names[-1], config.per_class - 1)).exists()
    table = images.collect(folder, names, config, seed)
    _say(f"{len(table)} {source} images", hit, folder)
    return TrainingImages(folder, table, runs.stage_key([key, names, config.per_class]))


def embeddings(profile: Profile, what: str, split: str | None = None) -> EmbeddingStore:
    """Mask embeddings of a source's images ("synthetic", "web") or of a data set's split ("voc", "coco")."""
    if what in profile.sources:
        made = training_images(profile, what)
        ids, load, origin = made.table["file"].tolist(), lambda i: images.read(made.folder / i), made.key
    else:
        data = dataset(profile, what, split)
        ids, load = list(data.image_ids), lambda i: data.image(ids.index(i))
        origin = runs.stage_key([profile.datasets[what], split, ids], files=_stamps(profile, what))
    checkpoint = paths.resolve(profile.sam.checkpoint)
    if not checkpoint.is_file():
        raise UserError(f"SAM checkpoint {checkpoint} is missing: run notebook 00_setup, or put the file there")
    key = runs.stage_key([origin, profile.sam], (sam, store), (checkpoint,))
    folder = paths.data() / profile.name / "embeddings" / "-".join(filter(None, (what, split, key)))
    hit = folder.is_dir()
    found = store.build(folder, ids, load, sam.LazyExtractor(profile.sam, runs.device()), f"{what} embeddings")
    _say(f"embeddings of {len(found)} images", hit, folder)
    return found


def _stamps(profile: Profile, which: str) -> tuple[Path, ...]:
    """The stamp of a data set that was made here: made anew, its embeddings are too."""
    stamp = paths.data() / profile.datasets[which].root / "made.json"
    return (stamp,) if stamp.is_file() else ()


@dataclass(frozen=True)
class Heads:
    """A teacher and its student, with one row an epoch of each, and what it cost to train both (`runs.timed`)."""

    teacher: MaskClassifier
    student: MaskClassifier
    teacher_history: pd.DataFrame
    student_history: pd.DataFrame
    cost: dict[str, float]


def heads(profile: Profile, which: str, source: str, seed: int, shuffled: bool = False) -> Heads:
    """Teacher and student for the classes of data set `which`, trained on images of `source` (paper 3.5).

    `shuffled` gives the images each other's labels: the same training with nothing to learn, a check of the pipeline.
    """
    names = class_names(profile, which)
    made, found = training_images(profile, source), embeddings(profile, source)
    parameters = [made.key, profile.sam, profile.head, profile.distillation, names, seed, shuffled]
    key = runs.stage_key(parameters, (head, training), (paths.resolve(profile.sam.checkpoint),))
    folder = paths.data() / profile.name / "heads" / f"{which}-{source}-{seed}-{key}"
    hit = (folder / "cost.json").is_file()
    if not hit:
        shutil.rmtree(folder, ignore_errors=True)
        bags = training.Bags.of(found.tokens, made.table["class"].tolist(), names)
        _train_heads(profile, bags.shuffled(seed) if shuffled else bags, seed, folder)
    _say(f"heads for {len(names)} classes", hit, folder)
    return _load_heads(profile, folder, len(names))


def _train_heads(profile: Profile, bags: training.Bags, seed: int, folder: Path) -> None:
    device = runs.device()
    with runs.timed() as cost:
        teacher, history = training.train(bags, profile.head, seed, device=device)
        student, student_history = training.train(
            bags, profile.head, seed, teacher, profile.distillation, device, label="student"
        )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, model, rows in (("teacher", teacher, history), ("student", student, student_history)):
        save_file(model.state_dict(), part / f"{name}.safetensors")
        rows.to_csv(part / f"{name}.csv", index=False)
    (part / "cost.json").write_text(json.dumps(cost))
    part.rename(folder)


def _load_heads(profile: Profile, folder: Path, classes: int) -> Heads:
    def one(name: str) -> MaskClassifier:
        weights = load_file(folder / f"{name}.safetensors")
        model = MaskClassifier(classes, weights["mean"], weights["std"], profile.head.widths)
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False).to(runs.device())

    histories = [pd.read_csv(folder / f"{name}.csv") for name in ("teacher", "student")]
    return Heads(one("teacher"), one("student"), *histories, json.loads((folder / "cost.json").read_text()))


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
    both = heads(profile, which, source, seed, shuffled=method == "shuffled labels")
    model = both.teacher if method == "MIL only" else both.student
    return recorded(profile, which, source, seed, method, evaluation.by_head(model, profile.inference), split,
                    training_seconds=both.cost["seconds"])  # fmt: skip


def recorded(
    profile: Profile,
    which: str,
    source: str,
    seed: int,
    method: str,
    annotate: evaluation.Annotate,
    split: str | None = None,
    **more: float,
) -> Scores:
    """Evaluate `annotate` on a data set and write the row into runs.csv, under the name `method`."""
    data, found = dataset(profile, which, split), embeddings(profile, which, split)
    with runs.timed() as cost:
        scores = evaluation.evaluate(data, found, annotate, f"{method}, {which}, {source}, seed {seed}")
    runs.record(
        paths.results(profile.name) / "runs.csv",
        profile=profile.name,
        dataset=which,
        split=split or profile.datasets[which].split,
        source=source,
        method=method,
        seed=seed,
        parameters=profile.decisive(),
        miou=scores.miou,
        map50=scores.map50,
        **cost,
        **more,
    )
    return scores
