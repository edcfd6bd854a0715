"""The two scores of the paper (section 4): mean intersection over union, and mean average precision at IoU 0.50."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle_tools
from pycocotools.cocoeval import COCOeval

from usam.data.coco import coco_index
from usam.data.datasets import VOID, Instance
from usam.errors import UserError

Truth = tuple[str | int, tuple[int, int], list[Instance]]
Detection = tuple[str | int, int, float, dict[str, Any]]
RECALLS = np.linspace(0, 1, 101)
BINS = 15  # of equal width; how many is a convention


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixel counts of one image: (C + 1, C + 1) int32, rows are the truth, columns the prediction, 0 is background.

    Args:
        truth: (H, W) integers, 0 to C, and 255 for void, which is not counted.
        prediction: (H, W) integers, 0 to C.
        num_classes: C, without background.

    Raises:
        UserError: the sizes differ, or a value is none of these.
    """
    if truth.shape != prediction.shape:
        raise UserError(f"truth is {truth.shape}, prediction {prediction.shape}: predict at the image's own size")
    known, size = truth != VOID, num_classes + 1
    pairs = np.stack([truth[known], prediction[known]]).astype(np.int64)  # (2, pixels)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < size:
        raise UserError(
            f"semantic maps hold {pairs.min()} to {pairs.max()}, expected 0 to {size - 1}: check the classes"
        )
    return np.bincount(pairs[0] * size + pairs[1], minlength=size**2).reshape(size, size).astype(np.int32)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class: (..., C + 1, C + 1) counts of a split -> (..., C + 1) in 0 to 1.

    NaN where the truth has no pixel of the class.
    """
    truth, hit = confusion.sum(-1), np.diagonal(confusion, axis1=-2, axis2=-1)
    union = truth + confusion.sum(-2) - hit
    return np.where(truth > 0, hit / np.maximum(union, 1), np.nan)


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is no NaN; NaN if nothing is left."""
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.where(count > 0, np.where(known, values, 0).sum(-1) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Matches:
    """Detections of a split, matched with its objects at mask IoU 0.50; those that lie on crowds are left out.

    Attributes:
        image, label: (D,) int, where each detection is, and of which class; images and classes count from 0.
        score: (D,) float.
        hit: (D,) bool, it has an object of its class for itself.
        objects: (N, C) int, how many objects an image has of each class, crowds left out.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """AP50 of each class, the mean of 101 interpolated precisions, as COCOeval accumulates it.

        Args:
            weights: (B, N), how many times each image counts, in B ways; once each by default.

        Returns:
            (B, C) in 0 to 1, or (C,) without `weights`; NaN where there is no object.
        """
        times = np.ones((1, len(self.objects))) if weights is None else np.asarray(weights, float)
        total = times @ self.objects  # (B, C)
        found = np.full(total.shape, np.nan)
        for label in range(total.shape[1]):
            rows = np.flatnonzero(self.label == label)
            rows = rows[np.argsort(-self.score[rows], kind="stable")]
            there, hit = np.flatnonzero(total[:, label] > 0), np.flatnonzero(self.hit[rows])
            counted = times[np.ix_(there, self.image[rows])]  # (B', D)
            # recall rises at hits alone, and between two of them precision falls: those H detections are enough
            hits = np.cumsum(counted[:, hit], 1)  # (B', H)
            precision = hits / np.maximum(np.cumsum(counted, 1)[:, hit], 1)
            best_from_here = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            recall = torch.from_numpy(np.ascontiguousarray(hits / total[there, label, None]))
            wanted = torch.from_numpy(RECALLS).expand(len(there), -1).contiguous()
            first = torch.searchsorted(recall, wanted).numpy()  # where each recall is reached; behind the end: never
            reached = np.pad(best_from_here, ((0, 0), (0, 1)))
            found[there, label] = np.take_along_axis(reached, first, 1).mean(1)
        return found if weights is not None else found[0]


def match(truth: Sequence[Truth], detections: Sequence[Detection], num_classes: int) -> Matches:
    """COCOeval's matching of masks: IoU at least 0.50, all areas, 100 detections an image and class.

    Args:
        truth: per image its id, (H, W) and instances; images without instances belong here too.
        detections: image id, label (0 to C - 1), score and COCO RLE of the image's size.
        num_classes: C.

    Raises:
        UserError: an image twice, a mask of another size, a label out of range.
    """
    sizes = {image_id: tuple(size) for image_id, size, _ in truth}
    if len(sizes) < len(truth):
        raise UserError(f"{len(truth)} images but {len(sizes)} different ids: give every image once")
    objects = [(image_id, one.label, one.mask, {"iscrowd": one.crowd}) for image_id, _, ones in truth for one in ones]
    found = [(image_id, label, mask, {"score": score}) for image_id, label, score, mask in detections]
    indices = [coco_index(_coco_content(sizes, masks, num_classes)) for masks in (objects, found)]
    evaluation = COCOeval(*indices, "segm")
    p = evaluation.params
    p.iouThrs, p.maxDets, p.areaRng, p.areaRngLbl = np.array([0.5]), [100], [[0, 1e10]], ["all"]
    with redirect_stdout(None):
        evaluation.evaluate()
    count, rows = np.zeros((len(sizes), num_classes), int), []
    for entry in filter(None, evaluation.evalImgs):  # one for each class and image that has something
        image, label = entry["image_id"] - 1, entry["category_id"] - 1
        count[image, label] = (np.asarray(entry["gtIgnore"]) == 0).sum()
        detected = zip(entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True)
        rows += [(image, label, score, hit > 0) for score, hit, ignored in detected if not ignored]
    columns = np.array(rows, float).reshape(-1, 4).T
    return Matches(*(column.astype(kind) for column, kind in zip(columns, (int, int, float, bool), strict=True)), count)


def _coco_content(sizes: dict, masks: list[tuple], num_classes: int) -> dict[str, list[dict[str, Any]]]:
    """Instances or detections in COCO's shape; images, classes and masks are numbered from 1 (0 means unmatched)."""
    numbers = {image_id: n for n, image_id in enumerate(sizes, 1)}
    annotations = []
    for n, (image_id, label, mask, more) in enumerate(masks, 1):
        size = sizes[image_id]
        if tuple(mask["size"]) != size:
            raise UserError(f"a mask of image {image_id!r} is {mask['size']}, the image {size}: predict it again")
        if not 0 <= label < num_classes:
            raise UserError(f"a mask of image {image_id!r} has label {label}, expected 0 to {num_classes - 1}")
        place = {"id": n, "image_id": numbers[image_id], "category_id": int(label) + 1}
        annotations.append(place | {"segmentation": mask, "area": float(rle_tools.area(mask))} | more)
    images = [{"id": numbers[i], "height": height, "width": width} for i, (height, width) in sizes.items()]
    categories = [{"id": c} for c in range(1, num_classes + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


@dataclass(frozen=True)
class Reliability:
    """Calibration: how often masks of a given score are right. Counts of a split, image by image, in bins of the score.

    Attributes:
        count: (N, BINS) int, masks.
        score: (N, BINS) float, the sum of their scores.
        right: (N, BINS) int, how many have the right label.
    """

    count: np.ndarray
    score: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, images: Sequence[tuple[np.ndarray, np.ndarray]]) -> "Reliability":
        """Counts of images, each given as scores (d,) in 0 to 1 and whether each mask's label is right, (d,) bool."""
        sums = np.zeros((3, len(images), BINS))
        for i, (score, right) in enumerate(images):
            place = np.minimum((score * BINS).astype(int), BINS - 1)
            for total, values in zip(sums, (None, score, right), strict=True):
                total[i] = np.bincount(place, values, BINS)
        return cls(*sums)

    def error(self, weights: np.ndarray) -> np.ndarray:
        """Expected calibration error: mean over masks of |share that is right - mean score| of their bin.

        `weights` are (B, N), how many times each image counts, in B ways; the result is (B,) in 0 to 1.
        """
        count, score, right = (weights @ part for part in (self.count, self.score, self.right))
        return np.abs(right - score).sum(-1) / np.maximum(count.sum(-1), 1)

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Over all images: masks, mean score and share that is right of each bin, (BINS,); NaN where no mask is."""
        count, score, right = (part.sum(0) for part in (self.count, self.score, self.right))
        some = np.where(count > 0, count, np.nan)
        return count, score / some, right / some
