"""What images, data sets and embeddings contain, and where a method loses what it loses, as tables and numbers."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pandas as pd
from pycocotools import mask as rle_codec
from tqdm import tqdm

from usam import machine
from usam.config import InferenceConfig
from usam.data.datasets import VOID, Dataset, Example
from usam.evaluation.metrics import Reliability
from usam.evaluation.scores import compared_masks
from usam.method.head import MaskClassifier
from usam.method.inference import LabelledMasks, label_masks, nms, probabilities
from usam.method.masks import MaskEmbeddings, mask_iou, rle_to_masks

KINDS = ("whole", "part", "mixed", "background")


def objects(dataset: Dataset) -> pd.DataFrame:
    """One row an object of the ground truth: image (its place in the data set), class, share (of the image's area,
    in [0, 1]), crowd (bool).
    """
    rows = []
    for i in tqdm(range(len(dataset)), desc=f"objects of {dataset.name}", unit="image", leave=False):
        example = dataset[i]
        for one in example.instances:
            share = int(rle_codec.area(one.mask)) / example.semantic.size
            rows.append((i, dataset.class_names[one.label], share, one.crowd))
    return pd.DataFrame(rows, columns=["image", "class", "share", "crowd"])


def image_statistics(images: Iterable[np.ndarray]) -> pd.DataFrame:
    """One row an image (H, W, 3) uint8 RGB: brightness (mean lightness), contrast (its standard deviation), saturation
    (mean), all in [0, 1].
    """
    rows = []
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / 255
        saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1] / 255
        rows.append((grey.mean(), grey.std(), saturation.mean()))
    return pd.DataFrame(rows, columns=["brightness", "contrast", "saturation"])


def mean_image(images: Iterable[np.ndarray], side: int = 64) -> np.ndarray:
    """The mean of images (H, W, 3) uint8 of any sizes, squeezed to (side, side, 3) uint8."""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.mean(small, axis=0).round().astype(np.uint8)


def central_points(points_per_side: int) -> np.ndarray:
    """Indices of the middle points of a grid, 4 x 4 of an even one (3 x 3 of an odd one): in `sam.point_grid`'s order.

    A single-object image usually has its object there.
    """
    near = np.abs(np.arange(points_per_side) - (points_per_side - 1) / 2) < 2  # (n,)
    return np.flatnonzero(np.outer(near, near))


def mask_kinds(example: Example, embeddings: MaskEmbeddings) -> np.ndarray:
    """What each of SAM's masks covers, by the ground truth: (d,) of `KINDS`.

    whole: IoU with an object is at least 0.5. part: four fifths of the mask or more lie on one object. background: one
    fifth or less lies on any object (an empty mask, too). mixed: all else.
    """
    ours, true, _, iou = compared_masks(example, embeddings)  # (d, H, W), (n, H, W), (n,), (d, n)
    if not len(true):
        return np.full(len(ours), "background", dtype="<U10")
    area = np.maximum(ours.sum((1, 2)), 1)  # (d,)
    on_one = np.stack([(ours & one).sum((1, 2)) for one in true], 1).max(1) / area
    on_any = (ours & true.any(0)).sum((1, 2)) / area
    return np.select([iou.max(1) >= 0.5, on_one >= 0.8, on_any > 0.2], KINDS[:3], KINDS[3])


def found_objects(example: Example, labelled: LabelledMasks) -> np.ndarray:
    """Which objects are labelled correctly: (n,) bool, in the order of `example.instances`, crowds left out.

    An object is if a mask of its class covers it with an IoU of at least 0.5.
    """
    objects = [one for one in example.instances if not one.crowd]
    if not objects:
        return np.zeros(0, bool)
    same = np.array([one.label for one in objects])[:, None] == labelled.labels  # (n, masks)
    return ((mask_iou(rle_to_masks([one.mask for one in objects]), labelled.masks) >= 0.5) & same).any(1)


def whole_objects(
    dataset: Dataset, store: Sequence[MaskEmbeddings], heads: Sequence[MaskClassifier], config: InferenceConfig
) -> list[np.ndarray]:
    """How many masks cover a whole object: among all masks of SAM, among those that NMS alone leaves, which needs no
    head (the highest IoU that SAM itself predicts comes first), and among those of each of `heads`.

    Each (N, 2) int, image by image: masks that are "whole" (see `mask_kinds`), and masks.
    """

    def one(i: int) -> list[tuple[int, int]]:
        found = store[i]
        whole = mask_kinds(dataset[i], found) == "whole"
        labelled = [label_masks(probabilities(head, found.tokens), found, config).index for head in heads]
        chosen = (np.arange(len(whole)), _nms_alone(found, config), *labelled)
        return [(whole[index].sum(), len(index)) for index in chosen]

    return list(np.array(list(machine.over_images(one, len(dataset), "whole objects"))).swapaxes(0, 1))


def _nms_alone(found: MaskEmbeddings, config: InferenceConfig) -> np.ndarray:
    """Indices of the masks that NMS leaves, without a threshold and without classes."""
    there = np.flatnonzero(rle_codec.area(found.masks) > 0)
    masks, no_classes = [found.masks[j] for j in there], np.zeros(len(there), int)
    return there[nms(masks, found.iou[there], no_classes, config.nms_iou, per_class=False)]


def neighbour_agreement(tokens: np.ndarray, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Do tokens that are close to each other belong to the same class? Without training, and without a projection.

    Args:
        tokens: (M, dim).
        images: (M,) from which image each one is; neighbours within an image do not count.
        labels: (M,) class of that image.

    Returns:
        Share of tokens whose nearest neighbour has the same label, and the same for a random neighbour.
    """
    scaled = tokens.astype(np.float32)
    scaled = (scaled - scaled.mean(0)) / np.maximum(scaled.std(0), 1e-4)
    squares = (scaled**2).sum(1)
    distance = squares[:, None] + squares - 2 * scaled @ scaled.T  # (M, M)
    other, same = images[:, None] != images, labels[:, None] == labels
    nearest = np.where(other, distance, np.inf).argmin(1)
    chance = (same & other).sum(1) / np.maximum(other.sum(1), 1)
    return float(same[np.arange(len(same)), nearest].mean()), float(chance.mean())


