"""Train the small DINO: `python -m miniature.training.dino --minutes 60`.

A `transformers` folder with DINO's ViT, small: patches of 8 pixels, 128 px. It is trained on drawings without any
label. As in DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021), a student and a
teacher, the running average of the student, see two crops of a picture, and the student says of one what the teacher
says of the other. What is said differs: DINO's distribution over prototypes had taught this ViT nothing after 400 steps
of 64 pictures, and there is time for a few thousand; so the student finds the teacher's vector of the other crop among
those of all crops of the batch (MoCo v3, Chen et al., 2021, Eq. 1). There is one head on the class token, and one on
the mean of the patches, so that these, which the methods use, learn directly.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from miniature import datasets
from miniature.training.loop import Loop, whole_folder
from miniature.training.pictures import render, square
from usam import machine
from usam.data.class_names import VOC

SIDE, PATCH = 128, 8  # pixels
MEAN = DEVIATION = 0.5  # of the normalisation, all three colours
STYLES = ("web", "any", "scene")
CROP, AREA = 64, (0.3, 1.0)  # side of the crops in pixels, and which share of the picture's area they show
HIDDEN, OUTPUT = 512, 128
BATCH, RATE = 128, 1e-3
TEMPERATURE = 0.2
MOMENTUM = 0.98  # of the teacher: some thousand steps are too few for the papers' 0.996 and more


def build() -> ViTModel:
    """The small ViT with fresh weights: 1.2M parameters, features (B, 1 + 256, 128) of 128-pixel pictures."""
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=SIDE,
        patch_size=PATCH,
    )
    # plain attention: torch's fused kernel for the CPU is slower at so few tokens
    return ViTModel._from_config(config, attn_implementation="eager", add_pooling_layer=False)


def _over_the_batch(channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels, track_running_stats=False)  # heads are never used on single pictures


class Head(nn.Module):
    """Projection head: an MLP, normalised over the batch, so that the first steps already see how crops differ."""

    def __init__(self, inputs: int):
        super().__init__()
        sizes = (inputs, HIDDEN, HIDDEN)
        hidden = [
            layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, bias=False), _over_the_batch(b), nn.GELU())
        ]
        self.project = nn.Sequential(*hidden, nn.Linear(HIDDEN, OUTPUT, bias=False), _over_the_batch(OUTPUT))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, OUTPUT), of length 1."""
        return F.normalize(self.project(x).float(), dim=-1)


class Network(nn.Module):
    """Backbone and two heads."""

    def __init__(self):
        super().__init__()
        self.backbone = build()
        width = self.backbone.config.hidden_size
        self.heads = nn.ModuleList([Head(width), Head(width)])  # of the class token, of the patches' mean

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (N, 3, s, s) -> vectors (2, N, OUTPUT) float32 of length 1."""
        seen = self.backbone(crops, interpolate_pos_encoding=True).last_hidden_state
        parts = seen[:, 0], seen[:, 1:].mean(1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])


def crop(pictures: Tensor, side: int, area: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A square of each picture (N, 3, S, S) uint8, mirrored or not, in other colours: (N, 3, side, side) float32."""
    count = len(pictures)

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    zoom = (area[0] + (area[1] - area[0]) * chance()).sqrt()
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = zoom * torch.where(chance() < 0.5, -1.0, 1.0), zoom
    matrix[:, :, 2] = (1 - zoom)[:, None] * (2 * chance(2) - 1)
    grid = F.affine_grid(matrix, [count, 3, side, side], align_corners=False)
    found = F.grid_sample(pictures.float() / 255, grid, align_corners=False)
    found = found * (0.7 + 0.6 * chance(1, 1, 1)) * (0.85 + 0.3 * chance(3, 1, 1))  # brightness, colour cast
    grey = found.mean(1, keepdim=True)
    saturation = torch.where(chance(1, 1, 1) < 0.2, 0.0, 0.4 + 1.2 * chance(1, 1, 1))
    found = grey + saturation * (found - grey)
    middle = found.mean((1, 2, 3), keepdim=True)
    found = (middle + (0.7 + 0.6 * chance(1, 1, 1)) * (found - middle)).clamp(0, 1)  # contrast
    return (found - MEAN) / DEVIATION


