"""Scores of a run on a data set (paper 4), and oracles that show where the rest is lost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import BinaryIO

import numpy as np

from usam import runs, sam
from usam.datasets import VOID, Dataset, Example
from usam.head import MaskClassifier
from usam.inference import LabelledMasks, label_masks, mask_iou, probabilities
from usam.metrics import Detection, Matches, Reliability, Truth, class_iou, confusion_matrix, match, mean_known
from usam.profiles import InferenceConfig
from usam.sam import MaskEmbeddings
from usam.store import EmbeddingStore

Annotate = Callable[[Example, MaskEmbeddings], LabelledMasks]


@dataclass(frozen=True)
class Scores:
    """Scores of a split in [0, 1], and the counts of each image that they are made of.

    Attributes:
        confusion: (N, C + 1, C + 1) int32 pixel counts.
        matches: of detections and objects.
    """

    confusion: np.ndarray
    matches: Matches

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, background included; NaN if no pixel was counted."""
        return float(mean_known(self.iou))

    @property
    def map50(self) -> float:
        """Mean average precision at mask IoU 0.5 over the classes that occur (crowds alone do not count)."""
        return float(mean_known(self.ap50))

    @property
    def iou(self) -> np.ndarray:
        """(C + 1,) per class, background first; NaN where a class does not occur."""
        return class_iou(self.confusion.sum(0, dtype=np.int64))

    @property
    def ap50(self) -> np.ndarray:
        """(C,) per class; NaN where a class does not occur."""
        return self.matches.average_precision()

    def resampled(self, score: str, weights: np.ndarray) -> np.ndarray:
        """`score` ("miou", "map50") as if image i were there weights[b, i] times: (B, N) -> (B,)."""
        if score == "map50":
            return mean_known(self.matches.average_precision(weights))
        images, side = self.confusion.shape[:2]
        total = weights.astype(float) @ self.confusion.reshape(images, side**2)
        return mean_known(class_iou(total.reshape(-1, side, side)))

    def save(self, file: BinaryIO, **more: np.ndarray | str) -> None:
        """Write all of it, and `more`, as NumPy's .npz."""
        np.savez_compressed(file, confusion=self.confusion, **vars(self.matches), **more)

    @classmethod
    def of(cls, found: Mapping[str, np.ndarray]) -> "Scores":
        """What `save` wrote, opened by `numpy.load`."""
        return cls(found["confusion"], Matches(**{f.name: found[f.name] for f in fields(Matches)}))


def evaluate(dataset: Dataset, store: EmbeddingStore, annotate: Annotate, label: str = "evaluation") -> Scores:
    """mIoU and mAP50 of what `annotate` makes of every image of `dataset`; `store` holds its embeddings."""
    classes = len(dataset.class_names)

    def one(i: int) -> tuple[np.ndarray, Truth, list[Detection]]:
        example = dataset[i]
        found = annotate(example, store[i])
        rows = zip(found.labels.tolist(), found.scores.tolist(), sam.encode(found.masks), strict=True)
        return (
            confusion_matrix(example.semantic, found.semantic_map(), classes),
            (example.image_id, example.semantic.shape, example.instances),
            [(example.image_id, *row) for row in rows],
        )

    confusion, truth, detections = zip(*runs.over_images(one, len(dataset), label), strict=True)
    return Scores(np.stack(confusion), match(truth, list(chain(*detections)), classes))


def by_head(head: MaskClassifier, config: InferenceConfig, classes: int | None = None) -> Annotate:
    """U-SAM: our masks, our labels; see `inference.choose`."""
    return lambda _example, e: label_masks(probabilities(head, e.tokens), e, config, classes)


def truth_masks(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, H, W) bool and labels (n,) of an image's instances, crowds left out."""
    instances = [i for i in example.instances if not i.crowd]
    masks = sam.decode([i.mask for i in instances]) if instances else np.zeros((0, *example.semantic.shape), bool)
    return masks, np.array([i.label for i in instances], int)


