"""The paper's rivals (Tables 1 and 2) as methods: trained once a data set, source and seed, and named in two ways.

Training images are a source's, as in the paper, or the scenes of the data set's own training split ("in-domain"). With
oracle names, what a method found is matched with the truth of the test images, or, for ACR, masked by their true image
labels, as in their own papers. With deployable names, nothing is known but the training images and their classes.
"""

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from usam import machine, paths
from usam.baselines import naming
from usam.baselines.acr import Acr
from usam.baselines.fitting import Pictures
from usam.baselines.leopart import Leopart
from usam.baselines.transfgu import Transfgu
from usam.data import image_files, published
from usam.data.datasets import Dataset, Example
from usam.errors import UserError
from usam.evaluation.metrics import class_iou, confusion_matrix, mean_known
from usam.files import locked, write_atomically
from usam.pipeline import cache, choice, stages
from usam.pipeline.methods import Ready
from usam.pipeline.stored_heads import load_noted
from usam.profiles import Profile

IN_DOMAIN = "in-domain"  # as a source of training images
CODE = ("machine.py", "baselines", "data")  # decides what is fitted
LABEL_SIDE = 100  # Leopart compares clusters and truth at this size
THRESHOLDS = np.linspace(0.05, 0.95, 19)  # of ACR's activation maps, and of its image-level scores


class Fitted(NamedTuple):
    """A fitted rival, its table of losses with one row a step, and the seconds that fitting took."""

    model: Any
    history: pd.DataFrame
    seconds: float


def pictures(profile: Profile, dataset_name: str, source: str) -> Pictures:
    """Images to learn from, with the classes that each shows.

    Raises:
        UserError: no such source; in-domain, the data set has no training split.
    """
    names = stages.class_names(profile, dataset_name)
    if source != IN_DOMAIN:
        made = stages.training_images(profile, source, names)
        files = [made.folder / file for file in made.table["file"]]
        labels = nn.functional.one_hot(torch.tensor([names.index(one) for one in made.table["class"]]), len(names))
        return Pictures(lambda i: image_files.read(files[i]), labels.float())
    data = stages.dataset(profile, dataset_name, profile.training_split(dataset_name))
    shown = torch.from_numpy(np.array([present(one, len(names)) for one in _each(data, "image labels")]))
    some = shown.any(1).nonzero()[:, 0].tolist()  # a scene without any class teaches no method
    return Pictures(lambda i: data.image(some[i]), shown[some].float())


def _origin(profile: Profile, dataset_name: str, source: str) -> str:
    """Key of all that decides these images, found without reading them."""
    names = stages.class_names(profile, dataset_name)
    if source == IN_DOMAIN:
        return cache.key([stages.data_key(profile, dataset_name, profile.training_split(dataset_name)), names])
    return cache.key([stages.training_images(profile, source, names).key, names])


def present(example: Example, classes: int) -> np.ndarray:
    """Which classes an image shows, by its semantic map: (C,) bool."""
    return np.isin(np.arange(1, classes + 1), example.semantic)


def fitted(profile: Profile, rival: str, dataset_name: str, source: str, seed: int) -> Fitted:
    """A rival, from its file, or fitted; a fit that was interrupted goes on.

    `rival` is a key of `RIVALS`.

    Raises:
        UserError: the profile has no rivals, or the method collapsed.
    """
    if profile.rivals is None:
        raise UserError(f"profile '{profile.name}' has no key 'rivals': add it to profiles/, or choose another profile")
    config, build = RIVALS[rival](profile.rivals)
    classes = len(stages.class_names(profile, dataset_name))
    key = cache.key([rival, config, _origin(profile, dataset_name, source), seed], CODE, published.begins_with(config))
    file = paths.data() / profile.name / "rivals" / f"{rival}-{dataset_name}-{source}-{seed}-{key}.safetensors"
    with locked(file):
        model = build(config, classes, machine.device())
        if (about := _load(file, model)) is None:
            with machine.timed() as cost:
                table = model.fit(pictures(profile, dataset_name, source), seed, file.with_suffix(".state.pt"))
            about = {"history": table.to_csv(index=False), "seconds": str(cost["seconds"])}
            weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
            write_atomically(file, save(weights, about))
        return Fitted(model.eval(), pd.read_csv(io.StringIO(about["history"])), float(about["seconds"]))