def contrastive_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of finding the other crop of the same picture among all other crops (MoCo v3, Eq. 1).

    Args:
        student, teacher: (2 N, D) vectors of length 1, of N crops and then of the other crop of each picture.
    """
    logits = student @ teacher.T / TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device).roll(len(logits) // 2))


class Pair(nn.Module):
    """Student and teacher, who starts as its copy and follows it."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Network(), Network().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """The teacher's next step."""
        for own, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.lerp_(new, 1 - MOMENTUM)


def loss_of(pair: Pair, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The loss of a random batch of pictures (P, 3, S, S) uint8, after the teacher has followed."""
    pair.follow()
    some = pictures[torch.randperm(len(pictures), generator=generator)[:BATCH]]
    device = next(pair.parameters()).device
    crops = torch.cat([crop(some, CROP, AREA, generator) for _ in range(2)]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        given = pair.student(crops)
        with torch.no_grad():
            wanted = pair.teacher(crops)
    return torch.stack([contrastive_loss(*one) for one in zip(given, wanted, strict=True)]).mean()


def train(minutes: float, out: Path, count: int) -> dict:
    """Train within `minutes` over all starts on `count` pictures a style, save the folder, and say what it took."""
    torch.manual_seed(0)
    device = machine.device()
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = torch.cat([render((style,), "train", "dino", range(count), SIDE)[0] for style in STYLES])
    loop = Loop(Pair().to(device).train(), RATE, minutes, out.with_name(f"{out.name}.pt"), [count])
    loop.run(lambda pair, generator: loss_of(pair, pictures, generator))
    save(loop.average.module.student.backbone, out)
    return dict(steps=loop.step, drawn=len(pictures), minutes=loop.seconds / 60, hardware=machine.hardware())


def save(backbone: ViTModel, out: Path) -> None:
    """The folder that `from_pretrained` reads, in half precision."""
    values = dict(image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)
    with whole_folder(out) as folder:
        backbone.half().cpu().save_pretrained(folder)
        ViTImageProcessor(size={"height": SIDE, "width": SIDE}, **values).save_pretrained(folder)


# -- how good it is -----------------------------------------------------------------------------------------------


@torch.no_grad()
def pooled(backbone: ViTModel, split: str, key: str, scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Patch features (n, D), averaged over the true mask of each thing on some scenes, and its class names (n,)."""
    features, names = [], []
    for index in tqdm(range(scenes), desc=f"scenes, {split}", unit="scene"):
        drawn = datasets.test_scene(split, key, index, list(VOC))
        image = torch.from_numpy(square(drawn.image, SIDE)).permute(2, 0, 1)[None]
        tokens = backbone((image / 255 - MEAN) / DEVIATION).last_hidden_state[0, 1:]
        for number, name in enumerate(drawn.names, 1):
            share = square((drawn.objects == number).astype(np.float32), SIDE // PATCH).ravel()
            if name is not None and share.sum() >= 1:
                features.append(share @ tokens.numpy() / share.sum())
                names.append(name)
    return np.stack(features), np.array(names)


def probe(folder: Path | None, scenes: int) -> float:
    """Accuracy of a logistic regression on features pooled over true masks: 20 classes, scenes never seen.

    Without a folder it is that of random weights.
    """
    torch.manual_seed(0)
    backbone = (ViTModel.from_pretrained(folder, add_pooling_layer=False) if folder else build()).float().eval()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(*pooled(backbone, "train", "dino-probe", 2 * scenes))
    return float(model.score(*pooled(backbone, "val", "dino-probe", scenes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=90, help="training time over all starts; 0 only measures")
    parser.add_argument("--out", type=Path, default=Path("dino"), help="the folder to write")
    parser.add_argument("--count", type=int, default=3_000, help="pictures to draw of each style")
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes for the probe")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    took = train(arguments.minutes, arguments.out, arguments.count) if arguments.minutes else {}
    found = {"probe": probe(arguments.out, arguments.scenes), "random_weights": probe(None, arguments.scenes)}
    print(json.dumps(took | found))


if __name__ == "__main__":
    main()
