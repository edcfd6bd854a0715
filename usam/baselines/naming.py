"""Names for what an unlabelled method has found: clusters k = 0 to K - 1 -> 0 (background) or class j + 1.

The oracle matches clusters with the truth of the test images, as the methods' papers do. A user has no such truth:
the deployable names come from the training images and their classes alone.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from usam.data.datasets import VOID


def overlaps(clusters: np.ndarray, truth: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Pixels of each cluster in the background and in each class, void left out: (count, classes + 1) int64.

    Args:
        clusters: (h, w) integers below `count`.
        truth: (h, w) uint8 semantic map.
    """
    seen = truth != VOID
    pairs = clusters[seen].astype(np.int64) * (classes + 1) + truth[seen]
    return np.bincount(pairs, minlength=count * (classes + 1)).reshape(count, classes + 1)


def by_iou(pixels: np.ndarray) -> np.ndarray:
    """Names (K,) by the truth's (K, C + 1) `overlaps`: one cluster a class (Hungarian algorithm on IoU) if K <= C + 1,
    the rest background; else many clusters a class, each the class in which most of its pixels lie (its precision)."""
    if len(pixels) > pixels.shape[1]:
        return pixels.argmax(1)
    union = pixels.sum(1, keepdims=True) + pixels.sum(0, keepdims=True) - pixels
    return one_to_one(pixels / np.maximum(union, 1))


def by_count(pixels: np.ndarray) -> np.ndarray:
    """Names (K,), K <= C + 1, one cluster a class, so that most pixels are right; the rest is background."""
    return one_to_one(pixels.astype(float))


def one_to_one(gain: np.ndarray) -> np.ndarray:
    """Names (K,) with the largest sum of `gain` (K, C + 1), each name once; clusters that get none are background."""
    names = np.zeros(len(gain), int)
    clusters, found = linear_sum_assignment(gain, maximize=True)
    names[clusters] = found
    return names


def by_image_labels(patches: np.ndarray, attended: np.ndarray, one_each: bool) -> np.ndarray:
    """Deployable names (K,): the class in whose training images a cluster is found, background if nobody looks at it.

    Rows of `patches` are normalised, then divided by each class's share of all patches. A cluster is background if less
    than half of its patches are attended to; with `one_each`, the other clusters get different classes as far as there
    are enough (Hungarian algorithm), the rest is background.

    Args:
        patches: (K, C), patches of each cluster in images of each class; an image of two classes counts for both.
        attended: (K,), share of a cluster's patches that lie in the foreground of the backbone's attention.
        one_each: whether a class may have one cluster alone.
    """
    share = patches.sum(0) / max(patches.sum(), 1)
    rows = patches / np.maximum(patches.sum(1, keepdims=True), 1)
    gain = rows / np.maximum(share, 1e-12)
    things = (attended >= 0.5) & (patches.sum(1) > 0)
    names = np.zeros(len(patches), int)
    if one_each:
        clusters, found = linear_sum_assignment(gain[things], maximize=True)
        names[np.flatnonzero(things)[clusters]] = found + 1
    else:
        names[things] = gain[things].argmax(1) + 1
    return names
