"""Every setting of a run, explained and checked: unknown keys and wrong types are errors."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_serializer,
    model_validator,
)

from usam import machine
from usam.errors import UserError
from usam.registry import DATASET_READERS, IMAGE_SOURCES, Registry

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seconds = Annotated[float, Field(gt=0)]
Pause = Annotated[float, Field(ge=0)]

# "auto" is replaced when a profile is read, so that it always names what it computes with: bfloat16 on GPUs and on CPUs
# with units for it, else float32
ON_THIS_MACHINE = (AfterValidator(machine.supported_precision), Field(validate_default=True))
Precision = Annotated[Literal["auto", "float32", "bfloat16", "float16"], *ON_THIS_MACHINE]

HOW_FAST = {"image_per_core", "batch", "compile", "fast"}  # of SAM's settings: others change results by rounding alone


class Settings(BaseModel):
    """Settings that are checked and cannot be changed; the string below a setting says what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def in_words(error: ValidationError, *place: str) -> str:
    """What is wrong with settings, in one line; `place` is the key at which they stand."""
    return "; ".join(f"{'.'.join(map(str, (*place, *e['loc']))) or 'profile'}: {_in_words(e)}" for e in error.errors())


def _in_words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key (a typing error?): usam/profiles.py, config.py and config_rivals.py explain all keys"
    message = error["msg"].removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{message}, found {error['input']!r}"


def _registered(registry: Registry, name: str) -> Any:
    """As `registry.find`, for pydantic."""
    try:
        return registry.find(name)
    except UserError as error:
        raise ValueError(str(error)) from error


class SamConfig(Settings):
    """Which Segment Anything, and how its tokens are taken (paper 3.3 and 4)."""

    model: str
    """one of "vit_h", "vit_l", "vit_b", or "module:function" that returns a `segment_anything.modeling.Sam`."""
    checkpoint: str | None = None
    """weights, `.pth` or `.safetensors`; relative paths start at the repository. By default those that segment-anything
    published for the model, which 00_setup downloads."""
    points_per_side: Count = 10
    """side of the point grid; d = its square (10, so d = 100)."""
    mask_choice: Literal["best", "single"] = "best"
    """which of a prompt's masks is used: "best" = the multimask output with the highest predicted IoU, "single" = SAM's
    single-mask output."""
    mask_size: Literal["image", "decoder"] = "image"
    """at which size masks are cut out of SAM's logits and stored: "image" = as SAM does it, enlarged to the image
    (longer side at most 1024 pixels) and then cut; "decoder" = cut at the decoder's low resolution, which is faster and
    smaller and has coarser borders."""
    precision: Precision = "auto"
    """arithmetic of image encoder and mask decoder; see `Precision`."""
    image_per_core: bool = False
    """without a GPU, each core works on an image of its own, instead of all on the same: faster for small models, at
    the price of memory."""
    batch: Count | None = None
    """images at once; by default one without a GPU, eight with one."""
    compile: bool = False
    """let torch.compile fuse the image encoder's steps: minutes at the start, a faster run after; it needs a C
    compiler."""
    fast: bool = True
    """compute with `usam.method.fast` what segment-anything's own code computes, up to rounding."""


class SourceConfig(Settings):
    """Where training images come from (paper 3.4), written as `{per_class: 200, generate: {...}}`."""

    per_class: Count
    """images per class name (paper: 200 synthetic, about 45 from the web)."""
    kind: str
    """a name of `usam.registry.IMAGE_SOURCES`: generate (a text-to-image model draws them) or crawl (they are found on
    the web)."""
    settings: SerializeAsAny[BaseModel]
    """those of that kind."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, content: Any) -> Any:
        """The one key beside `per_class` is the kind, its value the settings."""
        if not isinstance(content, dict):
            return content
        kinds = [name for name in content if name != "per_class"]
        if len(kinds) != 1:
            known, found = ", ".join(IMAGE_SOURCES), ", ".join(kinds)
            raise ValueError(f"name one kind of source ({known}), found {found or 'none'}")
        kind, settings = kinds[0], content[kinds[0]]
        config = _registered(IMAGE_SOURCES, kind).config
        try:
            if not isinstance(settings, config):
                settings = config.model_validate_json(json.dumps(settings))  # in JSON, lists may be tuples
        except ValidationError as error:
            raise ValueError(in_words(error, kind)) from error
        return {name: content[name] for name in content if name != kind} | {"kind": kind, "settings": settings}

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {"per_class": self.per_class, self.kind: self.settings.model_dump(mode="json")}


class ClipConfig(Settings):
    """Which CLIP names SAM's masks in the baseline SAM+CLIP (paper 4, "Additional baseline")."""

    model: str
    """a folder in the format of transformers (relative paths start at the repository), or owner/name on the Hugging
    Face hub."""
    fill: Literal["black", "mean", "blur", "none"] = "black"
    """what CLIP is shown around a mask: "black" as in the paper ("multiplying the masks to the original image"), CLIP's
    "mean" colour, the image out of focus ("blur"), or the image as it is ("none", with `crop` alone)."""
    crop: bool = False
    """show the mask's bounding box instead of the whole frame."""
    batch: Count = 100
    """masks scored at once."""
    precision: Precision = "auto"
    """arithmetic of the image encoder."""

    @model_validator(mode="after")
    def _masks_differ(self) -> Self:
        if self.fill == "none" and not self.crop:
            raise ValueError("fill: none needs crop: true, or CLIP would see the same picture for every mask")
        return self


