"""The losses of ACR: L_C of the classifier, L_R of the reconstructor, seven terms in all; and the masks in them.

B images, C classes, D features, s the side of a picture in pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from usam.baselines.acr_networks import enlarged

# weights of the terms of L_C and of L_R
CLASSIFIER = {"classes": 1.0, "surroundings": -0.8, "segment": -0.3}
RECONSTRUCTOR = {"reconstructor_classes": 1.0, "whole": 0.2, "hidden_segment": 0.3, "hidden_surroundings": 0.5}

Paint = Callable[[Tensor], Tensor]  # features (B, D, s, s) -> pictures (B, 3, s, s)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """First term of L_C and of L_R: binary cross-entropy, mean over (B, C) logits and multi-hot labels."""
    return F.binary_cross_entropy_with_logits(logits, labels)


def painting_loss(painted: Tensor, pictures: Tensor, where: Tensor | float = 1.0) -> Tensor:
    """L1 distance of (B, 3, s, s) to (B, 3, s, s), weighted by `where` (B, 1, s, s), mean over all pixels."""
    return (where * (painted - pictures).abs()).mean()


def classifier_losses(paint: Paint, features: Tensor, pictures: Tensor, mask: Tensor, won: Tensor) -> dict[str, Tensor]:
    """Terms of L_C in which the classifier defies the reconstructor: it gains where these are large.

    * surroundings: painted from the segment alone, where the mask is 0;
    * segment: painted from the rest, where the mask is not 0 and its class has won.

    The gradient flows through what the mask lets through, not through where the loss is counted.

    Args:
        paint: the frozen reconstructor.
        features: (B, D, s, s).
        pictures: (B, 3, s, s).
        mask: m, (B, 1, s, s) in [0, 1], the CAM of one class.
        won: (B, 1, s, s), 1 where no other class of the image has a higher CAM.
    """
    outside, inside = (mask == 0).float(), (mask * won).detach()
    return {
        "surroundings": painting_loss(paint(_through(mask, features)), pictures, outside),
        "segment": painting_loss(paint(_through(1 - mask, features)), pictures, inside),
    }


def reconstructor_losses(
    paint: Paint, features: Tensor, pictures: Tensor, mask: Tensor, hidden: Tensor
) -> dict[str, Tensor]:
    """Terms of L_R: the whole picture; hidden cells of the segment; hidden cells of its surroundings.

    Shapes as in `classifier_losses`; `hidden` R is (B, 1, s, s), 1 in hidden cells. The mask has no gradient.
    """
    inside, outside = mask * hidden, (1 - mask) * hidden
    return {
        "whole": painting_loss(paint(features), pictures),
        "hidden_segment": painting_loss(paint(_through(1 - inside, features)), pictures, inside),
        "hidden_surroundings": painting_loss(paint(_through(1 - outside, features)), pictures, outside),
    }


def _through(mask: Tensor, features: Tensor) -> Tensor:
    """Features where the mask lets them through, in their own precision: large, so that copies would take time."""
    return features * mask.to(features.dtype)


def segment_of(cams: Tensor, labels: Tensor, chosen: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mask m and `won` of `classifier_losses`, (B, 1, side, side) each; m is the positive CAM divided by its maximum.

    `cams` are (B, C, h, w), `labels` (B, C) multi-hot, `chosen` (B,) a class on each image.
    """
    scaled = F.relu(cams) * labels[:, :, None, None]
    scaled = scaled / scaled.amax((2, 3), keepdim=True).clamp(min=1e-5)
    mask = scaled[torch.arange(len(cams), device=cams.device), chosen][:, None]
    won = (mask >= scaled.amax(1, keepdim=True)).float()
    return enlarged(mask, (side, side)), F.interpolate(won, size=side)


def hidden_cells(count: int, grid: int, share: float, side: int, chance: torch.Generator) -> Tensor:
    """R: each cell of a grid is 1 with probability `share`: (count, 1, side, side)."""
    cells = torch.rand(count, 1, grid, grid, generator=chance) < share
    return F.interpolate(cells.float(), size=side)
