"""Profiles: the files `profiles/*.yaml`, read and checked (`usam.config` explains every key)."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from usam import paths
from usam.config import Profile, in_words
from usam.errors import UserError


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
            raise UserError(f"profiles/{file.name}: it is its own base: take the key 'base' out of one of the files")
        found.append(file)
        name = _read(file).get("base")
    return found[::-1]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
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
