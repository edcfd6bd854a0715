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
    field_validator,
    model_serializer,
    model_validator,
)

from usam import machine
from usam.errors import UserError
from usam.registry import DATASET_READERS, IMAGE_SOURCES, Registry

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seconds = Annotated[float, Field(gt=0)]
Pause = Annotated[float, Field(ge=0)]


# "auto" is replaced when a profile is read, so that it always names what it computes with: bfloat16 on GPUs and on CPUs
# with units for it, else float32
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    AfterValidator(machine.supported_precision),
    Field(validate_default=True),
]


class Settings(BaseModel):
    """Settings that are checked and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def in_words(error: ValidationError, *place: str) -> str:
    """What is wrong with settings, in one line; `place` is the key at which they stand."""
    return "; ".join(f"{'.'.join(map(str, (*place, *e['loc']))) or 'profile'}: {_in_words(e)}" for e in error.errors())


def _in_words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key (a typing error?)"
    message = error["msg"].removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{message}, found {error['input']!r}"


def _registered(registry: Registry, name: str) -> Any:
    """As `registry.find`, for pydantic."""
    try:
        return registry.find(name)
    except UserError as error:
        raise ValueError(str(error)) from error


HOW_FAST = {"image_per_core", "batch", "compile", "fast"}  # of SAM's settings: others change results by rounding alone


class SamConfig(Settings):
    """Which Segment Anything, and how its tokens are taken (paper 3.3 and 4).

    Attributes:
        model: "vit_h", "vit_l", "vit_b", or "module:function" that returns a `segment_anything.modeling.Sam`.
        checkpoint: weights, `.pth` or `.safetensors`; relative paths start at the repository. By default those that
            segment-anything published for the model, which 00_setup downloads.
        points_per_side: side of the point grid; d = its square (10, so d = 100).
        mask_choice: which of a prompt's masks is used: "best" = the multimask output with the highest predicted
            IoU, "single" = SAM's single-mask output.
        precision: arithmetic of image encoder and mask decoder; see `Precision`.
        image_per_core: without a GPU, each core works on an image of its own, instead of all on the same: faster for
            small models, at the price of memory.
        batch: images at once; by default one without a GPU, eight with one.
        compile: let torch.compile fuse the image encoder's steps: minutes at the start, a faster run after; it needs a
            C compiler.
        fast: compute with `usam.method.fast` what segment-anything's own code computes, up to rounding.
    """

    model: str
    checkpoint: str | None = None
    points_per_side: Count = 10
    mask_choice: Literal["best", "single"] = "best"
    precision: Precision = "auto"
    image_per_core: bool = False
    batch: Count | None = None
    compile: bool = False
    fast: bool = True


class SourceConfig(Settings):
    """Where training images come from (paper 3.4), written as `{per_class: 200, generate: {...}}`.

    Attributes:
        per_class: images per class name (paper: 200 synthetic, about 45 from the web).
        kind: a name of `usam.registry.IMAGE_SOURCES`: generate (a text-to-image model draws them) or crawl (they are
            found on the web).
        settings: of that kind.
    """

    per_class: Count
    kind: str
    settings: SerializeAsAny[BaseModel]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, content: Any) -> Any:
        """The one key beside `per_class` is the kind, its value the settings."""
        if not isinstance(content, dict) or "kind" in content:
            return content
        kinds = [name for name in content if name != "per_class"]
        if odd := [name for name in kinds if name not in IMAGE_SOURCES and not isinstance(content[name], dict)]:
            raise ValueError(f"{odd[0]}: unknown key (a typing error?)")
        if len(kinds) != 1:
            raise ValueError(
                f"name one kind of source ({', '.join(IMAGE_SOURCES)}), found {', '.join(kinds) or 'none'}"
            )
        settings, read = _registered(IMAGE_SOURCES, kinds[0]).config, content[kinds[0]]
        try:
            if not isinstance(read, settings):
                read = settings.model_validate_json(json.dumps(read, default=str))
        except ValidationError as error:
            raise ValueError(in_words(error, kinds[0])) from error
        return {name: value for name, value in content.items() if name == "per_class"} | {
            "kind": kinds[0],
            "settings": read,
        }

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {"per_class": self.per_class, self.kind: self.settings.model_dump(mode="json")}


class ClipConfig(Settings):
    """Which CLIP names SAM's masks in the baseline SAM+CLIP (paper 4, "Additional baseline").

    Attributes:
        model: a folder in the format of transformers (relative paths start at the repository), or owner/name on the
            Hugging Face hub.
        batch: masks scored at once.
        precision: arithmetic of the image encoder.
    """

    model: str
    batch: Count = 100
    precision: Precision = "auto"


class DataConfig(Settings):
    """A test set on disk.

    Attributes:
        format: a name of `usam.registry.DATASET_READERS` (voc, coco), or "module:name" of a reader of your own.
        root: its folder; relative paths start at the data folder.
        split: name of the test split ("val" of VOC 2012, "val2017" of COCO).
        validation: split on which choices are made, if there is one.
        published: what 00_setup downloads into `root` if it is missing: "VOC2012" or "COCO2017".
        maker: "module:function" that writes the set when it is missing; `function(root, images, class_names)`.
        images: for the maker, how many pictures of each split, "val" and "test".
        classes: class names, two or more; all of the data set's by default.
        groups: other class names, each with those of `classes` that it gathers (paper 4, "Changed granularity").
    """

    format: Annotated[str, AfterValidator(lambda name: _registered(DATASET_READERS, name) and name)]
    root: str
    split: str
    validation: str | None = None
    published: Literal["VOC2012", "COCO2017"] | None = None
    maker: str | None = None
    images: dict[str, Count] = {}
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    groups: Annotated[dict[str, list[str]], Field(min_length=2)] | None = None

    @model_validator(mode="after")
    def _choices_are_not_made_on_the_test_split(self) -> Self:
        if self.validation == self.split:
            raise ValueError(f"validation and split are both '{self.split}': choices must not be made on test images")
        return self


class HeadConfig(Settings):
    """The classifier head and its training (paper 3.5 and 4).

    Attributes:
        widths: hidden widths of the 4-layer MLP.
        a: design parameter of Eq. (1): k = max(1, ceil(d / a)); 1 takes all masks.
        epochs: passes over the images, for the teacher and for the student (the paper names none).
        batch_size: images in a batch.
        learning_rate: of Adam.
        images_per_class: train on the first so many of each class's images; all by default.
        precision: of the matrix products in training; weights, losses and inference are float32.
    """

    widths: tuple[Count, Count, Count] = (512, 256, 128)
    a: Annotated[float, Field(ge=1)] = 10
    epochs: Count = 30
    batch_size: Count = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    images_per_class: Count | None = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        AfterValidator(machine.supported_precision),
        Field(validate_default=True),
    ] = "auto"


class DistillationConfig(Settings):
    """Uncertainty distillation (paper 3.5, Eq. 3).

    Attributes:
        entropy_threshold: τ_H as a share of ln C, the largest entropy there is.
        reduction: "sum" or "mean" over the classes in Eq. (3); the paper writes the sum.
        lambda_mil, lambda_uncertainty: λ1 and λ2.
    """

    entropy_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    reduction: Literal["sum", "mean"] = "sum"
    lambda_mil: Annotated[float, Field(ge=0)] = 1.0
    lambda_uncertainty: Annotated[float, Field(ge=0)] = 0.15


class InferenceConfig(Settings):
    """From class scores to labelled masks (paper 3.6).

    Attributes:
        score_threshold: masks whose highest class probability is below are dropped.
        nms_iou: of two masks that overlap this much, only the higher score stays.
        nms_per_class: compare only masks of the same class.
        join_parts: then masks of one class that touch or overlap become one (the paper joins nothing).
        smallest: then masks of fewer pixels of the image are dropped (the paper drops none).
    """

    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    nms_iou: Share = 0.5
    nms_per_class: bool = False
    join_parts: bool = False
    smallest: Annotated[int, Field(ge=0)] = 0


class Profile(Settings):
    """All of a run.

    Attributes:
        name: of the profile's file, without ".yaml".
        world: printed on every figure and table.
        seeds: of the heads, each once; tables show mean and standard deviation over them.
        sam, sources, datasets, head, distillation, inference, clip: as explained there.
        grid: side of a coarser grid; of SAM's points only the nearest to its points are used, all by default.
    """

    name: str
    world: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    sam: SamConfig
    sources: Annotated[dict[str, SourceConfig], Field(min_length=1)]
    datasets: Annotated[dict[str, DataConfig], Field(min_length=1)]
    head: HeadConfig = HeadConfig()
    distillation: DistillationConfig = DistillationConfig()
    inference: InferenceConfig = InferenceConfig()
    clip: ClipConfig
    grid: Count | None = None

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the same seed twice would count as two runs: name each once")
        return seeds

    def changed(self, key: str, value: Any) -> Self:
        """The same profile with another `value` at `key`, "head.a" for instance, checked as if read from its file.

        Raises:
            ValidationError: no such key, or no such value.
        """
        content = place = self.model_dump(mode="json")
        *way, last = key.split(".")
        for word in way:
            place = place[word]
        place[last] = value
        return type(self).model_validate_json(json.dumps(content))

    def decisive(self) -> dict[str, Any]:
        """All settings that decide a score, as plain values: the `parameters` of a row in runs.csv."""
        return self.model_dump(mode="json", exclude={"name": True, "world": True, "seeds": True, "sam": HOW_FAST})
