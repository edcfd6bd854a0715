"""The losses of the head (paper 3.5): Eqs. (1) and (2), multiple-instance learning; Eq. (3), uncertainty distillation.

Our names and the paper's: logits o_i (d x C), bag scores s_i (C), labels y_i (C), bad masks B_i.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bag_scores(logits: Tensor, a: float) -> Tensor:
    """Eq. (1): s_j = mean of the k largest logits of class j over an image's masks, k = max(1, ceil(d / a)).

    Logits (N, d, C) -> scores (N, C); `a` is the paper's design parameter.
    """
    k = max(1, math.ceil(logits.shape[1] / a))
    return logits.topk(k, dim=1).values.mean(1)


def mil_loss(logits: Tensor, labels: Tensor, a: float) -> Tensor:
    """Eq. (2): cross-entropy between softmax(s_i) and the image's labels divided by their number; mean over images.

    Logits are (N, d, C), labels (N, C) multi-hot with at least one class an image; `a` as in Eq. (1).
    """
    target = labels / labels.sum(1, keepdim=True)
    return -(target * F.log_softmax(bag_scores(logits, a), dim=1)).sum(1).mean()


def entropy(logits: Tensor) -> Tensor:
    """H = -Σ_j p_j ln p_j of softmax(logits), in nats: (..., C) -> (...), between 0 and ln C."""
    log_p = F.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def bad_masks(teacher_logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """B_i: masks on which the teacher is unsure (H > threshold), or sure of a class that the image does not have.

    Args:
        teacher_logits: (N, d, C).
        labels: (N, C) multi-hot.
        threshold: τ_H in nats.

    Returns:
        (N, d) bool.
    """
    unsure = entropy(teacher_logits) > threshold
    right = labels.bool().gather(1, teacher_logits.argmax(-1))  # (N, d): is the predicted class on the image?
    return unsure | ~right


def known_masks_loss(logits: Tensor, mask_labels: Tensor) -> Tensor:
    """Mean cross-entropy of masks of a known class (not in the paper): logits (N, d, C), labels (N, d), else -1."""
    total = F.cross_entropy(logits.transpose(1, 2), mask_labels, ignore_index=-1, reduction="sum")
    return total / (mask_labels >= 0).sum().clamp(min=1)


def uncertainty_loss(
    student_logits: Tensor, bad: Tensor, reduction: str = "sum", mask_reduction: str = "mean"
) -> Tensor:
    """Eq. (3): -Σ_j log softmax(o^s)_j on bad masks, smallest where the student says "no idea" (uniform).

    Reduced over an image's bad masks, then averaged over images; an image without bad masks adds 0.

    Args:
        student_logits: (N, d, C).
        bad: (N, d) bool.
        reduction: "sum" over the C classes as the paper writes it, or their "mean".
        mask_reduction: "mean" over an image's bad masks, or their "sum".
    """
    log_p = F.log_softmax(student_logits, dim=-1)
    per_mask = -(log_p.sum(-1) if reduction == "sum" else log_p.mean(-1))  # (N, d)
    count = bad.sum(1).clamp(min=1) if mask_reduction == "mean" else 1
    return (torch.where(bad, per_mask, 0).sum(1) / count).mean()
