"""Training of the head (paper 3.5, 4): the teacher by multiple-instance learning, the student by distillation."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from usam import machine
from usam.config import DistillationConfig, HeadConfig
from usam.errors import UserError
from usam.method.head import MaskClassifier
from usam.method.losses import bad_masks, bag_scores, known_masks_loss, mil_loss, uncertainty_loss

AT_ONCE, SHARE = 64, 0.7  # images read at once; of the free memory that tokens may take


@dataclass(frozen=True)
class Bags:
    """Training images as bags of masks.

    Attributes:
        tokens: image numbers (n,) -> their mask embeddings (n, d, 1024) float16, from memory or from disk.
        images: (N,) int64, the numbers of the training images.
        labels: (N, C) float32 multi-hot, the classes of each.
        mask_labels: (N, d) int64, the class of each mask, -1 for none, where these are known.
    """

    tokens: Callable[[np.ndarray], np.ndarray]
    images: np.ndarray
    labels: Tensor
    mask_labels: Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens: Callable[[np.ndarray], np.ndarray],
        image_classes: list[str],
        class_names: Sequence[str] | Mapping[str, Sequence[str]],
        per_name: int | None = None,
    ) -> "Bags":
        """Bags of single-object images: those of `image_classes` that are among `class_names`, in that class order.

        With a mapping, a class gathers the images of several names. Of each name the first `per_name`, all by default.
        `tokens` is that of an `EmbeddingStore`, for instance.

        Raises:
            UserError: a name has no image.
        """
        gathered = class_names.values() if isinstance(class_names, Mapping) else [[name] for name in class_names]
        index = {name: j for j, names in enumerate(gathered) for name in names}
        if missing := sorted(set(index) - set(image_classes)):
            raise UserError(
                f"no training image of {', '.join(missing)}: run notebooks 01_images and 02_embeddings again"
            )
        number = pd.Series(image_classes).groupby(image_classes).cumcount()  # of an image within its name
        few = number < (per_name or len(number))
        rows = [i for i, name in enumerate(image_classes) if name in index and few[i]]
        labels = torch.zeros(len(rows), len(class_names))
        labels[range(len(rows)), [index[image_classes[i]] for i in rows]] = 1
        return cls(tokens, np.array(rows), labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        """Mask embeddings (d, 1024) of a training image, or (n, d, 1024) of those at `index` (n,)."""
        rows = index.cpu().numpy() if isinstance(index, Tensor) else index
        some = torch.from_numpy(self.tokens(np.atleast_1d(self.images[rows])))
        return some[0] if np.ndim(index) == 0 else some

    def shuffled(self, seed: int) -> "Bags":
        """The same images with permuted labels (some keep their class by chance): what is left to learn is chance."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return Bags(self.tokens, self.images, self.labels[order])


def statistics(bags: Bags, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1024,) float32 of all masks' tokens."""
    total, squares, count = 0.0, 0.0, 0
    for rows in torch.arange(len(bags)).split(AT_ONCE):
        values = bags[rows].to(device).flatten(0, 1).double()
        total, squares, count = total + values.sum(0), squares + values.square().sum(0), count + len(values)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    return mean.float(), std.clamp(min=1e-4).float()


