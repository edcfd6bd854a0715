"""The networks of ACR: a classifier with class activation maps (CAMs), and a reconstructor that paints pictures."""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from usam.config_rivals import AcrConfig
from usam.data import imagenet
from usam.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Classifier(nn.Module):
    """A ResNet at stride 8 with CAMs. Pictures (B, 3, H, W) in [-1, 1] -> CAMs (B, C, H / 8, W / 8), logits (B, C)."""

    def __init__(self, config: AcrConfig, classes: int):
        super().__init__()
        self.resnet = resnet(config.network, config.width, FrozenBatchNorm2d if config.weights else nn.BatchNorm2d)
        self.reduce = nn.Conv2d(self.resnet.fc.in_features, config.features, 1, bias=False)
        self.cams = nn.Conv2d(config.features, classes, 1, bias=False)
        first = 0.0 if config.weights else -math.log(max(classes - 1, 1))
        self.bias = nn.Parameter(torch.full((classes,), first), requires_grad=config.weights is None)
        self.resnet.fc = nn.Identity()
        for name, values in IMAGENET.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """CAMs, logits, and features at three levels, each (B, ., H / 8, W / 8)."""
        net, seen = self.resnet, ((pictures + 1) / 2 - self.mean) / self.std
        first = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(seen)))))
        fine = net.layer2(first)
        middle = net.layer3(fine)
        coarse = F.relu(self.reduce(net.layer4(middle)))
        cams = self.cams(coarse).float()
        return cams, cams.mean((2, 3)) + self.bias, [fine, middle, coarse]


class Reconstructor(Classifier):
    """A second such network, from whose features a U-Net paints the picture."""

    def __init__(self, config: AcrConfig, classes: int):
        super().__init__(config, classes)
        widths = config.features // 4, config.features // 2
        before = [layer[0].downsample[0].out_channels for layer in (self.resnet.layer2, self.resnet.layer3)]
        self.narrow = nn.ModuleList(nn.Conv2d(b, w, 1) for b, w in zip(before, widths, strict=True))
        self.paint = UNet(sum(widths) + config.features, config.painter)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and features of all levels at the size of the pictures: (B, C), (B, D, H, W)."""
        _, logits, (*levels, coarse) = super().forward(pictures)
        levels = [narrow(level) for narrow, level in zip(self.narrow, levels, strict=True)]
        return logits, enlarged(torch.cat([*levels, coarse], 1), pictures.shape[-2:])


class UNet(nn.Module):
    """Features (B, D, s, s) -> a picture (B, 3, s, s) in [-1, 1]; s halves with each of the `widths`."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        down = [nn.Sequential(nn.Conv2d(channels, widths[0], 4, 2, 1))]
        for before, width in itertools.pairwise(widths):
            down.append(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(before, width, 4, 2, 1), _group_norm(width)))
        up, before = [], widths[-1]
        for after in reversed(widths[:-1]):
            up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1), _group_norm(after)))
            before = 2 * after
        up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(before, 3, 4, 2, 1)))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)

    def forward(self, seen: Tensor) -> Tensor:
        skipped = []
        for layer in self.down:
            seen = layer(seen)
            skipped.append(seen)
        seen = self.up[0](skipped.pop())
        for layer in self.up[1:]:
            seen = layer(torch.cat([seen, skipped.pop()], 1))
        return seen.float().tanh()


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def resnet(network: str, width: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """torchvision's ResNet with dilation in place of the last two strides, and with another width of its first layer.

    torchvision's own `replace_stride_with_dilation`, the same for Bottleneck, refuses networks of BasicBlocks.

    Raises:
        UserError: torchvision has no such network.
    """
    known = torchvision.models.list_models(module=torchvision.models, include=["resn*", "wide_resn*"])
    if network not in known:
        raise UserError(f"acr.network: torchvision has no '{network}': choose from {', '.join(known)}")
    net = torchvision.models.get_model(network, norm_layer=norm)
    if width != net.conv1.out_channels:
        _change_width(net, width, norm)
    for layer, dilation in ((net.layer3, 1), (net.layer4, 2)):
        for number, block in enumerate(layer):
            for conv in (part for part in block.modules() if isinstance(part, nn.Conv2d)):
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (2 * dilation if number else dilation,) * 2
    return net


def _change_width(net: nn.Module, width: int, norm: Callable[[int], nn.Module]) -> None:
    net.conv1, net.bn1, before = nn.Conv2d(3, width, 7, 2, 3, bias=False), norm(width), width
    for number, name in enumerate(("layer1", "layer2", "layer3", "layer4")):
        blocks, block = [], type(getattr(net, name)[0])
        for k in range(len(getattr(net, name))):
            inner, stride, skip = width * 2**number, 2 if number and not k else 1, None
            if not k and (stride > 1 or before != inner * block.expansion):
                conv = nn.Conv2d(before, inner * block.expansion, 1, stride, bias=False)
                skip = nn.Sequential(conv, norm(inner * block.expansion))
            blocks.append(block(before, inner, stride, skip, norm_layer=norm))
            before = inner * block.expansion
        setattr(net, name, nn.Sequential(*blocks))
    for conv in (part for part in net.modules() if isinstance(part, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    net.fc = nn.Linear(before, 1)


def enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) brought to another size, bilinear."""
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def load_weights(net: nn.Module, config: AcrConfig) -> None:
    """Bring a ResNet to the weights that the profile names, but for its last layer; nothing if it names none.

    Raises:
        UserError: there are no such weights, they cannot be downloaded, or they belong to another network.
    """
    if config.weights is None:
        return
    found = imagenet.load(config.network, config.weights)
    try:
        net.load_state_dict({name: values for name, values in found.items() if not name.startswith("fc.")})
    except RuntimeError as error:
        raise UserError(
            f"acr.weights: {config.weights} is not of {config.network} with width {config.width}: correct the profile"
        ) from error