class DataConfig(Settings):
    """A test set on disk."""

    format: Annotated[str, AfterValidator(lambda name: _registered(DATASET_READERS, name) and name)]
    """a name of `usam.registry.DATASET_READERS` (voc, coco), or "module:name" of a reader of your own."""
    root: str
    """its folder; relative paths start at the data folder."""
    split: str
    """name of the test split ("val" of VOC 2012, "val2017" of COCO)."""
    validation: str | None = None
    """split on which choices are made, if there is one."""
    train: str | None = None
    """split whose marked scenes train the in-domain head, if there is one."""
    published: Literal["VOC2012", "COCO2017"] | None = None
    """what 00_setup downloads into `root` if it is missing: "VOC2012" or "COCO2017"."""
    maker: str | None = None
    """what writes the set when it is missing: "module:function", called as `function(root, images, class_names)`."""
    images: dict[str, Count] = {}
    """for the maker, how many pictures of each split, "train", "val" and "test"."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """class names, two or more; all of the data set's by default."""
    groups: Annotated[dict[str, list[str]], Field(min_length=2)] | None = None
    """other class names, each with those of `classes` that it gathers (paper 4, "Changed granularity")."""

    @model_validator(mode="after")
    def _the_test_split_is_for_tests_alone(self) -> Self:
        if self.validation == self.split:
            raise ValueError(
                f"validation and split are both '{self.split}': choices must not be made on test images, name another"
            )
        if self.train == self.split:
            raise ValueError(
                f"train and split are both '{self.split}': nothing must be trained on test images, name another"
            )
        return self


class HeadConfig(Settings):
    """The classifier head and its training (paper 3.5 and 4)."""

    widths: tuple[Count, Count, Count] = (512, 256, 128)
    """hidden widths of the 4-layer MLP."""
    a: Annotated[float, Field(ge=1)] = 10
    """design parameter of Eq. (1): k = max(1, ceil(d / a)); 1 takes all masks."""
    epochs: Count = 30
    """passes over the images, for the teacher and for the student (the paper names none)."""
    batch_size: Count = 64
    """images in a batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """of Adam, at the first step."""
    learning_rate_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """the rate at the last step, as a share of the first; it changes linearly (the paper names no schedule)."""
    standardise: bool = False
    """whether tokens are standardised, with mean and deviation of the training tokens, before the first layer (the
    paper does not mention it)."""
    images_per_class: Count | None = None
    """how many images of each class to train on, the first ones; all by default."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], *ON_THIS_MACHINE] = "auto"
    """of the matrix products in training; weights, losses and inference are float32."""


class DistillationConfig(Settings):
    """Uncertainty distillation (paper 3.5, Eq. 3)."""

    entropy_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """τ_H as a share of ln C, the largest entropy there is."""
    reduction: Literal["sum", "mean"] = "sum"
    """over the classes in Eq. (3): "sum", as the paper writes it, or "mean"."""
    mask_reduction: Literal["mean", "sum"] = "mean"
    """over an image's bad masks, for which Eq. (3) has no index: "mean" or "sum"."""
    initial_weights: Literal["teacher", "own"] = "teacher"
    """which untrained weights the student begins with: those that its teacher began with, so that the two differ by the
    loss alone, or weights of its own."""
    lambda_mil: Annotated[float, Field(ge=0)] = 1.0
    """λ1, the weight of the loss of Eq. (2)."""
    lambda_uncertainty: Annotated[float, Field(ge=0)] = 0.15
    """λ2, the weight of the loss of Eq. (3)."""


class InferenceConfig(Settings):
    """From class scores to labelled masks (paper 3.6)."""

    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    """masks whose highest class probability is below are dropped."""
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """of two masks that overlap this much, only the higher score stays."""
    nms_per_class: bool = False
    """compare only masks of the same class."""
    join_parts: bool = False
    """then masks of one class that touch or overlap become one (the paper joins nothing)."""
    smallest: Annotated[int, Field(ge=0)] = 0
    """then masks of fewer pixels of the image are dropped (the paper drops none)."""
