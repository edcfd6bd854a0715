"""Train the small SAM: `python -m miniature.training.train --minutes 120`.

No class label enters. A picture gives what a person with a brush could give: outlines of whole objects, of their
parts, of nameless blobs and of the background; and every scene is drawn twice with the same individuals (other
paint, background, pose, neighbours, light). Two phases share the time; with weights to begin with there is the second
one alone:

1. The encoder, cheap because SAM's transformer rests: the feature under a click must give the four masks of that
   click (single, part, group, whole; cross-entropy and Dice) by a short cut; features on an individual must find the
   same individual in the other picture among all of the batch (InfoNCE), tell things from background, say where
   within their 8 x 8 pixels borders run, and give the individual's outline and part borders as a small neutral
   drawing. Enlarged to the masks' 64 x 64 places, they must tell the parts of a picture apart and know its colours.
2. Everything: a click gives four masks through SAM's own decoder, and their IoU (squared error); its 1024 token
   values must tell the feature under the click (cosine), find the same individual and redraw it, as the features
   did. The losses of phase 1 go on, but for the short cut.

Telling individuals apart and redrawing them stand in for SAM's scale (1.1 billion masks), from which its tokens get
their meaning.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import DataLoader

from miniature.sam import IMAGE_SIZE, TOKEN_DIM, build_sam
from miniature.training.batches import SAM_CLICKS, SCENES, SHAPE_SIZE, VIEWS, Stream, click_targets
from miniature.training.loop import SAVE_EVERY, descend, load_state, running_average, save_state
from usam import machine
from usam.method import fast

ENCODER_SHARE = 0.37  # of the time, for phase 1
RATES = (8e-4, 5e-4)  # peak learning rates of the two phases
MASK_WEIGHTS = (0.6, 1.5, 1.2, 0.7)  # of single, part, group, whole in the mask losses: parts are learned last


# -- losses -------------------------------------------------------------------------------------------------------


def decode(sam: Sam, features: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clicks on a batch of pictures through SAM's decoder, as U-SAM computes it.

    Args:
        sam: the small SAM.
        features: (B, 256, 16, 16) image embeddings.
        points: (B, K, 2) float32 (x, y) in pixels of the padded picture.

    Returns:
        mask logits (B * K, 4, 64, 64), predicted IoU (B * K, 4), tokens (B * K, 1024), all float32.
    """
    clicks = points.flatten(0, 1)[:, None]  # (B * K, 1, 2)
    sparse, dense = sam.prompt_encoder((clicks, torch.ones(len(clicks), 1, device=clicks.device)), None, None)
    answers = fast.decode_prompts(
        sam,
        features,
        sam.prompt_encoder.get_dense_pe(),
        sparse.unflatten(0, points.shape[:2]),
        dense[:1],
        choose=lambda iou: torch.arange(4, device=iou.device).expand(len(iou), -1),
        at_once=len(clicks),
    )
    logits, iou, tokens = (answer.flatten(0, 1).float() for answer in answers)
    return logits, iou, tokens.flatten(1)


