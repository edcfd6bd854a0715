"""Models that others made: a folder on disk, or a repository on the Hugging Face hub."""

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tqdm import TqdmWarning

from usam import paths
from usam.files import check_disk
from usam.errors import UserError


def find_model(model: str) -> str:
    """The folder that a profile names, or the name of a repository on the Hugging Face hub as it stands.

    Raises:
        UserError: it is neither.
    """
    folder = paths.resolve(model)
    if folder.is_dir():
        return str(folder)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and not folder.parent.is_dir():
        return model
    raise UserError(f"no model folder {folder}: mend `model` in the profile (a folder, or owner/name on the hub)")


def model_files(model: str) -> tuple[Path, ...]:
    """Files of a model's folder that decide what it makes; none of a model on the hub, whose name must do."""
    folder = Path(find_model(model))
    return tuple(sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors", ".txt", ".bin")))


def cache() -> str | None:
    """Where the hub's libraries keep what they download: in the data folder, unless the user chose a place for them."""
    return None if {"HF_HOME", "HF_HUB_CACHE"} & os.environ.keys() else str(paths.data() / "hub")


def fetch(model: str) -> None:
    """Download what the loaders read of a model on the hub, weights as safetensors if there are any; a folder stays.

    A download that was stopped goes on. Without a network what is there must do.

    Raises:
        UserError: no such model, no room on the disk, or no network and nothing is there.
    """
    with loading("the model", model) as place:
        if Path(place).is_dir():
            return
        with text_bars():
            from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
            from huggingface_hub.constants import HF_HUB_CACHE
        try:
            files = {f.rfilename: f.size or 0 for f in HfApi().model_info(model, files_metadata=True).siblings}
        except Exception as error:  # its client's kinds of errors differ from version to version
            known = dict(allow_patterns=["*.json", "*.txt", "*.safetensors"], ignore_patterns=["*.fp16.*", "*non_ema*"])
            try:
                snapshot_download(model, cache_dir=cache(), local_files_only=True, **known)
            except Exception:
                raise error from None
            return
        wanted = _read_by_loaders(files)
        place = Path(cache() or HF_HUB_CACHE)
        missing = [name for name in wanted if not isinstance(try_to_load_from_cache(model, name, place), str)]
        check_disk(place, sum(files[name] for name in missing) / 2**30)
        snapshot_download(model, cache_dir=cache(), allow_patterns=wanted)


def _read_by_loaders(files: Iterable[str]) -> list[str]:
    """Settings, vocabularies, and weights in full precision: of each folder safetensors, else what torch pickled."""
    plain = [name for name in files if ".fp16." not in name and "non_ema" not in name]
    safe = {str(Path(name).parent) for name in plain if name.endswith(".safetensors")}
    return [
        name
        for name in plain
        if name.endswith((".json", ".txt", ".safetensors"))
        or (name.endswith(".bin") and str(Path(name).parent) not in safe)
    ]


def text_bars() -> AbstractContextManager:
    """While open, importing the hub's libraries is silent about missing notebook widgets: text bars are wanted."""
    return warnings.catch_warnings(action="ignore", category=TqdmWarning)


@contextmanager
def loading(what: str, model: str) -> Iterator[str]:
    """Yields where `model` is to be loaded from; whatever goes wrong inside becomes one line.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    place = find_model(model)
    try:
        yield place
    except UserError:
        raise
    except Exception as error:  # whatever a loader or a download trips over: there is no list of it
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{what} cannot be loaded from '{model}' ({reason}): mend `model` in the profile, "
            "or connect to the internet if it must be downloaded"
        ) from error
