"""TransFGU (Yin et al., "TransFGU: A Top-down Approach to Fine-Grained Unsupervised Semantic Segmentation", ECCV 2022).

It believes that a self-supervised ViT already tells objects apart: clusters of its class tokens are the classes, and
the gradient of the similarity with such a prototype shows where in an image it lies. A decoder that learns from these
coarse maps, and then also from an earlier decoder, makes them clean. No label is used.

Its steps, to which docstrings refer: 1 class tokens of windows that show an object; 2 k-means finds C prototypes;
3 a relevance map for each; 4 pseudo labels; 5 the decoder; 6 its losses; 7 bootstrapping: the student becomes the
teacher and starts again; 8 crops and the optimiser. The backbone stays as it is.

Smaller or left out here:

* settings: sides of images and crops, windows, the decoder's blocks, views, batch, steps, restarts, learning rate;
* with `views`, crops are made once and their features kept in half precision: the frozen backbone is most of the cost;
* pseudo labels are made once, of whole images, and cropped with them: a backward pass a class and image is slow;
* the loss of step 3 is summed over a batch, not averaged: a map does not depend on what is computed beside it;
* crops are squares of 40 to 90% of the area; strengths of jitter and blur are the usual ones;
* k-means takes the best of ten starts, so that less depends on luck;
* tokens are pushed apart as they leave the decoder, where pixels are compared with them;
* α of step 7 rises linearly from the first restart to the end, and one order of classes is drawn a step;
* the decoder of the last step counts, not the one that is best on the test set.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torchvision.transforms.functional import resize
from tqdm import tqdm

from usam.baselines import fitting
from usam.baselines import transfgu_steps as steps
from usam.baselines.backbone import Backbone
from usam.baselines.fitting import Pictures, fast, square, squares
from usam.config_rivals import TransfguConfig
from usam.errors import Collapse, UserError

WEIGHT_DECAY, LARGEST_GRADIENT = 5e-4, 1.0
START, CLUSTERS, VIEWS, ORDER, STEP = range(5)  # places of chance
AT_ONCE = 8  # pictures that the backbone sees at once where all are prepared
CHECKED = 64  # pictures, spread over all, that must not end up in one cluster

Batch = tuple[Tensor, Tensor, Tensor]  # features (B, h, w, D) float32; pseudo labels and where maps are high, (B, h, w)


class Transfgu(nn.Module):
    """TransFGU with C clusters. Its state is prototypes and decoder; the backbone has a folder of its own.

    Attributes:
        backbone: frozen.
        decoder: names pixels.
        prototypes: (C, D), a point in the space of class tokens for each cluster.
    """

    backbone: Backbone

    def __init__(self, config: TransfguConfig, classes: int, device: torch.device | str = "cpu"):
        """Load the backbone.

        Raises:
            UserError: it cannot be loaded, or settings do not fit it.
        """
        super().__init__()
        self.config, self.classes, self.device = config, classes, torch.device(device)
        backbone = Backbone(config.backbone).eval().requires_grad_(False).to(self.device)
        backbone.vit.layers[-1].requires_grad_()  # never trained, but now its attention has gradients: step 3
        self.__dict__["backbone"] = backbone  # no part of the state
        if config.side % backbone.patch or config.crop_side % backbone.patch:
            raise UserError(
                f"transfgu: side {config.side} and crop_side {config.crop_side} must be multiples of {backbone.patch} "
                "pixels, the backbone's patch: correct them in the profile"
            )
        if classes < 2:
            raise UserError(f"transfgu tells classes apart, and {classes} is too few: name at least 2")
        self.decoder = self._new_decoder()
        self.register_buffer("prototypes", torch.zeros(classes, backbone.width, device=self.device))
        self.eval()

    def _new_decoder(self) -> steps.Decoder:
        return steps.Decoder(self.backbone.width, self.backbone.heads, self.config.blocks, self.classes).to(self.device)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 RGB -> (C + 1, h, w) float32, h = w = side / patch; channel 0 is background."""
        return self._logits(square(image, self.config.side)[None])[0].cpu().numpy()

    def segment(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 RGB -> (h, w) int64: 0 is background, k is cluster k = 1 ... C."""
        return self.logits(image).argmax(0)

    def relevance(self, image: np.ndarray) -> np.ndarray:
        """Step 3 for an image (H, W, 3) uint8 RGB: a map a cluster, (C, h, w) float32, at least 0."""
        return self._relevance(square(image, self.config.side)[None])[0].cpu().numpy()

    def pseudo_label(self, image: np.ndarray) -> np.ndarray:
        """Step 4 for an image (H, W, 3) uint8 RGB: (h, w) int64, as `segment`."""
        return steps.pseudo_labels(self._relevance(square(image, self.config.side)[None]))[0][0].cpu().numpy()

    @torch.no_grad()
    def _see(self, pictures: Tensor, attention: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the backbone returns for pictures (B, 3, s, s) in [0, 1]."""
        with fast(self.device):
            return self.backbone(pictures.to(self.device), attention)

    @torch.no_grad()
    def _logits(self, pictures: Tensor) -> Tensor:
        return self.decoder(self._see(pictures)[1].float())[0]

    @torch.enable_grad()
    def _relevance(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, s, s) in [0, 1] -> (B, C, h, w); in float32 throughout, as gradients are small."""
        token, patches, attention = self.backbone(pictures.to(self.device), attention=True)
        losses = (1 - F.cosine_similarity(token[:, None], self.prototypes, dim=-1)).sum(0)  # (C,)

        def looked_at(values: Tensor) -> Tensor:
            return self.backbone.looked_at(values, *patches.shape[1:3])

        gradients = [looked_at(torch.autograd.grad(loss, attention, retain_graph=True)[0]) for loss in losses]
        return steps.relevance_maps(looked_at(attention.detach()), torch.stack(gradients, 1))

    def fit(self, pictures: Pictures, seed: int, state: Path) -> pd.DataFrame:
        """Learn from `pictures`, whose labels are not looked at. If there is a file `state`, training goes on from it.

        Returns:
            One row a step: step, label (cross-entropy), shuffled (step 7, 0 before it), uncertainty, embedding.

        Raises:
            UserError: training does not come to a restart, or something collapsed.
        """
        epochs = self.config.steps / math.ceil(len(pictures) / self.config.batch)
        if max(self.config.restarts, default=0) >= epochs:
            raise UserError(
                f"transfgu: training ends after {epochs:.3g} epochs, so that not all restarts {self.config.restarts} "
                "happen: set more steps or earlier restarts in the profile"
            )
        self._find_prototypes(pictures, seed)
        images = squares(pictures, self.config.side)
        examples = self._examples(images, self._pseudo_labels(images), seed)
        with steps.drawn_by(fitting.generator(seed, START), self.device):
            self.decoder = self._new_decoder()
        table = self._train(examples, len(images), seed, state)
        some = images[:: math.ceil(len(images) / CHECKED)].split(AT_ONCE)
        found = torch.cat([self._logits(one / 255).argmax(1) for one in some])
        _refuse_one(found, "the decoder's pixels are", "set more steps, later restarts or a lower learning_rate")
        return table

    def _find_prototypes(self, pictures: Pictures, seed: int) -> None:
        """Steps 1 and 2."""
        bank = []
        for i in tqdm(range(len(pictures)), desc="TransFGU, windows", unit="image", leave=False):
            bank.append(self._windows(square(pictures.image(i), 2 * self.config.side)))
        tokens = torch.cat(bank).numpy()
        different = len(np.unique(tokens.round(3), axis=0))
        if different < self.classes:
            raise UserError(
                f"transfgu: {different} different windows show an object, too few for {self.classes} prototypes: "
                "give it more images or windows, or another backbone if all windows look alike to it"
            )
        chance = fitting.generator(seed, CLUSTERS).initial_seed() % 2**32
        found = KMeans(self.classes, n_init=10, max_iter=100, random_state=chance).fit(tokens)
        self.prototypes.copy_(torch.from_numpy(found.cluster_centers_))

    def _windows(self, large: Tensor) -> Tensor:
        """Step 1: class tokens (n, D) of the windows of a picture (3, 2 side, 2 side) that are mostly foreground."""
        side, patch, large = self.config.side, self.backbone.patch, large.to(self.device)
        _, patches, attention = self._see(large[None], attention=True)
        attended = self.backbone.looked_at(attention.float(), *patches.shape[1:3])[0].cpu()
        foreground, found = (attended > attended.mean()).float(), []
        for row, column, size in steps.windows(len(foreground), self.config.windows):
            if foreground[row : row + size, column : column + size].mean() > 0.5:
                top, left, pixels = row * patch, column * patch, size * patch
                window = large[:, top : top + pixels, left : left + pixels]
                found.append(resize(window, [side, side], antialias=True))
        tokens = [self._see(some)[0].float().cpu() for some in torch.stack(found).split(AT_ONCE)] if found else []
        return torch.cat([torch.zeros(0, self.backbone.width), *tokens])

    def _pseudo_labels(self, images: Tensor) -> Tensor:
        """Steps 3 and 4 for images (N, 3, side, side) uint8: labels, and where maps are high, (N, 2, h, w) int16."""
        found = []
        for some in tqdm(images.split(AT_ONCE), desc="TransFGU, maps", unit="batch", leave=False):
            found.append(torch.stack(steps.pseudo_labels(self._relevance(some / 255)), 1).short().cpu())
        cells = torch.cat(found)
        _refuse_one(
            cells[:, 0], "pseudo labels are", "relevance says nothing, give it another backbone or other images"
        )
        return cells

    def _examples(self, images: Tensor, cells: Tensor, seed: int) -> Callable[[Tensor, int, torch.Generator], Batch]:
        """What gives a batch: numbers of images (B,), epoch, chance -> `Batch`. Step 8."""
        side, patch = self.config.crop_side, self.backbone.patch

        def crops(rows: Tensor, _epoch: int, chance: torch.Generator) -> Batch:
            pictures, below = steps.crop(images[rows].to(self.device), cells[rows].to(self.device), side, patch, chance)
            return self._see(steps.recoloured(pictures, chance))[1].float(), *below.unbind(1)

        if self.config.views is None:
            return crops
        kept = []
        for view in tqdm(range(self.config.views), desc="TransFGU, crops", unit="view", leave=False):
            parts = []
            for rows in torch.arange(len(images)).split(AT_ONCE):
                features, *below = crops(rows, 0, fitting.generator(seed, VIEWS, view, int(rows[0])))
                parts.append((features.half(), *below))
            kept.append([torch.cat(part).cpu() for part in zip(*parts, strict=True)])

        def again(rows: Tensor, epoch: int, _chance: torch.Generator) -> Batch:
            features, *below = (values[rows].to(self.device) for values in kept[epoch % len(kept)])
            return features.float(), *below

        return again

    def _train(self, examples: Callable[..., Batch], count: int, seed: int, state: Path) -> pd.DataFrame:
        """Steps 6 to 8: the table of losses. The decoder has its first weights, to which it returns at each restart."""
        config, weights = self.config, deepcopy(self.decoder.state_dict())
        epoch = math.ceil(count / config.batch)
        first = epoch * min(config.restarts, default=config.steps)
        teacher = deepcopy(self.decoder).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(self.decoder.parameters(), config.learning_rate, weight_decay=WEIGHT_DECAY)

        def step(n: int) -> dict[str, float]:
            number, begin = divmod(n, epoch)
            if begin == 0 and number in config.restarts:
                teacher.load_state_dict(self.decoder.state_dict())
                self.decoder.load_state_dict(weights)  # the optimiser's state stays
            order = torch.randperm(count, generator=fitting.generator(seed, ORDER, number))
            rows, chance = order[begin * config.batch :][: config.batch], fitting.generator(seed, STEP, n)
            losses = self._losses(examples(rows, number, chance), teacher if n >= first else None, chance)
            optimizer.zero_grad()
            steps.total_loss(losses, (n - first) / max(1, config.steps - 1 - first)).backward()
            nn.utils.clip_grad_value_(self.decoder.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            return {name: loss.item() for name, loss in losses.items()}

        self.decoder.train()
        parts = {"model": self, "teacher": teacher, "optimizer": optimizer}
        table = fitting.fit(parts, config.steps, step, state, "TransFGU")
        self.decoder.eval()
        return table

    def _losses(self, batch: Batch, teacher: steps.Decoder | None, chance: torch.Generator) -> dict[str, Tensor]:
        """The losses of a batch; with a teacher, those of step 7."""
        features, labels, seen = batch
        target = F.one_hot(labels, self.classes + 1).movedim(-1, 1).float()
        if teacher is not None:
            with torch.no_grad():
                target = steps.bootstrapped(teacher(features)[0], target)
        with steps.drawn_by(chance, self.device):
            logits, tokens = self.decoder(features)
        losses = {"label": steps.label_loss(logits, target), "shuffled": logits.new_zeros(())}
        if teacher is not None:
            shuffle = torch.randperm(self.classes + 1, generator=chance)
            losses["shuffled"] = steps.label_loss(logits, target[:, shuffle])
        return losses | {
            "uncertainty": steps.uncertainty_loss(logits, seen),
            "embedding": steps.embedding_loss(tokens),
        }


def _refuse_one(labels: Tensor, what: str, advice: str) -> None:
    if len(values := labels.unique()) == 1:
        name = f"cluster {int(values)}" if values else "background"
        raise Collapse(f"transfgu collapsed: {what} all {name}: {advice}")
