"""The stages of a run: data sets, training images -> embeddings -> heads. `scoring` is the last one.

Images, embeddings and heads are stored under a key of all their inputs, only what is missing is made, and the first use
prints whether it was made or reused. A data set that is made here has a fixed folder and notes its key in `made.json`.
"""

import functools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from usam import machine, paths
from usam.config import HOW_FAST, DataConfig
from usam.data import image_files, published
from usam.data.datasets import Dataset
from usam.data.grouped import Grouped
from usam.errors import UserError
from usam.evaluation.scores import covered_objects
from usam.files import locked, write_atomically, writing
from usam.method.masks import MaskEmbeddings, coarser
from usam.method.training import Bags, train
from usam.pipeline import cache, embedding_store
from usam.pipeline.embedding_store import EmbeddingStore
from usam.pipeline.stored_heads import Heads, StoredHead, load_head
from usam.pipeline.training_images import TrainingImages, collect
from usam.profiles import Profile
from usam.registry import DATASET_READERS, IMAGE_SOURCES, METHODS, imported, source_folder

CODE = ("machine.py", "method", "data", "pipeline/embedding_store.py")  # decides embeddings and heads
STAMP = "made.json"  # in a data set that was made here: by what, and with which settings
_reported: set[Path] = set()


def _report(what: str, reused: bool, place: Path) -> None:
    """Print where a result lies, once: a notebook opens the same embeddings many times."""
    if place not in _reported:
        _reported.add(place)
        print(f"{what}: {'reused from' if reused else 'made in'} {place.relative_to(paths.data())}")


def class_names(profile: Profile, dataset_name: str) -> list[str]:
    """The classes of a data set: the names of the profile's `groups`, else its `classes`, else all that the set has."""
    config = profile.datasets[dataset_name]
    return list(config.groups or config.classes or dataset(profile, dataset_name).class_names)


def all_class_names(profile: Profile) -> list[str]:
    """The classes of all data sets, each once."""
    return sorted({name for dataset_name in profile.datasets for name in class_names(profile, dataset_name)})


def dataset(profile: Profile, dataset_name: str, split: str | None = None) -> Dataset:
    """A data set of the profile, test split by default; one that has a maker is made if it is missing.

    Raises:
        UserError: unknown data set or split; a real data set that is missing or incomplete.
    """
    if dataset_name not in profile.datasets:
        known = ", ".join(profile.datasets)
        raise UserError(f"profile '{profile.name}' has no data set '{dataset_name}': it has {known}")
    config = profile.datasets[dataset_name]
    root = paths.data() / config.root
    if config.maker:
        _make_dataset(config, root)
    seen = tuple(p.stat().st_mtime_ns for p in (root, root / "annotations", root / STAMP) if p.exists())
    data = _opened(config.format, root, split or config.split, tuple(config.classes or ()), seen)
    return Grouped(data, config.groups) if config.groups else data


@functools.lru_cache(maxsize=8)
def _opened(form: str, root: Path, split: str, names: tuple[str, ...], _seen: tuple[int, ...]) -> Dataset:
    """Read once as long as the folder does not change: COCO's JSON is large, and every stage needs it."""
    return DATASET_READERS.find(form)(root, split, names or None)


def _make_dataset(config: DataConfig, root: Path) -> None:
    """Make a data set unless it exists with these settings; a folder that was not made here is never touched.

    Raises:
        UserError: such a folder is in the way.
    """
    key = cache.key([config.maker, config.images, config.classes], code=[source_folder(config.maker)])
    with locked(root):
        if _stamp(root).get("key") == key:
            return
        if root.exists() and any(root.iterdir()) and not (root / STAMP).exists():
            raise UserError(
                f"{root} was not made by {config.maker}, and is left alone: name another root in the profile, "
                "or take the key 'maker' out to use what is there"
            )
        new = root.with_name(root.name + ".making")
        shutil.rmtree(new, ignore_errors=True)
        with writing(root):
            imported(config.maker)(new, config.images, config.classes)
            (new / STAMP).write_text(json.dumps({"key": key, "maker": config.maker, "images": config.images}))
            shutil.rmtree(root, ignore_errors=True)  # made by other code or settings
            new.rename(root)


def _stamp(root: Path) -> dict:
    try:
        return json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return {}


