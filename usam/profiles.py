"""Profiles: all settings of a run, read from the files `profiles/*.yaml` and checked (`usam.config` has the parts)."""

import functools
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from usam import paths
from usam.config import (
    HOW_FAST,
    ClipConfig,
    Count,
    DataConfig,
    DistillationConfig,
    HeadConfig,
    InferenceConfig,
    SamConfig,
    Seed,
    Settings,
    SourceConfig,
    in_words,
)
from usam.config_rivals import RivalsConfig
from usam.errors import UserError

NOT_CHANGED = {"pictured", "sweeps", "search"}  # of a profile, by `changed`: no score depends on them


class SearchConfig(Settings):
    """The choice, on the validation split, of settings that the paper leaves open: one small search a method.

    A variant is a change of settings, such as `{head.a: 4, head.epochs: 20}`; the profile's own settings are always one
    more. Each method may try as many as any other, each with every one of `score_thresholds`. What has the highest mean
    of mIoU and mAP50 is frozen, and then tested once.
    """

    heads: list[dict[str, Any]]
    """variants for MIL only and for U-SAM."""
    clip: list[dict[str, Any]]
    """variants for SAM+CLIP, as many."""
    score_thresholds: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    """values of `inference.score_threshold`."""

    @model_validator(mode="after")
    def _same_budget(self) -> Self:
        if len(self.heads) != len(self.clip):
            raise ValueError(
                f"heads has {len(self.heads)} variants and clip {len(self.clip)}: list as many, so that all methods "
                "have the same budget"
            )
        return self