def mask_loss(logits: Tensor, targets: Tensor, ious: Tensor, balance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(mask loss, IoU loss, measured IoU (N, 4)) of mask logits (N, 4, h, w) against targets in [0, 1].

    `balance` is 1 when small masks must not drown in their outside, and 0 when they must not grow beyond their border.
    """
    truth = targets.float()
    share = truth.mean((2, 3), keepdim=True)
    weight = ((1 - share) / share.clamp(min=1e-4)).sqrt().clamp(1, 10) ** balance
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight, reduction="none")
    p = logits.sigmoid()
    overlap, total = (p * truth).sum((2, 3)), (p + truth).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        hard, wanted = logits > 0, truth >= 0.5
        measured = (hard & wanted).sum((2, 3)) / (hard | wanted).sum((2, 3)).clamp(min=1)
    losses = cross_entropy.mean((2, 3)) + 2 * dice  # (N, 4)
    return (losses * losses.new_tensor(MASK_WEIGHTS)).mean(), F.mse_loss(ious, measured), measured


def same_individual_loss(z: Tensor, owners: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE: each row against all others; its positives are the rows of the same individual.

    Args:
        z: (N, D) projected features or tokens.
        owners: (N,) individual of each row.
    """
    z = F.normalize(z, dim=1)
    similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (owners[:, None] == owners[None]) & ~itself
    log_p = similarity.masked_fill(itself, -1e4).log_softmax(1)
    has = positive.any(1)
    return -((log_p * positive).sum(1)[has] / positive.sum(1)[has]).mean()


def part_loss(z: Tensor, parts: Tensor, samples: int = 128, temperature: float = 0.2) -> Tensor:
    """The same within each picture, with parts for individuals, at some places, few of them on the background.

    Args:
        z: (B, P, D) features.
        parts: (B, P) part at each place, 0 on the background.
    """
    chosen = torch.where(parts > 0, 1.0, 0.2).multinomial(samples)
    pairs = zip(z, parts, chosen, strict=True)
    return torch.stack([same_individual_loss(a[some], b[some], temperature) for a, b, some in pairs]).mean()


def detail_loss(logits: Tensor, owners: Tensor, parts: Tensor) -> Tensor:
    """Where things and borders run within a feature's 8 x 8 pixels, at the masks' resolution.

    Args:
        logits: (B, 3, 64, 64): thing or background; a border to the right neighbour; one to the neighbour below.
        owners, parts: (B, 64, 64) individual and part at each place.
    """
    both = torch.stack([owners, parts], 1)  # (B, 2, 64, 64)
    right = (both != both.roll(-1, 3)).any(1)
    below = (both != both.roll(-1, 2)).any(1)
    truth = torch.stack([parts > 0, right, below], 1).float()
    weight = torch.tensor([1.0, 4.0, 4.0], device=logits.device).view(1, 3, 1, 1)  # borders are rare
    return F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight)


def _relative(points: Tensor) -> Tensor:
    """Whole pixels (x, y) of the padded picture -> their centres in [-1, 1]."""
    return (points + 0.5) / IMAGE_SIZE * 2 - 1


def under(points: Tensor, features: Tensor) -> Tensor:
    """What features (B, C, h, w) hold under clicks (B, K, 2) on the picture: (B, K, C)."""
    return F.grid_sample(features, _relative(points)[:, :, None], align_corners=False)[..., 0].transpose(1, 2)


def attend_to_click(sam: Sam) -> None:
    """Initial weights with which a click's tokens attend to the place of the click.

    From random weights SAM's decoder must find out by itself that a point's positional encoding and that of a place of
    the image belong together, through two layers of attention: it takes most of two cores' time. Here queries and
    keys begin with one projection, so that their product is large where the encodings agree; values pass as they
    are; and the image is left alone until there is something to tell it.
    """
    transformer = sam.mask_decoder.transformer
    to_image = [layer.cross_attn_token_to_image for layer in transformer.layers]
    for attention in (*to_image, transformer.final_attn_token_to_image):
        rows = attention.internal_dim
        same, value = (torch.linalg.qr(torch.randn(TOKEN_DIM, rows))[0].T for _ in range(2))  # orthonormal rows
        for layer, weight in zip(
            (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj),
            (2**0.5 * same, 2**0.5 * same, value, value.T),
            strict=True,
        ):
            layer.weight.data.copy_(weight)
            layer.bias.data.zero_()
    for layer in transformer.layers:
        for linear in (layer.self_attn.v_proj, layer.self_attn.out_proj):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(layer.cross_attn_image_to_token.out_proj.weight)
        nn.init.zeros_(layer.cross_attn_image_to_token.out_proj.bias)


