"""Leopart (Ziegler and Asano, "Self-Supervised Learning of Object Parts for Semantic Segmentation", CVPR 2022).

It believes that patches which look alike are parts of the same kind of object, and that a place keeps its part whatever
crop it is seen in. A teacher assigns the patches of large crops to prototypes, all equally often; the student, a DINO
whose training goes on, has to say the same of these places in every other crop, where DINO looks at an object. No label
takes part. What counts in the end are clusters (k-means) of the student's patch features.

Smaller or left out here:

* `LeopartConfig` has the authors' settings by default, but fewer steps; what a profile makes smaller is one of them.
* The authors' foreground from clusters and their merging of parts to objects: their code tunes both on true labels.
* The teacher's head begins as a copy of the student's. The authors' begins with other random weights, of which
  0.9995^1000 = 61% are left after 1,000 steps: in a short training the student would learn to repeat them.
* Features in the queue are compared with the teacher's prototypes, in the authors' code with the student's.
* Images are made square first, and each step draws its images anew, without epochs.
* k-means sees patches, at most 300,000; the authors first enlarge features to 100 x 100 an image, and take all.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms
from torchvision.ops import MLP, StochasticDepth, roi_align
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from usam.baselines import fitting
from usam.baselines.backbone import Backbone
from usam.baselines.fitting import Pictures, fast, square, squares
from usam.config_rivals import LeopartConfig
from usam.errors import Collapse, UserError

LARGE, SMALL, RATIO = (0.25, 1.0), (0.05, 0.25), (3 / 4, 4 / 3)  # crops: area as a share of the image's; width / height
JITTER = transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8)
BLUR = transforms.RandomApply([transforms.GaussianBlur(13, (0.1, 2.0))], 0.5)
OTHER_LOOK = transforms.Compose([JITTER, transforms.RandomGrayscale(0.2), BLUR])
TEMPERATURE, SHARPNESS = 0.1, 0.05  # of the student's answers; of the assignment
WEIGHT_DECAY, DROP_PATH = (0.04, 0.5), 0.1  # at the first step and after the last one; of the student's last layer
LOOKED_AT, LEAST = 0.6, 3  # share of the attention that makes the foreground; patches of its smallest component
KEPT = 10  # features of a large crop that enter the queue
PATCHES, DIMENSIONS = 300_000, 50  # of k-means, at most
ALIKE = 1e-4  # standard deviation below which everything is alike


def boxes(side: int, small: int) -> Tensor:
    """Two large and `small` small crops of a square image, (2 + small, 4): x, y, x, y in pixels.

    Each has more than 1% of the image in common with each large one; the two large ones, more than 2%.
    """
    image, found, n = torch.empty(1, side, side), torch.zeros(2 + small, 4), 0
    while n < len(found):
        top, left, height, width = transforms.RandomResizedCrop.get_params(image, LARGE if n < 2 else SMALL, RATIO)
        found[n] = torch.tensor([left, top, left + width, top + height])
        common = overlap(found[n], found[: min(n, 2)])
        areas = (common[:, 2:] - common[:, :2]).clamp(min=0).prod(1)
        n += bool((areas > (0.02 if n < 2 else 0.01) * side**2).all())
    return found


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """What two boxes (..., 4) have in common: a box, upside down if that is nothing."""
    return torch.cat([one[..., :2].maximum(other[..., :2]), one[..., 2:].minimum(other[..., 2:])], -1)


def align(maps: Tensor, crops: Tensor, places: Tensor, cells: int) -> Tensor:
    """Maps (B, K, n, n) of crops (B, 4), read at places (B, 4) within these: (B, K, cells, cells), by RoIAlign."""
    corner, size = crops[:, :2].repeat(1, 2), (crops[:, 2:] - crops[:, :2]).repeat(1, 2)
    return roi_align(maps, list(((places - corner) / size * maps.shape[-1])[:, None]), cells, aligned=True)


def sinkhorn(scores: Tensor, iterations: int = 3) -> Tensor:
    """Soft assignment of N features to K prototypes, all equally often (SwAV, Caron et al., 2020, Eq. 5).

    exp(scores / 0.05), scaled in turns until columns sum to N / K and rows to 1, rows last: (N, K) -> (N, K).
    """
    found = ((scores - scores.max()) / SHARPNESS).exp()
    for _ in range(iterations):
        found = found / found.sum(0)
        found = found / found.sum(1, keepdim=True)
    return found


def swapped_loss(scores: Tensor, codes: Tensor, foreground: Tensor) -> Tensor:
    """-Σ_k q_k log softmax(s / 0.1)_k (SwAV, Eq. 2), mean over the batch's foreground cells; 0 if there are none.

    The student's scores s and the teacher's codes q are (B, K, c, c), foreground is (B, c, c) bool.
    """
    each = -(codes * F.log_softmax(scores / TEMPERATURE, dim=1)).sum(1)
    return each[foreground].sum() / foreground.sum().clamp(min=1)


def loss_of(scores: list[Tensor], codes: list[Tensor], foreground: list[Tensor], crops: Tensor, cells: int) -> Tensor:
    """Leopart's loss (section 3): mean over large crops i and all crops v ≠ i, on a grid over what they share.

    The scores of V crops, large ones first, and the codes of the large ones are (B, K, n, n), foreground is (B, n, n)
    bool, `crops` are boxes (B, V, 4), the grid has `cells` x `cells`. Cells count that are foreground throughout.
    """
    losses = []
    for i, (code, seen) in enumerate(zip(codes, foreground, strict=True)):
        both = torch.cat([code, seen[:, None].float()], 1)
        for v in [v for v in range(len(scores)) if v != i]:
            common = overlap(crops[:, i], crops[:, v])
            wanted, given = align(both, crops[:, i], common, cells), align(scores[v], crops[:, v], common, cells)
            losses.append(swapped_loss(given, wanted[:, :-1], wanted[:, -1] > 1 - 1e-4))
    return torch.stack(losses).mean()


def foreground_of(attention: Tensor) -> Tensor:
    """Patches that are most looked at, together with 60% of the attention (section 3): (N, h, w) -> (N, h, w) bool.

    The attention is blurred first; components of one or two patches are dropped in the end.
    """
    flat = gaussian_blur(attention[:, None], [7, 7], [0.6, 0.6])[:, 0].flatten(1)
    values, order = flat.sort(1)
    heavy = values.cumsum(1) > (1 - LOOKED_AT) * values.sum(1, keepdim=True)
    maps = torch.zeros_like(heavy).scatter(1, order, heavy).view(attention.shape).cpu().numpy()
    for one in maps:
        _, numbers, statistics, _ = cv2.connectedComponentsWithStats(one.astype(np.uint8), connectivity=8)
        one &= (statistics[:, cv2.CC_STAT_AREA] >= LEAST)[numbers]
    return torch.from_numpy(maps).to(attention.device)


def contrast(scores: Tensor) -> float:
    """How far prototypes tell features apart: 0 if all rows of (N, K) are alike, or all columns but for a constant."""
    centred = scores - scores.mean(0) - scores.mean(1, keepdim=True) + scores.mean()
    return float(centred.std())


class Clusters(NamedTuple):
    """A patch is in the cluster whose centre is nearest to (feature - mean) @ axes."""

    mean: Tensor  # (D,)
    axes: Tensor  # (D, d), standardisation and principal components
    centres: Tensor  # (K, d)


class Network(nn.Module):
    """Backbone, projection head, prototypes of length 1."""

    def __init__(self, config: LeopartConfig):
        super().__init__()
        self.backbone = Backbone(config.backbone)
        self.head = MLP(self.backbone.width, list(config.head), activation_layer=nn.GELU)
        self.prototypes = nn.Parameter(torch.zeros(config.prototypes, config.head[-1]))

    def normalise(self) -> None:
        """Bring the prototypes back to length 1."""
        self.prototypes.data = F.normalize(self.prototypes.data)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures (N, 3, S, S) in [0, 1] -> of each patch: its features (N, h, w, D), projected to length 1
        (N, h, w, F), cosines of these with the prototypes (N, h, w, K), the attention on it (N, h, w); all float32."""
        with fast(pictures.device):
            _, features, attention = self.backbone(pictures, attention=True)
            projected = self.head(features)
        unit = F.normalize(projected.float(), dim=-1)
        attention = self.backbone.looked_at(attention.float(), *features.shape[1:3])
        return features.float(), unit, unit @ self.prototypes.T, attention