def _overlap(example: Example, embeddings: MaskEmbeddings) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Our masks (d, H, W), true masks (n, H, W), true labels (n,), and IoU (d, n) between the two."""
    ours = sam.to_image_size(sam.decode(embeddings.masks), embeddings.extent, embeddings.image_size)
    true, labels = truth_masks(example)
    return ours, true, labels, mask_iou(ours, true)


def oracle_labels(config: InferenceConfig) -> Annotate:
    """Ceiling of the masks: each of our masks gets the class of the instance it overlaps at IoU >= 0.5, or goes."""

    def annotate(example: Example, embeddings: MaskEmbeddings) -> LabelledMasks:
        ours, true, labels, iou = _overlap(example, embeddings)
        probability = np.zeros((len(ours), max(labels, default=0) + 1), np.float32)
        if len(true):
            best = iou.argmax(1)
            probability[range(len(ours)), labels[best]] = np.where(iou.max(1) >= 0.5, iou.max(1), 0)
        lenient = config.model_copy(update={"score_threshold": 0.5})  # the score is an IoU here
        return label_masks(probability, embeddings, lenient)

    return annotate


def oracle_masks(head: MaskClassifier) -> Annotate:
    """Ceiling of the labels: each true mask gets the head's label of our mask that overlaps it most."""

    def annotate(example: Example, embeddings: MaskEmbeddings) -> LabelledMasks:
        _, true, _, iou = _overlap(example, embeddings)
        if not len(true):
            return LabelledMasks(*np.zeros((2, 0), int), np.zeros(0, np.float32), true)
        best = iou.argmax(0)
        probability = probabilities(head, embeddings.tokens)[best]
        order = np.argsort(-probability.max(1), kind="stable")
        return LabelledMasks(best[order], probability.argmax(1)[order], probability.max(1)[order], true[order])

    return annotate


def where_lost(
    dataset: Dataset, store: EmbeddingStore, heads: Sequence[MaskClassifier], config: InferenceConfig
) -> list[dict[str, float]]:
    """How much each step of the way to a labelled mask keeps, as shares in [0, 1]; NaN where nothing was asked.

    Returns:
        For each of `heads`,
        masks: of the true instances, those that some mask of ours covers at IoU >= 0.5.
        tokens: of the grid points on a class, those whose mask the head gives that class.
        threshold: of these right ones, those whose score reaches the threshold.
        background: of the grid points on background, those whose mask stays below the threshold, as it should.
    """

    def one(i: int) -> np.ndarray:
        example, found = dataset[i], store[i]
        *_, iou = _overlap(example, found)  # (d, n)
        covered = iou.max(0) >= 0.5  # (n,)
        masks = (covered.sum(), len(covered))
        return np.array([[masks, *_points_kept(example, found, head, config)] for head in heads])

    # (heads, 4 steps as above, 2): kept, asked
    counts = sum(runs.over_images(one, len(dataset), "where it is lost"), np.zeros((len(heads), 4, 2), int))
    shares = np.where(counts[..., 1] > 0, counts[..., 0] / np.maximum(counts[..., 1], 1), np.nan)
    return [dict(zip(("masks", "tokens", "threshold", "background"), row, strict=True)) for row in shares.tolist()]


def reliability(
    dataset: Dataset, store: EmbeddingStore, heads: Sequence[MaskClassifier], background: bool = True
) -> list[Reliability]:
    """How far the scores of each of `heads` can be trusted, on every mask of a split (paper 3.5: "well-calibrated").

    A label is right if it is the class under the mask's grid point; on background no label is. Void is left out.

    Args:
        dataset, store: as in `evaluate`.
        heads: to be asked.
        background: False leaves out the points on background, too.
    """

    def one(i: int) -> list[tuple[np.ndarray, np.ndarray]]:
        truth, embeddings = dataset[i].semantic, store[i]
        under = _under_points(truth, embeddings)
        asked = (under != VOID) & (background | (under != 0))
        said = [probabilities(head, embeddings.tokens)[asked] for head in heads]
        return [(p.max(1), p.argmax(1) + 1 == under[asked]) for p in said]

    answers = zip(*runs.over_images(one, len(dataset), "reliability"), strict=True)
    return [Reliability.of(of_head) for of_head in answers]


def _under_points(semantic: np.ndarray, embeddings: MaskEmbeddings) -> np.ndarray:
    """The value of the true semantic map under each mask's grid point, (d,)."""
    x, y = embeddings.points.astype(int).T
    return semantic[y, x]


def _points_kept(
    example: Example, embeddings: MaskEmbeddings, head: MaskClassifier, config: InferenceConfig
) -> list[tuple[int, int]]:
    """Counts of one image's grid points for `where_lost`: (kept, asked) of tokens, threshold and background."""
    probability = probabilities(head, embeddings.tokens)  # (d, C)
    truth = _under_points(example.semantic, embeddings)
    off, on = truth == 0, (truth != 0) & (truth != VOID)
    right = on & (probability.argmax(1) + 1 == truth)
    sure = probability.max(1) >= config.score_threshold
    return [(k.sum(), asked.sum()) for k, asked in ((right, on), (sure & right, right), (off & ~sure, off))]