class ShortCut(nn.Module):
    """From the feature under a click to its four masks, without SAM's transformer: ten times cheaper a click.

    SAM's own upscaling and its dot product with a filter of the click, as in its mask decoder. What the filter cannot
    know from the feature alone is where the click was: it also weighs the offsets from the click.
    """

    def __init__(self):
        super().__init__()
        width = TOKEN_DIM // 8 + 3  # channels of the upscaled features and of the offsets
        self.filters = nn.Sequential(
            nn.Linear(TOKEN_DIM + TOKEN_DIM // 8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 4 * width), nn.Unflatten(-1, (4, width)),
        )  # fmt: skip

    def forward(self, features: Tensor, upscaled: Tensor, points: Tensor) -> Tensor:
        """Mask logits (B * K, 4, 64, 64) of features (B, 256, 16, 16), upscaled (B, 32, 64, 64), points (B, K, 2)."""
        place = _relative(points)
        filters = self.filters(torch.cat([under(points, f) for f in (features, upscaled)], 2))  # (B, K, 4, 35)
        steps = (torch.arange(upscaled.shape[-1], device=points.device) + 0.5) / upscaled.shape[-1] * 2 - 1
        x, y = (steps.view(shape) - place[..., k, None, None] for k, shape in enumerate(((1, -1), (-1, 1))))
        offsets = torch.stack([x.expand(-1, -1, len(steps), -1), y.expand(-1, -1, -1, len(steps)), x**2 + y**2], 2)
        logits = torch.einsum("bkmc,bchw->bkmhw", filters[..., :-3], upscaled)
        return (logits + torch.einsum("bkmc,bkchw->bkmhw", filters[..., -3:], offsets)).flatten(0, 1)


class Redraw(nn.Sequential):
    """From features to the logits of a neutral drawing: (N, inputs) -> (N, 2, SHAPE_SIZE, SHAPE_SIZE)."""

    def __init__(self, inputs: int):
        super().__init__(
            nn.Linear(inputs, 512),
            nn.ReLU(),
            nn.Linear(512, 2 * SHAPE_SIZE**2),
            nn.Unflatten(1, (2, SHAPE_SIZE, SHAPE_SIZE)),
        )


class Trainee(nn.Module):
    """The small SAM with the maps that only training needs."""

    def __init__(self):
        super().__init__()
        self.sam = build_sam()
        attend_to_click(self.sam)
        self.individual, self.part = nn.Linear(TOKEN_DIM, 128), nn.Conv2d(TOKEN_DIM // 8, 32, 1)
        self.colour = nn.Conv2d(TOKEN_DIM // 8, 3, 1)
        self.thing, self.redraw = nn.Linear(TOKEN_DIM, 1), Redraw(TOKEN_DIM)
        self.short_cut = ShortCut()
        self.detail = nn.Sequential(nn.Conv2d(TOKEN_DIM, 3 * 16, 1), nn.PixelShuffle(4))
        self.feature = nn.Linear(4 * TOKEN_DIM, TOKEN_DIM)
        self.token_individual, self.token_redraw = nn.Linear(4 * TOKEN_DIM, 128), Redraw(4 * TOKEN_DIM)

    def forward(self, batch: dict[str, Tensor], plan: "Plan") -> tuple[Tensor, dict[str, float]]:
        """Total loss and what it is made of."""
        features = self.sam.image_encoder(batch["images"])
        upscaled = self.sam.mask_decoder.output_upscaling(features)
        losses = self.feature_losses(features.float(), upscaled.float(), batch)
        meaning = losses["individual"] + 20 * losses["redraw"]
        place = losses["part"] + 0.5 * losses["thing"] + 5 * losses["detail"] + 5 * losses["colour"]
        total = 0.5 * meaning + place
        if plan.tokens > 0:
            more = self.decoder_losses(features, batch, plan.balance)
            total = 0.3 * total + 2 * more["masks"] + more["quality"] + 3 * more["feature"]
            total = total + plan.tokens * (0.3 * more["token_individual"] + 6 * more["token_redraw"])
        else:
            more = self.short_cut_losses(features.float(), upscaled.float(), batch, plan.balance)
            total = total + 6 * more["clicks"]
        losses |= more
        return total, {k: float(v.detach()) for k, v in losses.items()}

    def feature_losses(self, features: Tensor, upscaled: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both phases, on features (B, 256, 16, 16) and the same upscaled, (B, 32, 64, 64)."""
        with torch.autocast(features.device.type, enabled=False):
            flat = features.flatten(2).transpose(1, 2)  # (B, 256 places, 256 channels)
            part_map = batch["maps"][:, 2, 1::2, 1::2].clamp(min=0)  # (B, 64, 64)
            owners, things = (m[:, 2::4, 2::4].flatten(1) for m in (batch["owner_map"], part_map > 0))  # (B, 256)
            on_object = (owners >= 0).flatten().nonzero()[:, 0]
            some = on_object[torch.randperm(len(on_object), device=flat.device)[:384]]
            z, who = flat.flatten(0, 1)[some], owners.flatten()[some]
            return dict(
                individual=same_individual_loss(self.individual(z), who),
                redraw=F.binary_cross_entropy_with_logits(self.redraw(z), batch["shapes"][who]),
                part=part_loss(self.part(upscaled).flatten(2).mT, part_map.flatten(1)),
                colour=F.smooth_l1_loss(self.colour(upscaled), F.avg_pool2d(batch["images"], 2)),
                thing=F.binary_cross_entropy_with_logits(self.thing(flat)[..., 0], things.float()),
                detail=detail_loss(self.detail(features), batch["owner_map"], part_map),
            )

    def short_cut_losses(
        self, features: Tensor, upscaled: Tensor, batch: dict[str, Tensor], balance: float
    ) -> dict[str, Tensor]:
        """Phase 1, on clicks; features as in `feature_losses`."""
        with torch.autocast(features.device.type, enabled=False):
            masks = self.short_cut(features, upscaled, batch["points"])
            targets = click_targets(batch["maps"], batch["points"])
            clicks, _, measured = mask_loss(masks, targets, torch.zeros_like(masks[:, :, 0, 0]), balance)
            on = (batch["owners"] >= 0).flatten()
            return dict(clicks=clicks, quick_part=measured[on, 1].mean(), quick_whole=measured[on, 3].mean())

    def decoder_losses(self, features: Tensor, batch: dict[str, Tensor], balance: float) -> dict[str, Tensor]:
        """Phase 2, on clicks."""
        points, owners = batch["points"][:, :SAM_CLICKS], batch["owners"][:, :SAM_CLICKS].flatten()
        logits, ious, tokens = decode(self.sam, features, points)
        with torch.autocast(tokens.device.type, enabled=False):
            masks, quality, measured = mask_loss(logits, click_targets(batch["maps"], points), ious, balance)
            on_object = owners >= 0
            z, who = tokens[on_object] - tokens.detach().mean(0), owners[on_object]
            seen = features.detach().float() - features.detach().float().mean((0, 2, 3), keepdim=True)
            feature = 1 - F.cosine_similarity(self.feature(tokens), under(points, seen).flatten(0, 1)).mean()
            return dict(
                masks=masks,
                quality=quality,
                feature=feature,
                token_individual=same_individual_loss(self.token_individual(z), who),
                token_redraw=F.binary_cross_entropy_with_logits(self.token_redraw(z), batch["shapes"][who]),
                part_iou=measured[on_object, 1].mean(),
                whole_iou=measured[on_object, 3].mean(),
            )


# -- the run ------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What holds for a moment of the training.

    Attributes:
        rate: learning rate of the small SAM.
        maps_rate: learning rate of the maps that only training needs.
        tokens: weight of the tokens' losses; 0 in phase 1, where the decoder rests.
        balance: see `mask_loss`.
    """

    rate: float
    maps_rate: float
    tokens: float
    balance: float


def schedule(share: float, step: int, decoder_alone: bool = False) -> Plan:
    """The plan when `share` of the time is over; phase 2 takes all of it if `decoder_alone`."""
    if decoder_alone:
        share = ENCODER_SHARE + (1 - ENCODER_SHARE) * share
    if share < ENCODER_SHARE:
        rate = RATES[0] * min((step + 1) / 200, 1) * (1 - 0.7 * share / ENCODER_SHARE)
        return Plan(rate, rate, 0.0, 0.5)
    inside = (share - ENCODER_SHARE) / (1 - ENCODER_SHARE)
    rate = max(RATES[1] * (1 - inside), 1e-6)
    warm = min(0.05 + inside / 0.04, 1)
    return Plan(rate * warm, rate, 0.01 + 0.99 * min(inside / 0.2, 1), max(0.5 - inside, 0))


class Run:
    """A training that can stop and go on: model, running average, optimiser, steps and seconds."""

    def __init__(self, out: Path, device: torch.device, start: Path | None = None):
        self.out, self.state_file = out, out.with_suffix(".state.pt")
        self.model = Trainee().train()
        if start:
            self.model.sam.load_state_dict(load_file(start))
        self.model.to(device)
        self.average = running_average(self.model)
        maps = [p for name, p in self.model.named_parameters() if not name.startswith("sam.")]
        groups = [{"params": list(self.model.sam.parameters())}, {"params": maps}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATES[0], weight_decay=0.02, betas=(0.9, 0.98))
        known = load_state(self.state_file, self._parts())
        self.step, self.seconds = known.get("step", 0), known.get("seconds", 0.0)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def save(self) -> None:
        """Weights of the running average, and all that is needed to go on."""
        save_weights(self.average.module.sam, self.out)
        save_state(self.state_file, self._parts(), step=self.step, seconds=self.seconds)

    def update(self, batch: dict[str, Tensor], plan: Plan) -> dict[str, float]:
        """One step."""
        for group, rate in zip(self.optimizer.param_groups, (plan.rate, plan.maps_rate), strict=True):
            group["lr"] = rate
        with torch.autocast(batch["images"].device.type, torch.bfloat16):
            loss, losses = self.model(batch, plan)
        descend(self.model, self.average, self.optimizer, loss)
        self.step += 1
        return losses


def train(minutes: float, out: Path, start: Path | None = None, first: int = 0) -> dict:
    """Train until `minutes` of wall-clock time are spent, over all starts; returns what it took.

    Args:
        minutes: the schedule follows them.
        out: where the weights go; the state to go on from lies beside.
        start: weights to begin with; then there is phase 2 alone.
        first: number of the first batch, so that training on sees new pictures.
    """
    torch.manual_seed(0)
    run, last_save, smoothed = Run(out, machine.device(), start), time.monotonic(), {}
    clock = time.monotonic()
    worker = dict(num_workers=1, prefetch_factor=4, multiprocessing_context="spawn")  # OpenCV's threads survive no fork
    for batch in DataLoader(Stream(first + run.step), batch_size=None, **worker):
        share = run.seconds / (60 * minutes)
        if share >= 1:
            break
        plan = schedule(share, run.step, decoder_alone=start is not None)
        losses = run.update({k: v.to(machine.device()) for k, v in batch.items()}, plan)
        smoothed = {k: 0.95 * smoothed.get(k, v) + 0.05 * v for k, v in losses.items()}
        run.seconds, clock = run.seconds + time.monotonic() - clock, time.monotonic()
        if run.step % 20 == 0:
            numbers = " ".join(f"{k} {v:.3f}" for k, v in smoothed.items())
            print(f"{run.step} {run.seconds / 60:.1f} min rate {plan.rate:.1e} {numbers}", flush=True)
        if time.monotonic() - last_save > SAVE_EVERY:
            run.save()
            last_save = time.monotonic()
    run.save()
    return dict(
        steps=run.step, pictures=run.step * SCENES * VIEWS, minutes=run.seconds / 60, hardware=machine.hardware()
    )


def save_weights(sam: Sam, path: Path) -> None:
    """Half-precision safetensors, written beside and moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().half().contiguous().cpu() for k, v in sam.state_dict().items()}
    beside = path.with_suffix(".part")
    save_file(half, beside)
    beside.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=120, help="wall-clock training time; the schedule follows it")
    parser.add_argument("--out", type=Path, default=Path("sam.safetensors"), help="where the weights go")
    parser.add_argument("--start", type=Path, help="weights to begin with, instead of none: phase 2 alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first batch of pictures")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(train(arguments.minutes, arguments.out, arguments.start, arguments.first)))


if __name__ == "__main__":
    main()
