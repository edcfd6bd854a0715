"""Pretrained models: in a folder on disk, or a repository on the Hugging Face hub."""

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tqdm import TqdmWarning

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
        with text_bars():
            from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
            from huggingface_hub.constants import HF_HUB_CACHE
        try:
            info = HfApi().model_info(model, files_metadata=True)
        except Exception as error:  # which exceptions the client raises differs from version to version
            known = dict(allow_patterns=["*.json", "*.txt", "*.safetensors"], ignore_patterns=["*.fp16.*", "*non_ema*"])
            try:
                snapshot_download(model, cache_dir=cache(), local_files_only=True, **known)
            except Exception:
                raise error from None
            return
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}
        wanted = _read_by_loaders(sizes)
        folder = Path(cache() or HF_HUB_CACHE)
        missing = [name for name in wanted if not isinstance(try_to_load_from_cache(model, name, folder), str)]
        check_disk(folder, sum(sizes[name] for name in missing) / 2**30)
        snapshot_download(model, cache_dir=cache(), allow_patterns=wanted)


def _read_by_loaders(files: Iterable[str]) -> list[str]:
    """Select settings, vocabularies and weights in full precision: safetensors, or pickles in folders without any."""
    plain = [name for name in files if ".fp16." not in name and "non_ema" not in name]
    safe = {str(Path(name).parent) for name in plain if name.endswith(".safetensors")}
    return [
        name
        for name in plain
        if name.endswith((".json", ".txt", ".safetensors"))
        or (name.endswith(".bin") and str(Path(name).parent) not in safe)
    ]


def text_bars() -> AbstractContextManager:
    """Suppress the warning about missing notebook widgets while the hub's libraries are imported: text bars do."""
    return warnings.catch_warnings(action="ignore", category=TqdmWarning)


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
