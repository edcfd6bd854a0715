"""The classifier head θ and its two losses (paper 3.5).

Our names and the paper's: tokens m_i (d x 1024), logits o_i = θ(m_i) (d x C), bag scores s_i (C), labels y_i (C).
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskClassifier(nn.Module):
    """θ: four linear layers with ReLU between, 1024 -> 512 -> 256 -> 128 -> C, on standardised tokens.

    Args:
        classes: C, number of object classes (no background class: the paper's head has none).
        mean, std: (1024,) float32 statistics of the training tokens; kept in the checkpoint.
        widths: of the three hidden layers.
    """

    def __init__(self, classes: int, mean: Tensor, std: Tensor, widths: tuple[int, int, int] = (512, 256, 128)):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        sizes = (len(mean), *widths)
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], classes))

    def standardised(self, tokens: Tensor) -> Tensor:
        """What the layers see of tokens (..., 1024) of any float type: float32 of mean 0 and deviation 1."""
        return (tokens.float() - self.mean) / self.std

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (..., C) float32 of tokens (..., 1024) of any float type."""
        return self.layers(self.standardised(tokens))


def bag_scores(logits: Tensor, a: float) -> Tensor:
    """Eq. (1): s_j = mean of the k largest logits of class j over an image's masks, k = max(1, ceil(d / a)).

    Args:
        logits: (N, d, C).
        a: the paper's design parameter.

    Returns:
        (N, C).
    """
    k = max(1, math.ceil(logits.shape[1] / a))
    return logits.topk(k, dim=1).values.mean(1)


def mil_loss(logits: Tensor, labels: Tensor, a: float) -> Tensor:
    """Eq. (2): cross-entropy between softmax(s_i) and the image's labels, normalised to sum 1; mean over images.

    Args:
        logits: (N, d, C).
        labels: (N, C) multi-hot, at least one class an image.
        a: as in Eq. (1).
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


def uncertainty_loss(student_logits: Tensor, bad: Tensor, reduction: str = "sum") -> Tensor:
    """Eq. (3): -Σ_j log softmax(o^s)_j on bad masks, smallest where the student says "no idea" (uniform).

    Averaged over an image's bad masks, then over images; an image without bad masks adds 0.

    Args:
        student_logits: (N, d, C).
        bad: (N, d) bool.
        reduction: "sum" over the C classes as the paper writes it, or their "mean".
    """
    log_p = F.log_softmax(student_logits, dim=-1)
    per_mask = -(log_p.sum(-1) if reduction == "sum" else log_p.mean(-1))  # (N, d)
    count = bad.sum(1)
    per_image = torch.where(bad, per_mask, 0).sum(1) / count.clamp(min=1)
    return per_image.mean()
