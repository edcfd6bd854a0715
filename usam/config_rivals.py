"""Settings of the rivals (paper 4, Tables 1 and 2); by default those of their authors, but for the number of steps."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from usam.config import Count, Settings

Rates = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class LeopartConfig(Settings):
    """Leopart: dense clustering that fine-tunes DINO."""

    backbone: str = "facebook/dino-vits16"
    """a folder in the format of transformers, or owner/name on the Hugging Face hub."""
    side: Count = 448
    """of the square at which images are clustered, in pixels."""
    crop_sides: tuple[Count, Count] = (224, 96)
    """of large and of small crops in training, in pixels."""
    small_crops: Count = 4
    """beside two large ones."""
    cells: Count = 7
    """side of the grid at which crops are compared where they overlap."""
    head: Annotated[tuple[Count, ...], Field(min_length=1)] = (2048, 2048, 256)
    """widths of the projection head."""
    prototypes: Annotated[int, Field(ge=2)] = 300
    """clusters in training."""
    queue: Count = 8192
    """foreground features of earlier batches, which take part in the assignment; one queue for each large crop."""
    steps: Annotated[int, Field(ge=0)] = 30_000
    """0 leaves DINO as it is, a control; the authors take 50 epochs of COCO, about 92,000."""
    batch: Count = 64
    rates: Rates = (1e-5, 1e-4)
    """learning rates of the backbone and of the head, at the first step."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    """of the teacher, at the first step; it rises to 1."""
    clusters: Annotated[int, Field(ge=2)] | None = None
    """that get names; by default one a class and one for the background."""


class TransfguConfig(Settings):
    """TransFGU: class prototypes, relevance maps, a decoder."""

    backbone: str = "facebook/dino-vits8"
    """a folder in the format of transformers, or owner/name on the Hugging Face hub."""
    side: Count = 320
    """of the square images, in pixels; prototypes are looked for in images of twice this side."""
    windows: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.6, 0.5, 0.4, 0.3)
    """sides of the sliding windows whose class tokens are clustered, as shares of the image's."""
    blocks: Count = 2
    """of the decoder."""
    crop_side: Count = 160
    """of the crops in training, in pixels."""
    views: Count | None = None
    """crops of an image, whose features are computed once for all epochs; new ones each time by default."""
    batch: Count = 512
    steps: Count = 2_000
    restarts: tuple[Count, ...] = (5, 10, 14, 17)
    """epochs (all images once) after which the student becomes the teacher and starts again; all before the end."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class AcrConfig(Settings):
    """ACR: a segment is good if its surroundings cannot rebuild it."""

    network: str = "resnet50"
    """a ResNet of torchvision (the authors': ResNet-38d, which no library has)."""
    weights: str | None = "IMAGENET1K_V2"
    """to begin with: torchvision's for it, or a `.safetensors` file of such a network; null begins with random numbers,
    with AdamW in place of SGD and a bias of the logits."""
    width: Count = 64
    """channels of the first layer; torchvision's weights have 64."""
    features: Count = 256
    """channels before the class activation maps."""
    painter: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 128, 256, 512, 512)
    """channels of the reconstructor's U-Net, from fine to coarse."""
    side: Count = 256
    """of the square images in training, in pixels."""
    grid: Count = 16
    """side of the grid of random masks."""
    batch: Count = 8
    alone: Annotated[int, Field(ge=0)] = 0
    """first steps, in which the classifier does not listen to the reconstructor."""
    head_start: Annotated[int, Field(ge=0)] = 0
    """the last of these steps, in which the reconstructor learns already."""
    steps: Count = 20_000
    """in which the two take turns."""
    rates: Rates = (1e-2, 1e-1)
    """learning rates of the ResNet and of new layers, at the first step."""

    @property
    def published(self) -> bool:
        """Whether the weights are torchvision's."""
        return self.weights is not None and not self.weights.endswith(".safetensors")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.published and self.width != 64:
            raise ValueError(f"width {self.width} has no weights in torchvision: write 64, or weights: null, or a file")
        if self.head_start > self.alone:
            raise ValueError(f"head_start ({self.head_start}) is a part of alone ({self.alone}): make it smaller")
        if self.grid > self.side:
            raise ValueError(f"grid ({self.grid}) has more cells than side ({self.side}) has pixels: make it smaller")
        if self.features % 4:
            raise ValueError(f"features ({self.features}) must be a multiple of 4")
        if self.side % (multiple := 2 ** len(self.painter)):
            raise ValueError(f"side ({self.side}) must be a multiple of {multiple}: painter halves it that often")
        return self


class RivalsConfig(Settings):
    """All three; `{}` takes the settings of their authors."""

    leopart: LeopartConfig = LeopartConfig()
    transfgu: TransfguConfig = TransfguConfig()
    acr: AcrConfig = AcrConfig()

    @property
    def backbones(self) -> set[str]:
        """The models that Leopart and TransFGU begin with."""
        return {self.leopart.backbone, self.transfgu.backbone}