class Leopart(nn.Module):
    """Clusters of patches, found without labels; all that training changes is in the `state_dict`."""

    def __init__(self, config: LeopartConfig, classes: int, device: torch.device | str = "cpu"):
        """DINO as it is, before `fit` or `load_state_dict`; a UserError if there is none, or sides do not suit it."""
        super().__init__()
        self.config, self.device = config, torch.device(device)
        self.student = Network(config)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        patch, width = self.student.backbone.patch, self.student.backbone.width
        if any(side % patch or side < 4 * patch for side in (config.side, *config.crop_sides)):
            raise UserError(f"leopart: set `side` and `crop_sides` to 4, 5, ... times {patch} pixels, the patch")
        layers = self.student.backbone.vit.layers
        for layer, rate in zip(layers, np.linspace(0, DROP_PATH, len(layers)), strict=True):
            layer.dropout = StochasticDepth(float(rate), "row")
        self.register_buffer("queue", torch.zeros(2, config.queue, config.head[-1]))
        self.dimensions = min(DIMENSIONS, width)
        shapes = (width,), (width, self.dimensions), (config.clusters or classes + 1, self.dimensions)
        for name, shape in zip(Clusters._fields, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape))
        self.to(self.device).eval()

    def fit(self, pictures: Pictures, seed: int, state: Path) -> pd.DataFrame:
        """Train a fresh object, or go on from `state`; then find clusters in the training pictures.

        Returns of each step: loss (ln K if the student says nothing), the foreground's share of large crops, how many
        prototypes are used, nearest to one of their patches, and the contrast. A UserError if the method has collapsed.
        """
        config = self.config
        images = squares(pictures, config.side)
        torch.manual_seed(fitting.generator(seed).initial_seed())
        for value in (*self.student.head.parameters(), self.student.prototypes):
            value.data.copy_(0.02 * (value.ndim > 1) * torch.randn(value.shape))  # biases are 0
        self.student.normalise()
        self.teacher.load_state_dict(self.student.state_dict())
        optimizer = torch.optim.AdamW(
            {"params": [value], "rate": config.rates[not name.startswith("backbone")], "decays": value.ndim > 1}
            for name, value in self.student.named_parameters()
        )

        def step(n: int) -> dict[str, float]:
            torch.manual_seed(fitting.generator(seed, 1 + n).initial_seed())  # torchvision draws from torch's own
            some = images[torch.randperm(len(images))[: config.batch]].to(self.device).float() / 255
            crops = torch.stack([boxes(config.side, config.small_crops) for _ in some]).to(self.device)
            return self._step(some, crops, optimizer, (1 + math.cos(math.pi * n / config.steps)) / 2)

        self.student.train()
        table = fitting.fit({"model": self, "optimizer": optimizer}, config.steps, step, state, "Leopart")
        self.student.eval()
        if len(table) and not (table["contrast"].iloc[-1] > ALIKE and table["used"].iloc[-1] > 1):
            raise Collapse("leopart has collapsed, its prototypes tell no patches apart: lower its `rates`")
        seen = Pictures(lambda i: images[i].permute(1, 2, 0).numpy(), pictures.labels)
        for name, found in self.finish(seen, len(self.centres), seed)._asdict().items():
            self.get_buffer(name).copy_(found)
        return table

    def _step(self, images: Tensor, crops: Tensor, optimizer: torch.optim.Optimizer, left: float) -> dict[str, float]:
        """A step on images (B, 3, S, S) and crops (B, V, 4); `left` falls from 1 at the first step to 0, a cosine."""
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * left
            group["weight_decay"] = group["decays"] * (left * WEIGHT_DECAY[0] + (1 - left) * WEIGHT_DECAY[1])
        views, scores = [], []
        for some, side in zip((crops[:, :2], crops[:, 2:]), self.config.crop_sides, strict=True):
            cut = roi_align(images, list(some), side, aligned=True)
            views.append(torch.stack([OTHER_LOOK(one) for one in cut]))
            scores += self.student(views[-1])[2].unflatten(0, some.shape[:2]).movedim(-1, 2).unbind(1)
        with torch.no_grad():
            _, unit, cosines, attention = self.teacher(views[0])
            unit, seen = (part.unflatten(0, (-1, 2)).unbind(1) for part in (unit, foreground_of(attention)))
            codes = [self._codes(*crop) for crop in zip(self.queue, unit, seen, strict=True)]
        loss = loss_of(scores, codes, seen, crops, self.config.cells)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for ours, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.lerp_(new.detach(), (1 - self.config.momentum) * left)
        for network in (self.student, self.teacher):
            network.normalise()
        cosines = cosines.flatten(0, 2)
        share, used = float(torch.stack(seen).float().mean()), len(cosines.argmax(1).unique())
        return {"loss": loss.item(), "foreground": share, "used": used, "contrast": contrast(cosines)}

    def _codes(self, queue: Tensor, unit: Tensor, foreground: Tensor) -> Tensor:
        """Codes (B, K, h, w) of large crops from projected features (B, h, w, F). Some of those in the foreground
        (B, h, w) move into the queue (Q, F), which takes part in the assignment once it is full."""
        rows = unit.flatten(0, 2)
        known = torch.cat([queue, rows]) if queue[-1].any() else rows
        codes = sinkhorn(known @ self.teacher.prototypes.T)[-len(rows) :]
        new = rows[foreground.flatten()]
        new = new[torch.randperm(len(new))[: KEPT * len(unit)]]
        queue.copy_(torch.cat([new, queue])[: len(queue)])
        return codes.unflatten(0, foreground.shape).movedim(-1, 1)

    def finish(self, pictures: Pictures, count: int, seed: int) -> Clusters:
        """Standardise the patch features of some pictures, find their principal components, and clusters of these."""
        from sklearn.cluster import KMeans  # seconds, that only the one who asks for it shall spend
        from sklearn.decomposition import PCA

        chance, rows, most = fitting.generator(seed, 0, 1), [], max(PATCHES // len(pictures), 1)
        for n in tqdm(range(len(pictures)), "features", leave=False, unit="image"):
            features = self._see(self.student, pictures.image(n))[0].flatten(0, 1)
            rows.append(features[torch.randperm(len(features), generator=chance)[:most]].cpu())
        features = torch.cat(rows).numpy()
        mean, deviation = features.mean(0), features.std(0)
        if len(features) < max(count, self.dimensions) or deviation.max() < ALIKE:
            raise Collapse("leopart: patches are too few, or all alike: give it more pictures, or lower its `rates`")
        scaled = (features - mean) / (deviation + 1e-5)
        axes = PCA(self.dimensions, svd_solver="covariance_eigh").fit(scaled).components_.T
        centres = KMeans(count, n_init=5, max_iter=100, random_state=seed).fit(scaled @ axes).cluster_centers_
        found = mean, axes / (deviation + 1e-5)[:, None], centres
        return Clusters(*(torch.from_numpy(values).float().to(self.device) for values in found))

    @torch.inference_mode()
    def _see(self, network: Network, image: np.ndarray) -> list[Tensor]:
        """What a network says of an image (H, W, 3) uint8, made square."""
        return [part[0] for part in network(square(image, self.config.side)[None].to(self.device))]

    def clusters(self, image: np.ndarray, found: Clusters | None = None) -> np.ndarray:
        """The cluster of each patch of an image (H, W, 3) uint8, (h, w) int64; those of the training by default."""
        mean, axes, centres = found or (self.mean, self.axes, self.centres)
        return torch.cdist((self._see(self.student, image)[0] - mean) @ axes, centres).argmin(-1).cpu().numpy()

    def codes(self, image: np.ndarray) -> np.ndarray:
        """The prototype that is nearest to each patch of an image (H, W, 3) uint8 for the teacher, (h, w) int64."""
        return self._see(self.teacher, image)[2].argmax(-1).cpu().numpy()

    def looked_at(self, image: np.ndarray) -> np.ndarray:
        """The foreground of the teacher's attention on an image (H, W, 3) uint8, (h, w) bool."""
        return foreground_of(self._see(self.teacher, image)[3][None])[0].cpu().numpy()
