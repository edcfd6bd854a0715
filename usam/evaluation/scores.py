"""Scores of a run on a data set (paper 4), and oracles that show where the rest is lost."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np

from usam import machine
from usam.baselines import Annotate, NameMasks
from usam.config import InferenceConfig
from usam.data.datasets import Dataset, Example
from usam.evaluation.metrics import Detection, Matches, Truth, class_iou, confusion_matrix, match, mean_known
from usam.method.head import MaskClassifier
from usam.method.inference import LabelledMasks, label_masks, probabilities
from usam.method.masks import MaskEmbeddings, mask_iou, masks_to_rle, rle_to_masks, to_image_size


@dataclass(frozen=True)
class Scores:
    """Scores of a split in [0, 1], and the counts of each image that they are made of.

    Attributes:
        confusion: (N, C + 1, C + 1) int32 pixel counts.
        matches: of detections and objects; None for a method that labels pixels and finds no objects.
    """

    confusion: np.ndarray
    matches: Matches | None

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, background included; NaN if no pixel was counted."""
        return float(mean_known(self.iou))

    @property
    def miou_objects(self) -> float:
        """The same over the classes alone, without background."""
        return float(mean_known(self.iou[1:]))

    @property
    def map50(self) -> float:
        """Mean average precision at mask IoU 0.5 over the classes that occur (crowds alone do not count); NaN without
        objects to match."""
        return float(mean_known(self.matches.average_precision())) if self.matches else np.nan

    @property
    def iou(self) -> np.ndarray:
        """(C + 1,) per class, background first; NaN where a class does not occur."""
        return class_iou(self.confusion.sum(0, dtype=np.int64))

    @property
    def image_iou(self) -> np.ndarray:
        """(N,) in [0, 1], how well each image is labelled: mean IoU over the classes, without background, that occur in
        the image or are predicted there. NaN for an image without either: nothing was there, and nothing was labelled.
        """
        hit = np.diagonal(self.confusion, axis1=1, axis2=2)[:, 1:]  # (N, C)
        union = self.confusion.sum(2)[:, 1:] + self.confusion.sum(1)[:, 1:] - hit
        return mean_known(np.where(union > 0, hit / np.maximum(union, 1), np.nan))

    def resampled(self, score: str, weights: np.ndarray) -> np.ndarray:
        """`score` ("miou", "miou_objects", "map50") as if image i were there weights[b, i] times: (B, N) -> (B,)."""
        if score == "map50":
            unknown = np.full(len(weights), np.nan)
            return mean_known(self.matches.average_precision(weights)) if self.matches else unknown
        images, side = self.confusion.shape[:2]
        total = weights.astype(float) @ self.confusion.reshape(images, side**2)
        iou = class_iou(total.reshape(-1, side, side))  # (B, C + 1)
        return mean_known(iou[:, 1:] if score == "miou_objects" else iou)

    def packed(self, **more: str) -> bytes:
        """All of it, and `more`, as NumPy's .npz."""
        content = io.BytesIO()
        np.savez_compressed(content, confusion=self.confusion, **(vars(self.matches) if self.matches else {}), **more)
        return content.getvalue()

    @classmethod
    def of(cls, found: Mapping[str, np.ndarray]) -> "Scores":
        """What `packed` made, opened by `numpy.load`."""
        names = [field.name for field in fields(Matches)]
        return cls(found["confusion"], Matches(**{n: found[n] for n in names}) if names[0] in found else None)


def evaluate(
    dataset: Dataset, store: Sequence[MaskEmbeddings], annotate: Annotate, label: str = "evaluation"
) -> Scores:
    """mIoU and mAP50 of what `annotate` makes of every image of `dataset`; `store` holds its embeddings."""
    return _evaluate(dataset, store, lambda example, found: [annotate(example, found)], label)[0]


def evaluate_each(
    dataset: Dataset,
    store: Sequence[MaskEmbeddings],
    name_masks: NameMasks,
    configs: Sequence[InferenceConfig],
    label: str = "evaluation",
) -> list[Scores]:
    """Scores with each of `configs`, whose masks have the same class probabilities: these are computed once."""

    def annotate(example: Example, found: MaskEmbeddings) -> list[LabelledMasks]:
        probability = name_masks(example, found)  # (d, C)
        return [label_masks(probability, found, config) for config in configs]

    return _evaluate(dataset, store, annotate, label)