def where_lost(
    dataset: Dataset, store: Sequence[MaskEmbeddings], heads: Sequence[MaskClassifier], config: InferenceConfig
) -> list[dict[str, float]]:
    """Where correct labels are lost: the share in [0, 1] that is still right after each step; NaN of nothing.

    Returns:
        For each of `heads`,
        masks: of the true instances, those that some mask of ours covers at IoU >= 0.5.
        tokens: of the grid points on a class, those whose mask the head gives that class.
        threshold: of these right ones, those whose score reaches the threshold.
        background: of the grid points on background, those whose mask stays below the threshold, as it should.
    """

    def one(i: int) -> np.ndarray:
        """(heads, 4 steps as above, 2): right, of how many."""
        example, found = dataset[i], store[i]
        *_, iou = compared_masks(example, found)  # (d, n)
        covered = iou.max(0) >= 0.5  # (n,)
        under = _under_points(example.semantic, found)  # (d,)
        off, on = under == 0, (under != 0) & (under != VOID)
        counts = []
        for head in heads:
            probability = probabilities(head, found.tokens)  # (d, C)
            right = on & (probability.argmax(1) + 1 == under)
            sure = probability.max(1) >= config.score_threshold
            points = [(some.sum(), of.sum()) for some, of in ((right, on), (sure & right, right), (off & ~sure, off))]
            counts.append([(covered.sum(), len(covered)), *points])
        return np.array(counts)

    right, of = np.moveaxis(sum(machine.over_images(one, len(dataset), "where it is lost")), -1, 0)
    shares = np.where(of > 0, right / np.maximum(of, 1), np.nan)
    return [dict(zip(("masks", "tokens", "threshold", "background"), row, strict=True)) for row in shares.tolist()]


def reliability(
    dataset: Dataset, store: Sequence[MaskEmbeddings], heads: Sequence[MaskClassifier], background: bool = True
) -> list[Reliability]:
    """How far the scores of each of `heads` can be trusted, on every mask of a split (paper 3.5: "well-calibrated").

    A label is right if it is the class under the mask's grid point; on background no label is. Void is left out, and
    without `background` the points on background, too.
    """

    def one(i: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found = store[i]
        under = _under_points(dataset[i].semantic, found)
        counted = (under != VOID) & (background | (under != 0))
        predicted = [probabilities(head, found.tokens)[counted] for head in heads]
        return [(p.max(1), p.argmax(1) + 1 == under[counted]) for p in predicted]

    answers = zip(*machine.over_images(one, len(dataset), "reliability"), strict=True)
    return [Reliability.of(of_head) for of_head in answers]


def _under_points(semantic: np.ndarray, embeddings: MaskEmbeddings) -> np.ndarray:
    """The value of the true semantic map under each mask's grid point, (d,)."""
    x, y = embeddings.points.astype(int).T
    return semantic[y, x]