class Profile(Settings):
    """All of a run."""

    name: str
    """of the profile's file, without ".yaml"."""
    world: str
    """printed on every figure and table."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """of the heads, each once; tables show mean and standard deviation over them."""
    sam: SamConfig
    sources: Annotated[dict[str, SourceConfig], Field(min_length=1)]
    pictured: str | None = None
    """source of the training images whose heads the figures show; the first by default."""
    datasets: Annotated[dict[str, DataConfig], Field(min_length=1)]
    head: HeadConfig = HeadConfig()
    distillation: DistillationConfig = DistillationConfig()
    inference: InferenceConfig = InferenceConfig()
    clip: ClipConfig
    rivals: RivalsConfig | None = None
    """Leopart, TransFGU and ACR in 06_rivals and in Tables 1 and 2; without this key they are not run."""
    grid: Count | None = None
    """side of a coarser grid; of SAM's points only the nearest to its points are used, all by default."""
    sweeps: dict[str, list[Any]] = Field(default_factory=dict)
    """settings that 07_ablation changes one at a time on the validation split, with the values to try beside the
    profile's own."""
    search: SearchConfig | None = None
    """settings that are chosen together on the validation split; nothing is chosen by default."""
    validation_seeds: Count | None = None
    """sweeps and search use the first so many of `seeds`; all by default."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the same seed twice would count as two runs: name each once")
        return seeds

    @field_validator("pictured")
    @classmethod
    def _is_a_source(cls, pictured: str | None, info: ValidationInfo) -> str | None:
        sources = info.data.get("sources", {})  # none if they are wrong themselves
        if pictured and sources and pictured not in sources:
            raise ValueError(f"'{pictured}' is no source of this profile: choose one of {', '.join(sources)}")
        return pictured

    def source_of_figures(self, source: str | None = None) -> str:
        """`source` if one is named, else `pictured`, else the first.

        Raises:
            UserError: the profile has no such source.
        """
        chosen = source or self.pictured or next(iter(self.sources))
        if chosen not in self.sources:
            raise UserError(f"profile '{self.name}' has no source '{chosen}': it has {', '.join(self.sources)}")
        return chosen

    def training_split(self, dataset_name: str) -> str:
        """The split whose scenes may be learned from.

        Raises:
            UserError: the data set has none.
        """
        split = self.datasets[dataset_name].train
        if split is None:
            raise UserError(f"data set '{dataset_name}' has no training split: name one in the profile, as its 'train'")
        return split

    @model_validator(mode="after")
    def _changes_can_be_made(self) -> Self:
        search = [*self.search.heads, *self.search.clip] if self.search else []
        sweeps = [{key: value} for key, values in self.sweeps.items() for value in values]
        for place, changes in (("search", search), ("sweeps", sweeps)):
            for change in changes:
                try:
                    self.changed(change)
                except KeyError as error:
                    wrong = next(key for key in change if error.args[0] in key.split("."))
                    raise ValueError(f"{place}: there is no setting '{wrong}': usam/config.py has all") from error
                except ValidationError as error:
                    raise ValueError(f"{place}: {in_words(error)}") from error
        return self

    def changed(self, change: Mapping[str, Any]) -> Self:
        """The same profile with other values, `{"head.a": 4}` for instance, checked as if read from its file.

        Raises:
            KeyError: there is no such part of a profile.
            ValidationError: there is no such key, or no such value.
        """
        content = self.model_dump(mode="json", exclude=NOT_CHANGED)
        for key, value in change.items():
            *way, last = key.split(".")
            functools.reduce(operator.getitem, way, content)[last] = value
        found = type(self).model_validate_json(json.dumps(content))
        return found.model_copy(update={name: getattr(self, name) for name in NOT_CHANGED})

    def validating(self) -> Self:
        """The same profile with the seeds that sweeps and search use."""
        return self.model_copy(update={"seeds": self.seeds[: self.validation_seeds]})

    def decisive(self) -> dict[str, Any]:
        """All settings that decide a score, as plain values: the `parameters` of a row in runs.csv."""
        no_score = dict.fromkeys(("name", "world", "seeds", "validation_seeds", *NOT_CHANGED), True)
        return self.model_dump(mode="json", exclude={**no_score, "sam": HOW_FAST})


def load(name: str, seed: int | None = None) -> Profile:
    """Read and check the profile `name`; `seed`, if given, comes first, and the number of seeds stays.

    Raises:
        UserError: no such profile, no valid YAML, an unknown key or a value of the wrong type (the key is named).
    """
    content: dict[str, Any] = {}
    for file in files(name):
        content = _over(content, _read(file))
    content.pop("base", None)
    try:
        profile = Profile.model_validate_json(json.dumps(content | {"name": name}, default=str))  # lists may be tuples
    except ValidationError as error:
        raise UserError(f"profiles/{name}.yaml: {in_words(error)}") from error
    if seed is None:
        return profile
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: choose a number from 0 to {2**32 - 1}")
    seeds = (seed, *(s for s in profile.seeds if s != seed))[: len(profile.seeds)]
    return profile.model_copy(update={"seeds": seeds})


def files(name: str) -> list[Path]:
    """The profile's file, after those that it is based on: a file with the key `base` says only what differs.

    Raises:
        UserError: one is not there or no valid YAML, or they go in a circle.
    """
    found: list[Path] = []
    while name:
        file = paths.PROFILES / f"{name}.yaml"
        if not file.is_file():
            known = ", ".join(sorted(p.stem for p in paths.PROFILES.glob("*.yaml")))
            raise UserError(f"no profile '{name}': choose one of {known}, or write {file.name} into profiles/")
        if file in found:
            raise UserError(f"profiles/{file.name}: its keys 'base' lead back to it: take one of them out")
        found.append(file)
        name = _read(file).get("base")
    return found[::-1]


class _EachKeyOnce(yaml.SafeLoader):
    """YAML of which no key is lost: PyYAML itself takes the last of equal ones without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        if twice := [key for k, key in enumerate(keys) if key in keys[:k]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"key '{twice[0]}' stands there twice: join the two", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _EachKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"profiles/{file.name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"profiles/{file.name}: expected 'key: value' lines, found {type(content).__name__}")
    if "name" in content:
        raise UserError(f"profiles/{file.name}: the file's name is the profile's name: take the key 'name' out")
    return content


def _over(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `content` says instead, key by key."""
    both = {k: _over(base[k], v) for k, v in content.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | content | both