def training_images(profile: Profile, source: str, names: Sequence[str] | None = None) -> TrainingImages:
    """Images of each of `names` from a source (paper 3.4); by default of all classes of the profile's data sets."""
    if source not in profile.sources:
        raise UserError(f"profile '{profile.name}' has no source '{source}': it has {', '.join(profile.sources)}")
    made = collect(paths.data() / "images", source, profile.sources[source], names or all_class_names(profile))
    _report(f"{len(made.table)} {source} images", made.hit, made.folder)
    return made


def embeddings(profile: Profile, what: str, split: str | None = None, first: int | None = None) -> EmbeddingStore:
    """Mask embeddings of a source's images, or of a data set's split, or of the `first` so many images of that.

    Those of a source have no masks: the head learns from tokens alone. With `profile.grid`, they are those of the
    points nearest to a coarser grid's.
    """
    if what in profile.sources:
        return _embedded_images(profile, what, training_images(profile, what))
    data, split = dataset(profile, what, split), split or profile.datasets[what].split
    places = {one: k for k, one in enumerate(data.image_ids[:first])}
    origin = cache.key([list(places), _files_key(profile, what, data, data.files)])
    return _embedded(profile, f"{what}-{split}", list(places), lambda i: data.image(places[i]), origin)


def _embedded_images(profile: Profile, source: str, made: TrainingImages) -> EmbeddingStore:
    ids = made.table["file"].tolist()
    return _embedded(profile, source, ids, lambda i: image_files.read(made.folder / i), made.key, masks=False)


