"""From SAM's nameless masks to labelled ones (paper 3.6): scores, threshold, non-maximum suppression, painting."""

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from pycocotools import mask as rle_codec
from scipy.sparse import csgraph

from usam.config import InferenceConfig
from usam.method.head import MaskClassifier
from usam.method.masks import MaskEmbeddings, mask_iou, rle_iou, rle_to_masks, to_image_size

BACKGROUND = 0  # label j of a mask becomes value j + 1 of a semantic map


@dataclass(frozen=True)
class LabelledMasks:
    """The masks of one image that pass threshold and NMS, highest score first.

    Attributes:
        index: (n,) int, which of the image's d masks each one is; of joined ones, the mask with the highest score.
        labels: (n,) int, class index from 0 to C - 1.
        scores: (n,) float32, probability of that class.
        masks: (n, H, W) bool at the image's own size; those of `choose` have the size at which masks are stored.
    """

    index: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray

    def semantic_map(self) -> np.ndarray:
        """(H, W) uint8: 0 = background, j + 1 = class j; where masks overlap the highest score wins."""
        painted = np.full(self.masks.shape[1:], BACKGROUND, np.uint8)
        for mask, label in zip(self.masks[::-1], self.labels[::-1], strict=True):
            painted[mask] = label + 1
        return painted

    def only(self, chosen: np.ndarray) -> "LabelledMasks":
        """Those at the indices `chosen`, or where its bools are true."""
        return LabelledMasks(self.index[chosen], self.labels[chosen], self.scores[chosen], self.masks[chosen])

    def joined(self) -> "LabelledMasks":
        """Masks of one class that touch (at a corner is enough) or overlap as one, with the highest of their scores."""
        grown = np.array([cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) for mask in self.masks], bool)
        touch = (mask_iou(grown, self.masks) > 0) & (self.labels[:, None] == self.labels)
        _, group = csgraph.connected_components(touch, directed=False)
        first = np.unique(group, return_index=True)[1]  # of each group the highest score
        unions = [self.masks[group == group[one]].any(0) for one in np.sort(first)]
        return dataclasses.replace(self.only(np.sort(first)), masks=np.array(unions, bool))


@torch.inference_mode()
def probabilities(head: MaskClassifier, tokens: np.ndarray) -> np.ndarray:
    """softmax(θ(m)) of each mask: tokens (..., d, 4, 256) or (..., d, 1024) -> (..., d, C) float32."""
    dim = len(head.mean)
    batch = tokens.shape[: -1 if tokens.shape[-1] == dim else -2]
    flat = torch.tensor(tokens).reshape(*batch, dim)  # a copy: a memory-mapped array is not writable
    return head(flat.to(head.mean.device)).softmax(-1).cpu().numpy()


def nms(masks: list[dict], scores: np.ndarray, labels: np.ndarray, limit: float, per_class: bool) -> np.ndarray:
    """Non-maximum suppression: indices of the masks that stay, highest score first (ties: lower index first).

    Args:
        masks: n COCO RLEs of one size.
        scores, labels: (n,).
        limit: a mask goes when its IoU with a mask that stays is `limit` or more.
        per_class: masks of different classes do not suppress each other.
    """
    stays: list[int] = []
    left = np.argsort(-scores, kind="stable")
    while len(left):  # once for each mask that stays: they are few, and so are the pairs of masks that are compared
        best, left = int(left[0]), left[1:]
        stays.append(best)
        goes = rle_iou(masks[best], [masks[j] for j in left]) >= limit
        left = left[~goes | (per_class & (labels[left] != labels[best]))]
    return np.array(stays, int)


def choose(
    probability: np.ndarray,
    embeddings: MaskEmbeddings,
    config: InferenceConfig,
    classes: int | None = None,
) -> LabelledMasks:
    """Threshold and NMS on one image (paper 3.6), its masks left at the size at which they are stored.

    Args:
        probability: (d, C) class probabilities of its masks.
        embeddings: the image's masks.
        config: thresholds.
        classes: number of classes that the user wants, all by default. Masks with further labels take part in NMS and
            are dropped afterwards.
    """
    scores, labels = probability.max(1), probability.argmax(1)
    above_threshold = np.flatnonzero((scores >= config.score_threshold) & (rle_codec.area(embeddings.masks) > 0))
    candidates = [embeddings.masks[j] for j in above_threshold]
    order = nms(candidates, scores[above_threshold], labels[above_threshold], config.nms_iou, config.nms_per_class)
    index = above_threshold[order]
    masks = rle_to_masks([embeddings.masks[j] for j in index])
    found = LabelledMasks(index, labels[index], scores[index], masks)
    if classes is not None:
        found = found.only(found.labels < classes)
    if config.join_parts and len(found.labels):
        found = found.joined()
    pixels = math.prod(embeddings.image_size) / math.prod(embeddings.extent)  # of the image in one of a mask
    return found.only(found.masks.sum((1, 2)) * pixels >= config.smallest)


def label_masks(
    probability: np.ndarray,
    embeddings: MaskEmbeddings,
    config: InferenceConfig,
    classes: int | None = None,
) -> LabelledMasks:
    """As `choose`, with the masks at the image's own size."""
    found = choose(probability, embeddings, config, classes)
    return dataclasses.replace(found, masks=to_image_size(found.masks, embeddings.extent, embeddings.image_size))
