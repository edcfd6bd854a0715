"""From SAM's nameless masks to labelled ones (paper 3.6): scores, threshold, non-maximum suppression, painting."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from usam import sam
from usam.head import MaskClassifier
from usam.profiles import InferenceConfig
from usam.sam import MaskEmbeddings

BACKGROUND = 0  # label j of a mask becomes value j + 1 of a semantic map


@dataclass(frozen=True)
class LabelledMasks:
    """The masks that are left of one image, highest score first.

    Attributes:
        index: (n,) int, which of the image's d masks each one is.
        labels: (n,) int, class index from 0 to C - 1.
        scores: (n,) float32, probability of that class.
        masks: (n, H, W) bool at the image's own size.
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


@torch.inference_mode()
def probabilities(head: MaskClassifier, tokens: np.ndarray) -> np.ndarray:
    """softmax(θ(m)) of each mask: tokens (..., d, 4, 256) or (..., d, 1024) -> (..., d, C) float32."""
    dim = len(head.mean)
    batch = tokens.shape[: -1 if tokens.shape[-1] == dim else -2]
    flat = torch.tensor(tokens).reshape(*batch, dim)  # a copy: a memory-mapped array is not writable
    return head(flat.to(head.mean.device)).softmax(-1).cpu().numpy()


def mask_iou(masks: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """IoU of bool masks (n, h, w) and (m, h, w), by default with each other: (n, m) float32, 0 where both are empty."""
    one = masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float32)
    other = one if others is None else others.reshape(len(others), one.shape[1]).astype(np.float32)
    overlap = one @ other.T
    return overlap / np.maximum(one.sum(1)[:, None] + other.sum(1) - overlap, 1)


def nms(iou: np.ndarray, scores: np.ndarray, labels: np.ndarray, limit: float, per_class: bool) -> np.ndarray:
    """Non-maximum suppression: indices of the masks that stay, highest score first (ties: lower index first).

    Args:
        iou: (n, n) of all pairs.
        scores, labels: (n,).
        limit: a mask goes when its IoU with a mask that stays is `limit` or more.
        per_class: masks of different classes do not suppress each other.
    """
    stays: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in stays if not per_class or labels[j] == labels[i]]
        if not (iou[i, rivals] >= limit).any():
            stays.append(int(i))
    return np.array(stays, int)


def label_masks(probability: np.ndarray, embeddings: MaskEmbeddings, config: InferenceConfig) -> LabelledMasks:
    """Threshold and NMS on one image (paper 3.6).

    Args:
        probability: (d, C) class probabilities of its masks.
        embeddings: where the masks are.
        config: thresholds.
    """
    scores, labels = probability.max(1), probability.argmax(1)
    low = sam.decode(embeddings.masks)  # (d, h, w)
    kept = np.flatnonzero((scores >= config.score_threshold) & low.any((1, 2)))
    order = nms(mask_iou(low[kept]), scores[kept], labels[kept], config.nms_iou, config.nms_per_class)
    index = kept[order]
    masks = sam.to_image_size(low[index], embeddings.extent, embeddings.image_size)
    return LabelledMasks(index, labels[index], scores[index], masks)