def _evaluate(
    dataset: Dataset,
    store: Sequence[MaskEmbeddings],
    annotate: Callable[[Example, MaskEmbeddings], list[LabelledMasks | np.ndarray]],
    label: str,
) -> list[Scores]:
    """Scores of each of the answers that `annotate` has for an image, all of one kind: masks, or semantic maps."""
    classes = len(dataset.class_names)

    def one(i: int) -> tuple[Truth, list[tuple[np.ndarray, list[Detection] | None]]]:
        example, answers = dataset[i], []
        for found in annotate(example, store[i]):
            if isinstance(found, np.ndarray):
                answers.append((confusion_matrix(example.semantic, found, classes), None))
                continue
            counts = confusion_matrix(example.semantic, found.semantic_map(), classes)
            rows = zip(found.labels.tolist(), found.scores.tolist(), masks_to_rle(found.masks), strict=True)
            answers.append((counts, [(example.image_id, *row) for row in rows]))
        return (example.image_id, example.semantic.shape, example.instances), answers

    truth, answers = zip(*machine.over_images(one, len(dataset), label), strict=True)
    scores = []
    for of_all in zip(*answers, strict=True):
        confusion, detections = zip(*of_all, strict=True)
        matches = None if None in detections else match(truth, list(chain(*detections)), classes)
        scores.append(Scores(np.stack(confusion), matches))
    return scores


def nothing(_example: Example, embeddings: MaskEmbeddings) -> LabelledMasks:
    """No label at all: the floor that a method must leave before it can be compared."""
    masks = np.zeros((0, *embeddings.image_size), bool)
    return LabelledMasks(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32), masks)


def by_head(head: MaskClassifier, config: InferenceConfig, classes: int | None = None) -> Annotate:
    """U-SAM: our masks, our labels; see `inference.choose`."""
    return lambda _example, e: label_masks(probabilities(head, e.tokens), e, config, classes)


def named_by_head(head: MaskClassifier) -> NameMasks:
    """U-SAM's class probabilities of our masks."""
    return lambda _example, e: probabilities(head, e.tokens)


def compared_masks(
    example: Example, embeddings: MaskEmbeddings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Our masks (d, H, W), true masks (n, H, W) and labels (n,), crowds left out, and IoU (d, n) between the two."""
    ours = to_image_size(rle_to_masks(embeddings.masks), embeddings.extent, embeddings.image_size)
    objects = [one for one in example.instances if not one.crowd]
    true = rle_to_masks([one.mask for one in objects]) if objects else np.zeros((0, *example.semantic.shape), bool)
    return ours, true, np.array([one.label for one in objects], int), mask_iou(ours, true)


def covered_objects(example: Example, embeddings: MaskEmbeddings) -> tuple[np.ndarray, np.ndarray]:
    """Of each of our masks: class (d,) of the object that it fits best, -1 for none at IoU >= 0.5; that IoU (d,)."""
    _, true, labels, iou = compared_masks(example, embeddings)
    if not len(true):
        return np.full(len(iou), -1), np.zeros(len(iou))
    best, fit = iou.argmax(1), iou.max(1)
    return np.where(fit >= 0.5, labels[best], -1), fit


def oracle_labels(config: InferenceConfig) -> Annotate:
    """Ceiling of the masks: each of our masks gets the class of the instance it overlaps at IoU >= 0.5, or goes."""

    def annotate(example: Example, embeddings: MaskEmbeddings) -> LabelledMasks:
        labels, fit = covered_objects(example, embeddings)
        probability = np.zeros((len(labels), max(labels.max(), 0) + 1), np.float32)
        probability[range(len(labels)), labels] = np.where(labels >= 0, fit, 0)  # for -1 a zero, in the last column
        lenient = config.model_copy(update={"score_threshold": 0.5})  # the score is an IoU here
        return label_masks(probability, embeddings, lenient)

    return annotate


def oracle_masks(head: MaskClassifier) -> Annotate:
    """Ceiling of the labels: each true mask gets the head's label of our mask that overlaps it most."""

    def annotate(example: Example, embeddings: MaskEmbeddings) -> LabelledMasks:
        _, true, _, iou = compared_masks(example, embeddings)
        best = iou.argmax(0)
        probability = probabilities(head, embeddings.tokens)[best]
        order = np.argsort(-probability.max(1), kind="stable")
        return LabelledMasks(best[order], probability.argmax(1)[order], probability.max(1)[order], true[order])

    return annotate