RIVALS: dict[str, Callable[[Any], tuple[Any, Callable]]] = {
    "Leopart": lambda settings: (settings.leopart, Leopart),
    # the control of Leopart and TransFGU: the same clusters of features that have not learned anything more
    "k-means on DINO": lambda settings: (settings.leopart.model_copy(update={"steps": 0}), Leopart),
    "TransFGU": lambda settings: (settings.transfgu, Transfgu),
    "ACR": lambda settings: (settings.acr, Acr),
    "plain CAM": lambda settings: (settings.acr, functools.partial(Acr, plain=True)),  # the control of ACR
}


def _load(file: Path, model: nn.Module) -> dict[str, str] | None:
    """Bring `model` to what is stored; what is noted with it, or None if there is nothing, or it is damaged."""
    if (found := load_noted(file)) is None:
        return None
    try:
        model.load_state_dict(found[0])
        return found[1]
    except RuntimeError:
        return None


# -- names --------------------------------------------------------------------------------------------------------


def enlarged(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of small integers (h, w) at another size (H, W), without mixing any: uint8."""
    return cv2.resize(labels.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _each(data: Dataset, label: str) -> Iterator[Example]:
    yield from (data[i] for i in tqdm(range(len(data)), desc=label, unit="image", leave=False))


def clustered(rival: str, profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """Leopart, or its control, with oracle names: test images are clustered, and clusters matched with their truth."""
    found = fitted(profile, rival, dataset_name, source, seed)
    data, model = stages.dataset(profile, dataset_name), found.model
    classes = len(data.class_names)
    unlabelled = Pictures(data.image, torch.zeros(len(data), classes))
    count = len(model.centres)
    clusters = model.finish(unlabelled, count, seed)
    pixels = np.zeros((count, classes + 1), np.int64)

    def of(example: Example) -> np.ndarray:
        return model.clusters(example.image, clusters)

    small = (LABEL_SIDE, LABEL_SIDE)
    for example in _each(data, f"names, {rival}"):
        pixels += naming.overlaps(enlarged(of(example), small), enlarged(example.semantic, small), count, classes)
    names = naming.by_iou(pixels)
    return Ready(lambda example, _found: enlarged(names[of(example)], example.semantic.shape), found.seconds)


def clustered_deployable(rival: str, profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """Leopart, or its control, with deployable names: clusters and names come from the training images."""
    found = fitted(profile, rival, dataset_name, source, seed)
    shown = pictures(profile, dataset_name, source)
    model = found.model

    def maps(i: int) -> tuple[np.ndarray, np.ndarray]:
        image = shown.image(i)
        return model.clusters(image), model.looked_at(image)

    count = len(model.centres)
    names = _by_image_labels(shown, maps, count, one_each=count <= shown.labels.shape[1] + 1)
    return Ready(
        lambda example, _found: enlarged(names[model.clusters(example.image)], example.semantic.shape),
        found.seconds,
    )


def _by_image_labels(
    shown: Pictures, maps: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int, one_each: bool
) -> np.ndarray:
    """Names (count,) of clusters, by `maps` of each training image: cluster and foreground (h, w) of its patches."""
    labels = shown.labels.numpy()
    total, patches, seen = np.zeros(count), np.zeros((count, labels.shape[1])), np.zeros(count)
    for i in tqdm(range(len(shown)), desc="names", unit="image", leave=False):
        clusters, foreground = maps(i)
        own = np.bincount(clusters[foreground], minlength=count)
        total += np.bincount(clusters.ravel(), minlength=count)
        seen += own
        patches += own[:, None] * labels[i]
    return naming.by_image_labels(patches, seen / np.maximum(total, 1), one_each)


def decoded(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """TransFGU with oracle names: its clusters, background among them, are matched with the truth of the test images
    by their pixels, images and truth brought to its own size."""
    found = fitted(profile, "TransFGU", dataset_name, source, seed)
    data, model = stages.dataset(profile, dataset_name), found.model
    classes, side = len(data.class_names), profile.rivals.transfgu.side
    pixels = np.zeros((classes + 1, classes + 1), np.int64)
    for example in _each(data, "names, TransFGU"):
        labels = painted(model.logits(example.image), (side, side))
        pixels += naming.overlaps(labels, enlarged(example.semantic, (side, side)), classes + 1, classes)
    return _named(found, naming.by_count(pixels))


def decoded_deployable(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """TransFGU with deployable names: clusters get the classes of the training images in which they are found."""
    found = fitted(profile, "TransFGU", dataset_name, source, seed)
    shown = pictures(profile, dataset_name, source)

    def maps(i: int) -> tuple[np.ndarray, np.ndarray]:
        labels = found.model.segment(shown.image(i))
        return labels, labels > 0  # the first is background

    names = _by_image_labels(shown, maps, shown.labels.shape[1] + 1, one_each=True)
    return _named(found, names)


def painted(logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The highest of logits (K, h, w), enlarged to (H, W): uint8."""
    large = nn.functional.interpolate(torch.from_numpy(logits)[None], shape, mode="bilinear", align_corners=False)
    return large[0].argmax(0).to(torch.uint8).numpy()


def _named(found: Fitted, names: np.ndarray) -> Ready:
    names = names.astype(np.uint8)
    return Ready(
        lambda example, _found: names[painted(found.model.logits(example.image), example.semantic.shape)], found.seconds
    )


# -- ACR: which classes are there, and where does the background begin? -------------------------------------------


class Thresholds(NamedTuple):
    """Below which activation a pixel is background, and from which image-level score on a class is there; with None,
    the true labels say so."""

    pixel: float
    image: float | None


def activated(rival: str, oracle: bool, profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """ACR, or its control: with true image labels (`oracle`), or with those that its own classifier finds."""
    found = fitted(profile, rival, dataset_name, source, seed)
    limits = thresholds(rival, oracle, profile, source, seed)
    return Ready(lambda example, _found: _by_activation(found.model, example, limits), found.seconds)


def thresholds(rival: str, oracle: bool, profile: Profile, source: str, seed: int) -> Thresholds:
    """Those with the highest mIoU on the validation split: of the first data set that has one, for all data sets.

    Raises:
        UserError: no data set has one.
    """
    place = choice.validation(profile)
    if place is None:
        raise UserError(f"profile '{profile.name}' has no data set with a validation split: {rival} needs thresholds")
    dataset_name, split = place
    model = fitted(profile, rival, dataset_name, source, seed).model
    data = stages.dataset(profile, dataset_name, split)
    classes = len(data.class_names)
    tried = [Thresholds(p, q) for q in ([None] if oracle else THRESHOLDS) for p in THRESHOLDS]
    counts = np.zeros((len(tried), classes + 1, classes + 1), np.int64)
    small = (LABEL_SIDE, LABEL_SIDE)
    for example in _each(data, f"thresholds, {rival}"):
        maps = model.activations(example.image)
        maps = np.stack([cv2.resize(one, small, interpolation=cv2.INTER_AREA) for one in maps])
        score, truth = model.presence(example.image), enlarged(example.semantic, small)
        for k, limits in enumerate(tried):
            if k % len(THRESHOLDS) == 0:  # a new threshold of the image's classes
                seen = model.scaled(maps, _there(score, example, limits))
                best, labels = seen.max(0), seen.argmax(0) + 1
            counts[k] += confusion_matrix(truth, np.where(best > limits.pixel, labels, 0), classes)
    return tried[int(np.nanargmax(mean_known(class_iou(counts))))]


def _there(score: np.ndarray, example: Example, limits: Thresholds) -> np.ndarray:
    """Which classes an image is taken to show, (C,) bool: by the truth, or at least the likeliest."""
    if limits.image is None:
        return present(example, len(score))
    return (score > limits.image) | (score == score.max())


def _by_activation(model: Acr, example: Example, limits: Thresholds) -> np.ndarray:
    """The semantic map (H, W) uint8 of an image."""
    there = _there(model.presence(example.image), example, limits)
    return model.semantic(model.activations(example.image), there, limits.pixel).astype(np.uint8)


leopart, kmeans = (functools.partial(clustered, name) for name in ("Leopart", "k-means on DINO"))
leopart_deployable, kmeans_deployable = (
    functools.partial(clustered_deployable, name) for name in ("Leopart", "k-means on DINO")
)
acr, plain_cam = (functools.partial(activated, name, True) for name in ("ACR", "plain CAM"))
acr_deployable, plain_cam_deployable = (functools.partial(activated, name, False) for name in ("ACR", "plain CAM"))
