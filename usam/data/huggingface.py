"""Pretrained models: in a folder on disk, or a repository on the Hugging Face hub."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from usam import paths
from usam.errors import UserError
from usam.files import check_disk


def find_model(model: str) -> str:
    """Return the folder that a profile names, or, unchanged, the name of a repository on the Hugging Face hub.

    Raises:
        UserError: `model` is neither.
    """
    folder = paths.resolve(model)
    if folder.is_dir():
        return str(folder)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and not folder.parent.is_dir():
        return model
    raise UserError(f"no model folder {folder}: correct `model` in the profile (a folder, or owner/name on the hub)")


def model_files(model: str) -> tuple[Path, ...]:
    """List the files that decide what a model in a folder makes; for a model on the hub, its name has to suffice."""
    folder = Path(find_model(model))
    return tuple(sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors", ".txt", ".bin")))


def cache() -> str | None:
    """Return where the hub's libraries store downloads: in the data folder, unless the environment names a place."""
    return None if {"HF_HOME", "HF_HUB_CACHE"} & os.environ.keys() else str(paths.data() / "hub")


def fetch(model: str) -> None:
    """Download what the loaders read of a model on the hub, with weights as safetensors if there are any.

    A download that was stopped continues. A model in a folder, or one downloaded before, needs no network.

    Raises:
        UserError: no such model, too little disk space, or no network.
    """
    with loading("the model", model) as source:
        if Path(source).is_dir():
            return
        from huggingface_hub import constants, snapshot_download

        folder = cache() or constants.HF_HUB_CACHE
        download = partial(snapshot_download, model, cache_dir=folder)
        try:
            files = download(dry_run=True)
        except Exception:  # no network, in other types from version to version: is what was downloaded complete?
            download(allow_patterns=["*.json", "*.txt", "*.safetensors"], ignore_patterns=["*.fp16.*", "*non_ema*"])
            return
        wanted = _read_by_loaders(file.filename for file in files)
        missing = [file for file in files if file.will_download and file.filename in wanted]
        check_disk(Path(folder), sum(file.file_size for file in missing) / 2**30)
        download(allow_patterns=wanted)


def _read_by_loaders(files: Iterable[str]) -> list[str]:
    """Select settings, vocabularies and weights in full precision: safetensors, or pickles in folders without any."""
    known = (".json", ".txt", ".safetensors", ".bin")
    plain = [Path(file) for file in files if file.endswith(known) and ".fp16." not in file and "non_ema" not in file]
    safe = {file.parent for file in plain if file.suffix == ".safetensors"}
    return [file.as_posix() for file in plain if file.suffix != ".bin" or file.parent not in safe]


@contextmanager
def loading(what: str, model: str) -> Iterator[str]:
    """Yield the folder or name to load `model` from; whatever fails in the block becomes one line.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    source = find_model(model)
    try:
        yield source
    except UserError:
        raise
    except Exception as error:  # loaders and downloads raise many types, which nobody lists
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{what} cannot be loaded from '{model}' ({reason}): correct `model` in the profile, "
            "or connect to the internet if it must be downloaded"
        ) from error
