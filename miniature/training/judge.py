"""How good are the small CLIP and the small Stable Diffusion? `python -m miniature.training.judge`

* CLIP: zero-shot top-1 over the 20 VOC names, on held-out studio-style and web-style drawings.
* Stable Diffusion: a ResNet-18 that had no part in its training learns the 20 classes from other drawings, and then
  names generated images. And are these copies? For each, the distance to the nearest picture that Stable Diffusion
  learned from (root mean square over pixels, in [0, 1]), beside that of as many new drawings.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from miniature.training.clip import ROOM, SIDE, cut, zero_shot
from miniature.training.diffusion import PER_DRAWING, learned
from miniature.training.pictures import held_out, render, turns
from usam import machine, profiles
from usam.data import image_files
from usam.data.class_names import VOC
from usam.errors import UserError
from usam.pipeline.training_images import collect
from usam.report import figures

BATCH, EPOCHS = 128, 6


def classifier(per_drawing: int) -> nn.Module:
    """A ResNet-18 that names single things: trained on studio-style and web-style drawings of its own."""
    torch.manual_seed(0)
    style_names = ("studio", "web")
    pictures, drawings = render(style_names, "train", "judge", turns(per_drawing, VOC), ROOM)
    labels = torch.tensor([VOC.index(name) for (name,) in drawings])
    model = resnet18(num_classes=len(VOC)).to(machine.device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="classifier", unit="step"):
        some = torch.randint(len(labels), (BATCH,))
        seen = cut(pictures[some], torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        seen = gaussian_blur(seen, 5, [0.1 + float(torch.rand(())) * 1.2])  # sharpness is no sign of a class
        with torch.autocast(machine.device().type, torch.bfloat16):
            loss = F.cross_entropy(model(seen.to(machine.device())).float(), labels[some].to(machine.device()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def named(model: nn.Module, pictures: Tensor) -> Tensor:
    """Class numbers of pictures (N, 3, h, w) uint8."""
    small = [F.interpolate(some.float() / 255, (SIDE, SIDE), mode="area") for some in pictures.split(256)]
    return torch.cat([model(some.to(machine.device())).argmax(1).cpu() for some in small])


def nearest(some: Tensor, others: Tensor) -> Tensor:
    """Root mean square distance of each picture (N, 3, h, w) uint8 to the nearest of `others`."""
    a, b = (t.flatten(1).float() / 255 for t in (some, others))
    return torch.cdist(a, b).min(1).values / a.shape[1] ** 0.5


def judge_generator(profile: str, folder: Path, per_class: int, per_drawing: int, learned_from: int) -> dict:
    """Generate, name, compare; leaves the images, `classes.csv` and `sheet.png` in `folder`."""
    source = profiles.load(profile).sources["synthetic"]
    if source.kind != "generate":
        raise UserError(f"profile '{profile}' does not generate its images: name one that does")
    made = collect(folder, "images", source.model_copy(update={"per_class": per_class}), list(VOC))
    table = made.table
    pictures = torch.from_numpy(np.stack([image_files.read(made.folder / file) for file in table["file"]]))
    pictures = pictures.permute(0, 3, 1, 2)
    truth = torch.tensor([VOC.index(name) for name in table["class"]])
    model = classifier(per_drawing)
    sound = {style_name: (named(model, p) == t).float().mean().item() for style_name in ("studio", "web")
             for p, t in [held_out(style_name, 50, "judge")]}  # fmt: skip
    found = named(model, pictures)
    own, drawings = learned(learned_from)
    unseen, kinds = held_out("studio", per_class, "near", own.shape[-1])
    small = F.interpolate(pictures.float(), own.shape[-2:], mode="area").round().to(torch.uint8)
    rows = []
    for number, name in enumerate(VOC):
        mine, theirs = small[truth == number], own[[k for k, one in enumerate(drawings) if one == (name,)]]
        away, usual = nearest(mine, theirs), nearest(unseen[kinds == number], theirs)
        wrong = [VOC[k] for k in found[truth == number].tolist() if k != number]
        rows.append({
            "class": name,
            "recognised": 1 - len(wrong) / len(mine),
            "most often taken for": max(set(wrong), key=wrong.count) if wrong else "",
            "distance": away.median().item(),
            "least distance": away.min().item(),
            "distance of drawings": usual.median().item(),
            "least of drawings": usual.min().item(),
        })  # fmt: skip
    classes = pd.DataFrame(rows)
    classes.to_csv(folder / "classes.csv", index=False, float_format="%.3f")
    first = table.groupby("class", sort=False).head(10)
    shown = [image_files.read(made.folder / file) for file in first["file"]]
    figures.sheet(shown, first["class"].tolist(), columns=10, heading=source.settings.model).savefig(
        folder / "sheet.png", bbox_inches="tight"
    )
    print(classes.round(3).to_string(index=False))
    return dict(recognised=(found == truth).float().mean().item(), classifier=sound, images=len(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="mini", help="whose generator is judged")
    parser.add_argument("--clip", type=Path, help="folder of the small CLIP; without it only the generator is judged")
    parser.add_argument("--out", type=Path, default=Path("judged"), help="where images, table and sheet go")
    parser.add_argument("--per-class", type=int, default=50, help="images to generate of each class")
    parser.add_argument("--per-drawing", type=int, default=300, help="drawings of each class and style to learn from")
    parser.add_argument("--learned", type=int, default=PER_DRAWING, help="--per-drawing of the generator's training")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = judge_generator(
        arguments.profile, arguments.out, arguments.per_class, arguments.per_drawing, arguments.learned
    )
    if arguments.clip:
        result["zero_shot"] = zero_shot(arguments.clip, ("studio", "web"), 50)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
