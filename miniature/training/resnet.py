"""Train the small ResNet: `python -m miniature.training.resnet --minutes 15`.

torchvision's ResNet-18, a quarter as wide, at the stride of 8 that ACR gives it. It is taught the classes of drawings
of single things, as ImageNet's networks are taught those of photographs; ACR begins with it.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniature import world
from miniature.training.dino import DEVIATION, MEAN, crop
from miniature.training.loop import Loop
from miniature.training.pictures import held_out, render
from usam import machine
from usam.baselines.acr_networks import IMAGENET, resnet
from usam.data.class_names import VOC

NETWORK, WIDTH = "resnet18", 16
STYLES = ("studio", "web")
ROOM, SIDE, AREA = 112, 96, (0.4, 1.0)  # side of the pictures and of their crops in pixels, and the crops' area
BATCH, RATE = 64, 2e-3
DRAWINGS = tuple(world.DRAWINGS)


class Network(nn.Module):
    """The ResNet with a layer that names drawings, and ImageNet's normalisation of its inputs."""

    def __init__(self):
        super().__init__()
        self.resnet = resnet(NETWORK, WIDTH, nn.BatchNorm2d)
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, len(DRAWINGS))
        for name, values in IMAGENET.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, s, s) float32 in [0, 1] -> logits (N, drawings)."""
        return self.resnet((pictures - self.mean) / self.std)


def train(minutes: float, out: Path, count: int) -> dict:
    """Train within `minutes` over all starts on `count` pictures a style, write the weights, and say what it took."""
    torch.manual_seed(0)
    device = machine.device()
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures, shown = render(STYLES, "train", "resnet", range(count), ROOM)
    labels = torch.tensor([DRAWINGS.index(name) for (name,) in shown])
    fast = machine.best_precision(device.type) == "bfloat16"

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        some = torch.randint(len(labels), (BATCH,), generator=generator)
        seen = crop(pictures[some], SIDE, AREA, generator) * DEVIATION + MEAN
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = model(seen.to(device))
        return F.cross_entropy(logits.float(), labels[some].to(device))

    loop = Loop(Network().to(device).train(), RATE, minutes, out.with_suffix(".pt"), [count])
    loop.run(loss_of)
    save_file({name: value.half().cpu().contiguous() for name, value in loop.model.resnet.state_dict().items()}, out)
    return dict(steps=loop.step, drawn=len(labels), minutes=loop.seconds / 60, hardware=machine.hardware())


@torch.no_grad()
def accuracy(weights: Path, per_class: int) -> dict[str, float]:
    """Share of drawings of VOC's classes that are named right, of each style; none was in the training."""
    model = Network()
    model.resnet.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    model.eval()
    found = {}
    for style in STYLES:
        pictures, numbers = held_out(style, per_class, "resnet", SIDE)
        named = torch.cat([model(some.float() / 255).argmax(1) for some in pictures.split(64)])
        wanted = torch.tensor([DRAWINGS.index(name) for name in VOC])[numbers]
        found[style] = (named == wanted).float().mean().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15, help="training time over all starts; 0 only measures")
    parser.add_argument("--out", type=Path, default=Path("resnet.safetensors"), help="the file to write")
    parser.add_argument("--count", type=int, default=6_000, help="pictures to draw of each style")
    parser.add_argument("--per-class", type=int, default=50, help="held-out drawings of each class to measure with")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    took = train(arguments.minutes, arguments.out, arguments.count) if arguments.minutes else {}
    print(json.dumps(took | accuracy(arguments.out, arguments.per_class)))


if __name__ == "__main__":
    main()