def train(
    bags: Bags,
    head: HeadConfig,
    seed: int,
    teacher: MaskClassifier | None = None,
    distillation: DistillationConfig | None = None,
    device: torch.device | str = "cpu",
    label: str = "teacher",
) -> tuple[MaskClassifier, pd.DataFrame]:
    """Train a head: a teacher (Eq. 2 alone), or with `teacher` a student (λ1 Eq. 2 + λ2 Eq. 3). With known masks, no
    teacher is needed: those of an object have a cross-entropy in place of Eq. 2, all others are the bad ones of Eq. 3.

    Args:
        bags: the training images.
        head, distillation: the settings; `distillation` goes with `teacher` or known masks.
        seed: of the initial weights and of the order of images. A student with its teacher's seed starts where the
            teacher started (unless `distillation.initial_weights` says otherwise), so that the two differ by the loss.
        teacher: frozen, in eval mode.
        device: where to train.
        label: text before the progress bar.

    Returns:
        The head in eval mode, and a table with one row an epoch: mil, uncertainty, bad (share of bad masks), accuracy
        (share of training images whose highest bag score is one of their classes).
    """
    labels = bags.labels.to(device)
    size = bags[0].shape[-1]
    mean, std = statistics(bags, device) if head.standardise else (torch.zeros(size), torch.ones(size))
    with machine.seeded(seed) as order:
        if distillation is not None and distillation.initial_weights == "own":
            torch.manual_seed(2**32 - 1 - seed)  # from the other end: no teacher's
        model = MaskClassifier(labels.shape[1], mean, std, head.widths).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=head.learning_rate, fused=True)
    last = head.epochs * math.ceil(len(labels) / head.batch_size) - 1
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, head.learning_rate_end, max(last, 1))
    inputs = _inputs(model, bags, getattr(torch, head.precision))
    known = None if bags.mask_labels is None else bags.mask_labels.to(device)
    bad = None if known is None else known < 0
    if teacher is not None:
        bad = _bad_masks(teacher, bags, head, distillation)
    history = []
    for epoch in tqdm(range(head.epochs), desc=label, unit="epoch", leave=False):
        sums = torch.zeros(4, device=device)
        for rows in torch.randperm(len(labels), generator=order).to(device).split(head.batch_size):
            with torch.autocast(labels.device.type, torch.bfloat16, enabled=head.precision == "bfloat16"):
                logits = model.layers(inputs(rows)).float()  # (B, d, C)
            targets = (None if one is None else one[rows] for one in (labels, known, bad))
            loss, batch_statistics = _loss(logits, targets, head.a, distillation)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            sums += batch_statistics * len(rows)
        history.append((epoch + 1, *(sums / len(labels)).tolist()))
    return model.eval().requires_grad_(False), pd.DataFrame(
        history, columns=["epoch", "mil", "uncertainty", "bad", "accuracy"]
    )


def _inputs(model: MaskClassifier, bags: Bags, precision: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Training images (n,) -> tokens (n, d, 1024), standardised if they are to be, in the type of the first product.

    They stay where the model is if they fit its memory, made once for all epochs; else they are read again each time.
    """
    device = model.mean.device

    @torch.no_grad()
    def read(rows: Tensor) -> Tensor:
        return model.standardised(bags[rows].to(device)).to(precision)

    first = read(torch.arange(1))
    if len(bags) * first.nbytes > SHARE * machine.free_memory(device):
        return read
    resident = first.new_empty(len(bags), *first.shape[1:])
    for rows in torch.arange(len(bags)).split(AT_ONCE):
        resident[rows] = read(rows)
    return resident.__getitem__


@torch.no_grad()
def _bad_masks(teacher: MaskClassifier, bags: Bags, head: HeadConfig, distillation: DistillationConfig) -> Tensor:
    """B_i of all images, (N, d) bool, from the frozen teacher's logits in float32; computed once, not once an epoch."""
    device, found = teacher.mean.device, []
    threshold = distillation.entropy_threshold * math.log(bags.labels.shape[1])
    for rows in torch.arange(len(bags)).split(head.batch_size):
        found.append(bad_masks(teacher(bags[rows].to(device)), bags.labels[rows].to(device), threshold))
    return torch.cat(found)


def _loss(
    logits: Tensor, targets: Iterable[Tensor | None], a: float, settings: DistillationConfig | None
) -> tuple[Tensor, Tensor]:
    """The objective on one batch, and (mil, uncertainty, bad share, accuracy) of it.

    `targets` are the images' labels, the known labels of masks, and B_i: none for a teacher.
    The statistics stay on the device: reading a number after each step would make a GPU wait.
    """
    labels, known, bad = targets
    mil = mil_loss(logits, labels, a) if known is None else known_masks_loss(logits, known)
    with torch.no_grad():
        right = labels.gather(1, bag_scores(logits, a).argmax(1, keepdim=True)).mean()
    if bad is None:
        nothing = torch.zeros_like(right)
        return mil, torch.stack([mil.detach(), nothing, nothing, right])
    uncertainty = uncertainty_loss(logits, bad, settings.reduction, settings.mask_reduction)
    loss = settings.lambda_mil * mil + settings.lambda_uncertainty * uncertainty
    return loss, torch.stack([mil.detach(), uncertainty.detach(), bad.float().mean(), right])
