"""ACR: class activation maps (CAMs) that a reconstructor cannot see through.

A classifier learns which classes an image has; its CAMs show where it sees them. A CAM is right, the method believes,
if neither can the surroundings be painted from the segment, nor the segment from its surroundings. A reconstructor
learns to paint what is hidden of an image, the classifier learns CAMs with which it fails; they take turns.
Kweon, Yoon and Yoon, "Weakly Supervised Semantic Segmentation via Adversarial Learning of Classifier and
Reconstructor", CVPR 2023.

Smaller or left out here:
* ResNet-50 in place of ResNet-38d, which no library has; smaller U-Net, smaller images, fewer steps: settings.
* Images are squeezed to a square, in training and at each scale of the test. Beside flips there are crops, of 60% to
  100% of the side: small sets are seen often, and would be learned by heart.
* The U-Net has group norm, so that each image alone decides what is painted of it; pictures are in [-1, 1].
* Momentum is 0.9 and weight decay 5e-4; the original's optimiser takes the decay for the momentum, by mistake.
* Hidden cells: 20% and 1% more each epoch as in the original, but at most half.
* Without pre-trained weights: batch norm learns (the original's is frozen); AdamW in place of SGD; the logits have a
  bias beside the CAM's mean, -ln(C - 1) at first, since else they stay at the classes' frequencies for long; there may
  be steps before the two take turns, at the first learning rate, since CAMs that show nothing teach nothing.
* No refinement of the CAMs, and no segmentation network trained on them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usam.baselines import fitting
from usam.baselines.acr_losses import (
    CLASSIFIER,
    RECONSTRUCTOR,
    class_loss,
    classifier_losses,
    hidden_cells,
    reconstructor_losses,
    segment_of,
)
from usam.baselines.acr_networks import Classifier, Reconstructor, enlarged, load_weights
from usam.baselines.fitting import Pictures, fast, square, squares
from usam.config_rivals import AcrConfig
from usam.errors import Collapse, UserError

SCALES = (0.5, 1, 1.5, 2)
SMALLEST = 0.6  # side of a crop, as a share of the image's
FLAT = 0.02  # standard deviation of a mask over an image below which it shows nothing


# -- training -----------------------------------------------------------------------------------------------------


class _Training:
    """Steps of the classifier, of the reconstructor, or of both, on `images` (N, 3, s, s) uint8."""

    def __init__(self, model: "Acr", images: Tensor, labels: Tensor, seed: int):
        config = model.config
        self.model, self.images, self.labels, self.seed = model, images, labels, seed
        self.classifier = _optimizer(model.classifier, config)
        self.reconstructor = None if model.plain else _optimizer(model.reconstructor, config)
        self.steps, self.lessons = config.alone + config.steps, config.alone - config.head_start

    def parts(self) -> dict[str, Any]:
        """All that changes, for `fitting.fit`."""
        parts = {"model": self.model, "classifier": self.classifier, "reconstructor": self.reconstructor}
        return {name: part for name, part in parts.items() if part is not None}

    def step(self, n: int) -> dict[str, float]:
        """The reconstructor's step, then the classifier's, on the same images; values of all terms."""
        chance, taught = fitting.generator(self.seed, n, 1), {}
        pictures, labels, chosen = self._batch(chance)
        with fast(self.model.device):
            cams, logits, _ = self.model.classifier(pictures)
            mask, won = segment_of(cams, labels, chosen, self.model.config.side)
        losses = {"classes": class_loss(logits, labels)}
        if self.reconstructor is not None and n >= self.lessons:
            taught = self._train_reconstructor(n, pictures, labels, mask.detach(), chance)
        if self.reconstructor is not None and n >= self.model.config.alone:
            losses |= self._adversarial(pictures, mask, won)
        seen = {"spread": mask.detach().std((2, 3)).mean().item(), "zero": (mask == 0).float().mean().item()}
        return _descend(self.classifier, losses, CLASSIFIER, self._done(n)) | taught | seen

    def _done(self, n: int) -> float:
        """Share of the turns before step n: the learning rates fall with it, not before."""
        return max(n - self.model.config.alone, 0) / self.model.config.steps

    def _batch(self, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (B, 3, s, s) in [-1, 1], labels (B, C), and one class (B,) that each has."""
        rows = torch.randperm(len(self.images), generator=chance)[: self.model.config.batch]
        chosen = torch.multinomial(self.labels[rows], 1, generator=chance)[:, 0]
        images, labels, chosen = (part.to(self.model.device) for part in (self.images[rows], self.labels[rows], chosen))
        return crops(images.float() / 127.5 - 1, chance), labels, chosen

    def _train_reconstructor(
        self, n: int, pictures: Tensor, labels: Tensor, mask: Tensor, chance: torch.Generator
    ) -> dict[str, float]:
        """L_R, with the classifier's mask as it is."""
        net, config = self.model.reconstructor, self.model.config
        share = min(0.2 + 0.01 * (n * config.batch // len(self.images)), 0.5)
        hidden = hidden_cells(len(pictures), config.grid, share, config.side, chance).to(mask.device)
        with fast(self.model.device):
            logits, features = net(pictures)
            losses = reconstructor_losses(net.paint, features, pictures, mask, hidden)
        losses["reconstructor_classes"] = class_loss(logits, labels)
        return _descend(self.reconstructor, losses, RECONSTRUCTOR, self._done(n))

    def _adversarial(self, pictures: Tensor, mask: Tensor, won: Tensor) -> dict[str, Tensor]:
        """The terms of L_C that need the reconstructor as it is."""
        net = self.model.reconstructor
        net.paint.requires_grad_(False)
        with fast(self.model.device):
            with torch.no_grad():
                _, features = net(pictures)
            losses = classifier_losses(net.paint, features, pictures, mask, won)
        net.paint.requires_grad_(True)
        return losses


def crops(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """A random square of each picture (B, 3, s, s), enlarged to its size; half of them flipped."""
    sides = SMALLEST + (1 - SMALLEST) * torch.rand(len(pictures), 1, generator=chance)
    flips = 2.0 * (torch.rand(len(pictures), 1, generator=chance) < 0.5) - 1
    middles = (1 - sides) * (2 * torch.rand(len(pictures), 2, generator=chance) - 1)
    boxes = torch.cat([torch.diag_embed(torch.cat([flips * sides, sides], 1)), middles[:, :, None]], 2)
    grid = F.affine_grid(boxes.to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _optimizer(net: Classifier, config: AcrConfig) -> torch.optim.Optimizer:
    old = list(net.resnet.parameters())
    new = [weight for name, weight in net.named_parameters() if not name.startswith("resnet.")]
    groups = [{"params": w, "lr": rate, "first": rate} for w, rate in zip((old, new), config.rates, strict=True)]
    if config.weights is None:
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)


def _descend(
    optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor], weights: Mapping[str, float], done: float
) -> dict[str, float]:
    """A step down the weighted sum, at a rate that falls with the share of steps that are `done`; the losses' values.

    Raises:
        UserError: a loss is infinite, or no number.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["first"] * (1 - done) ** 0.9
    optimizer.zero_grad()
    sum(weights[name] * loss for name, loss in losses.items()).backward()
    optimizer.step()
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(map(math.isfinite, values.values())):
        raise Collapse("the training of ACR has diverged: lower the learning rates, `acr.rates` in the profile")
    return values


# -- the method ---------------------------------------------------------------------------------------------------


class Reconstructions(NamedTuple):
    """What the classifier takes for the segment of a class, and what can be painted from it and from the rest.

    Attributes:
        mask: (s, s) float32 in [0, 1].
        segment: the picture times the mask, (s, s, 3) uint8 RGB.
        from_segment, from_surroundings: (s, s, 3) uint8 RGB.
    """

    mask: np.ndarray
    segment: np.ndarray
    from_segment: np.ndarray
    from_surroundings: np.ndarray


class Acr(nn.Module):
    """Both networks; `plain` is the control, the classifier without a reconstructor.

    The control has the same initial weights, as many steps, and the same images in each.
    """

    def __init__(self, config: AcrConfig, classes: int, device: torch.device | str = "cpu", plain: bool = False):
        """Build the networks without weights: `fit` or `load_state_dict` brings them.

        Raises:
            UserError: there is no such network, or no such weights of it.
        """
        super().__init__()
        self.config, self.classes, self.plain, self.device = config, classes, plain, torch.device(device)
        self._build(0)

    def _build(self, seed: int) -> None:
        """New networks with random weights that depend on the seed alone; the classifier's also if it is alone."""
        for number, (name, kind) in enumerate((("classifier", Classifier), ("reconstructor", Reconstructor))):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(fitting.generator(seed, number, 2).initial_seed())
                alone = self.plain and kind is Reconstructor
                setattr(self, name, None if alone else kind(self.config, self.classes).to(self.device))
        self.eval()

    def fit(self, pictures: Pictures, seed: int, state: Path) -> pd.DataFrame:
        """Train from the beginning, or from what stands in `state`; a row a step with each term of the losses.

        `spread` is the masks' standard deviation over an image, `zero` the share of pixels where they are 0: without
        any, the surroundings have no say.

        Raises:
            UserError: weights cannot be downloaded; an image has no class; training diverges, or all CAMs are flat.
        """
        if not (pictures.labels > 0).any(1).all():
            raise UserError("ACR learns from the classes of images, and some training images have none: leave them out")
        self._build(seed)
        for net in filter(None, (self.classifier, self.reconstructor)):
            load_weights(net.resnet, self.config)
        training = _Training(self, squares(pictures, self.config.side), pictures.labels, seed)
        self.train()
        label = "CAM" if self.plain else "ACR"
        table = fitting.fit(training.parts(), training.steps, training.step, state, label)
        self.eval()
        if table["spread"].tail(50).mean() < FLAT:
            raise Collapse(
                f"{label}: class activation maps are flat after training: lower `acr.rates` or raise `acr.alone`"
            )
        return table

    @torch.inference_mode()
    def activations(self, image: np.ndarray) -> np.ndarray:
        """Sum over scales and flips of the positive CAMs, (C, H, W) float32, of an image (H, W, 3) uint8 RGB."""
        total = torch.zeros(1, self.classes, *image.shape[:2], device=self.device)
        for scale in SCALES:
            picture = self._picture(image, scale)
            cams = F.relu(self.classifier(torch.cat([picture, picture.flip(3)]))[0])
            total += enlarged(cams[:1] + cams[1:].flip(3), image.shape[:2])
        return total[0].cpu().numpy()

    @torch.inference_mode()
    def presence(self, image: np.ndarray) -> np.ndarray:
        """Probability of each class, (C,) float32, of an image (H, W, 3) uint8 RGB."""
        return self.classifier(self._picture(image))[1][0].sigmoid().cpu().numpy()

    @staticmethod
    def semantic(activations: np.ndarray, present: np.ndarray, threshold: float) -> np.ndarray:
        """Semantic map (h, w) int64: 0 is background, j + 1 class j.

        Args:
            activations: (C, h, w), from 0; each class's maximum is made 1.
            present: (C,) bool; the others are left out before.
            threshold: of the background, which wins where no class is above it.
        """
        seen = Acr.scaled(activations, present)
        return np.where(seen.max(0) > threshold, seen.argmax(0) + 1, 0)

    @staticmethod
    def scaled(activations: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Activations (C, h, w) with a maximum of 1 for each class that is present (C,), and 0 for the others."""
        seen = np.where(present[:, None, None], activations, 0)
        return seen / np.maximum(seen.max((1, 2), keepdims=True), 1e-5)

    @torch.inference_mode()
    def reconstructions(self, image: np.ndarray, class_index: int) -> Reconstructions:
        """Show what the reconstructor is asked about a class of an image (H, W, 3) uint8 RGB.

        Raises:
            UserError: it is switched off.
        """
        if self.plain:
            raise UserError("plain CAM has no reconstructor: ask for the reconstructions of ACR")
        picture, chosen = self._picture(image), torch.tensor([class_index], device=self.device)
        labels = F.one_hot(chosen, self.classes).float()
        mask, _ = segment_of(self.classifier(picture)[0], labels, chosen, self.config.side)
        features = self.reconstructor(picture)[1]
        painted = [self.reconstructor.paint(features * part) for part in (mask, 1 - mask)]
        shown = [(picture + 1) * mask - 1, *painted]
        bytes_ = [((one[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy() for one in shown]
        return Reconstructions(mask[0, 0].cpu().numpy(), *bytes_)

    def _picture(self, image: np.ndarray, scale: float = 1) -> Tensor:
        """(1, 3, s, s) in [-1, 1]."""
        return square(image, round(scale * self.config.side))[None].to(self.device) * 2 - 1