def _embedded(
    profile: Profile, name: str, ids: list, load: Callable[[Any], np.ndarray], origin: str, masks: bool = True
) -> EmbeddingStore:
    """The store of the images `load(id)`, in a folder named by `name` and a key of `origin`, SAM and its settings."""
    folder = paths.data() / profile.name / "embeddings" / f"{name}-{_sam_key(profile, origin, masks)}"
    hit = sum(1 for _ in folder.glob("[0-9]" * 5 + "/images.json")) == -(-len(ids) // embedding_store.SHARD)

    def stream(some: Iterable) -> Iterator[MaskEmbeddings]:
        """SAM is loaded only when an image is missing."""
        return extractor(profile).stream(some, load, masks)

    found = embedding_store.build(folder, ids, stream, f"{name} embeddings")
    _report(f"embeddings of {len(found)} images", hit, folder)
    return found if profile.grid is None else found.at(coarser(profile.sam.points_per_side, profile.grid))


def single_image_folder(profile: Profile) -> Path:
    """Where the embeddings of a user's images are stored, a file each, for this SAM with these settings."""
    return paths.data() / profile.name / "single_images" / _sam_key(profile)


def _sam_key(profile: Profile, *inputs: Any) -> str:
    """Of SAM, its settings, `inputs` and the code that decides the embeddings."""
    settings = profile.sam.model_dump(mode="json", exclude=HOW_FAST)
    return cache.key([*inputs, settings], [*CODE, *_folders({profile.sam.model})], [published.checkpoint(profile.sam)])


def data_key(profile: Profile, dataset_name: str, split: str | None = None) -> str:
    """Changes with any image or annotation of a split."""
    data = dataset(profile, dataset_name, split)
    return _files_key(profile, dataset_name, data, [*data.files, *data.truth_files])


def _files_key(profile: Profile, dataset_name: str, data: Dataset, files: list[Path]) -> str:
    """Changes with the files: with the key of a set that was made here, else with each file's size and time."""
    made = _stamp(paths.data() / profile.datasets[dataset_name].root).get("key")
    states = made or [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return cache.key([list(data.image_ids), states])


def own_code(profile: Profile) -> list[Path]:
    """Where the code lies that a profile names or that was registered: of data sets, sources, SAM and methods."""
    named = {profile.sam.model, *(source.kind for source in profile.sources.values())}
    named |= {name for config in profile.datasets.values() for name in (config.maker, config.format) if name}
    registered = [*METHODS.own_code(), *IMAGE_SOURCES.own_code(), *DATASET_READERS.own_code()]
    return [*registered, *_folders(named)]


def _folders(names: set[str]) -> list[Path]:
    """The folders of those of `names` that are "module:name": code outside of the package, the miniature's too."""
    return [source_folder(name) for name in sorted(names) if ":" in name]


def extractor(profile: Profile) -> Any:
    """The profile's SAM with its weights, on the GPU if there is one: a `usam.method.sam.Extractor`."""
    from usam.method import sam  # a second and a half, that only the one who asks for it shall spend

    model = sam.load_sam(profile.sam.model, published.checkpoint(profile.sam), machine.device())
    return sam.Extractor(model, profile.sam, machine.device())


def heads(profile: Profile, dataset_name: str, source: str, seed: int, shuffled: bool = False) -> Heads:
    """Teacher and student for the classes of data set `dataset_name`, trained on images of `source` (paper 3.5).

    `shuffled` gives the images each other's labels: a control, with the same training and nothing to learn.
    """
    made = training_images(profile, source)
    classes = {name: [name] for name in class_names(profile, dataset_name)}
    return _heads(profile, f"{dataset_name}-{source}-{seed}", source, made, classes, seed, shuffled)


def heads_of(profile: Profile, classes: Mapping[str, Sequence[str]], source: str, seed: int) -> Heads:
    """Teacher and student for a user's classes, each of which groups some names; images are generated or crawled for
    every name. If each class groups its own name alone, the heads equal those of `heads` for the same classes.
    """
    made = training_images(profile, source, sorted(set(chain(*classes.values()))))
    return _heads(profile, f"own-{source}-{seed}", source, made, classes, seed)


def in_domain_heads(profile: Profile, dataset_name: str, seeds: Sequence[int]) -> list[StoredHead]:
    """Heads trained on SAM's masks of marked scenes, one for each seed: those of the data set's training split, at most
    as many as the largest of the profile's sources has images.

    Raises:
        UserError: the data set has no training split, or shows no object there.
    """
    split = profile.training_split(dataset_name)
    data = dataset(profile, dataset_name, split)
    classes = len(data.class_names)
    found = embeddings(profile, dataset_name, split, classes * max(s.per_class for s in profile.sources.values()))

    @functools.cache
    def bags() -> Bags:
        labels = machine.over_images(lambda i: covered_objects(data[i], found[i])[0], len(found), "marked objects")
        known = torch.from_numpy(np.stack(list(labels)))  # (N, d)
        if (known < 0).all():
            raise UserError(f"{data.name}: no mask fits an object of the classes; choose others, or another split")
        shown = torch.stack([(known == j).any(1) for j in range(classes)], 1)
        return Bags(found.tokens, np.arange(len(found)), shown.float(), known)

    inputs = cache.key([data_key(profile, dataset_name, split), list(data.class_names)], ["evaluation/scores.py"])

    def trained(seed: int) -> StoredHead:
        rest = found, bags, [inputs], classes, seed, "head", None, profile.distillation
        return _trained(profile, f"{dataset_name}-in-domain-{seed}", *rest)

    return machine.side_by_side(trained, [(seed,) for seed in seeds])


def _heads(
    profile: Profile,
    label: str,
    source: str,
    made: TrainingImages,
    classes: Mapping[str, Sequence[str]],
    seed: int,
    shuffled: bool = False,
) -> Heads:
    found = _embedded_images(profile, source, made)

    def bags() -> Bags:
        plain = Bags.of(found.tokens, made.table["class"].tolist(), classes, profile.head.images_per_class)
        return plain.shuffled(seed) if shuffled else plain

    bags = functools.cache(bags)
    # a list, as the order of classes counts
    rest = profile, label, found, bags, [list(classes.items()), shuffled], len(classes), seed
    teacher = _trained(*rest, "teacher")
    student = _trained(*rest, "student", teacher.model, profile.distillation)
    return Heads(teacher.model, student.model, teacher.history, student.history, teacher.seconds + student.seconds)


def _trained(
    profile: Profile,
    label: str,
    found: EmbeddingStore,
    bags: Callable[[], Bags],
    inputs: list,
    classes: int,
    seed: int,
    kind: str,
    *distilled: Any,
) -> StoredHead:
    """A head of so many `classes`, from its file, or trained on `bags` of the embeddings `found`.

    `inputs` are what decides the bags beside the embeddings, `distilled` a teacher and the settings of distillation.
    """
    settings = [found.folder.name, profile.grid, profile.head, inputs, seed, *distilled[1:]]
    file = paths.data() / profile.name / "heads" / f"{label}-{kind}-{cache.key(settings, CODE)}.safetensors"
    with locked(file):
        trained = load_head(file, classes, profile.head.widths)
        _report(f"{kind} for {classes} classes", trained is not None, file)
        if trained is None:
            with machine.timed() as cost:
                model, history = train(bags(), profile.head, seed, *distilled, device=machine.device(), label=kind)
            about = {"history": history.to_csv(index=False), "seconds": str(cost["seconds"])}
            write_atomically(file, save(model.state_dict(), about))
            trained = load_head(file, classes, profile.head.widths)
    return trained
