"""The two scores of the paper (section 4): mean intersection over union, and mean average precision at IoU 0.50."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.cocoeval import COCOeval

from usam.datasets import VOID, Instance, coco_index
from usam.errors import UserError

Truth = tuple[str | int, tuple[int, int], list[Instance]]
Detection = tuple[str | int, int, float, dict[str, Any]]


class ConfusionMatrix:
    """Pixel counts of a whole split: rows are the truth, columns the prediction, 0 is background.

    Args:
        num_classes: C, without background.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) integers, 0 to C, and 255 for void, which is not counted.
            prediction: (H, W) integers, 0 to C.

        Raises:
            UserError: the sizes differ, or a value is none of these.
        """
        if truth.shape != prediction.shape:
            raise UserError(f"truth is {truth.shape}, prediction {prediction.shape}: predict at the image's own size")
        known = truth != VOID
        pairs = np.stack([truth[known], prediction[known]]).astype(np.int64)  # (2, pixels)
        size = len(self.matrix)
        if pairs.size and not 0 <= pairs.min() <= pairs.max() < size:
            raise UserError(
                f"semantic maps hold {pairs.min()} to {pairs.max()}, expected 0 to {size - 1}: check the classes"
            )
        self.matrix += np.bincount(pairs[0] * size + pairs[1], minlength=size**2).reshape(size, size)

    def iou(self) -> np.ndarray:
        """Intersection over union of each class, (C + 1,) in 0 to 1; NaN where the truth has no pixel of it."""
        truth, hit = self.matrix.sum(axis=1), self.matrix.diagonal()
        union = truth + self.matrix.sum(axis=0) - hit
        return np.where(truth > 0, hit / np.maximum(union, 1), np.nan)

    def miou(self) -> float:
        """Mean over the classes that occur in the truth, background included; NaN if nothing was counted."""
        return _mean(self.iou())


def map50(truth: Sequence[Truth], detections: Sequence[Detection], num_classes: int) -> tuple[float, np.ndarray]:
    """Mean average precision of masks at IoU 0.50: COCOeval, all areas, 100 detections an image and class.

    Args:
        truth: per image its id, (H, W) and instances; images without instances belong here too.
        detections: image id, label (0 to C - 1), score and COCO RLE of the image's size.
        num_classes: C.

    Returns:
        The mean over classes with ground truth (crowds alone are none), and each class's value, (C,) float in 0 to 1
        with NaN where there is no ground truth.

    Raises:
        UserError: an image twice, a detection on an unknown image, a mask of another size, a label out of range.
    """
    sizes = {image_id: tuple(size) for image_id, size, _ in truth}
    if len(sizes) < len(truth):
        raise UserError(f"{len(truth)} images but {len(sizes)} different ids: give every image once")
    objects = [
        (image_id, one.label, one.mask, {"iscrowd": int(one.crowd)}) for image_id, _, ones in truth for one in ones
    ]
    found = [(image_id, label, mask, {"iscrowd": 0, "score": score}) for image_id, label, score, mask in detections]
    evaluation = COCOeval(
        coco_index(_coco_content(sizes, objects, num_classes)),
        coco_index(_coco_content(sizes, found, num_classes)),
        "segm",
    )
    p = evaluation.params
    p.iouThrs, p.maxDets, p.areaRng, p.areaRngLbl = np.array([0.5]), [100], [[0, 1e10]], ["all"]
    with redirect_stdout(None):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 0]  # (101 recalls, C), -1 without ground truth
    each = np.where(precision[0] >= 0, precision.mean(axis=0), np.nan)  # (C,)
    return _mean(each), each


def _coco_content(sizes: dict, masks: list[tuple], num_classes: int) -> dict[str, list[dict[str, Any]]]:
    """Instances or detections in COCO's shape; images, classes and masks are numbered from 1 (0 means unmatched)."""
    numbers = {image_id: n for n, image_id in enumerate(sizes, 1)}
    annotations = []
    for n, (image_id, label, mask, more) in enumerate(masks, 1):
        if image_id not in sizes:
            raise UserError(
                f"a detection is on image {image_id!r}, which has no truth: evaluate the split you predicted"
            )
        if tuple(mask["size"]) != sizes[image_id]:
            raise UserError(
                f"a mask of image {image_id!r} is {mask['size']}, the image {sizes[image_id]}: predict it again"
            )
        if not 0 <= label < num_classes:
            raise UserError(f"a mask of image {image_id!r} has label {label}, expected 0 to {num_classes - 1}")
        place = {"id": n, "image_id": numbers[image_id], "category_id": int(label) + 1}
        annotations.append(place | {"segmentation": mask, "area": float(rle_tools.area(mask))} | more)
    images = [{"id": numbers[i], "height": height, "width": width} for i, (height, width) in sizes.items()]
    categories = [{"id": c} for c in range(1, num_classes + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
