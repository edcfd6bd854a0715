"""Models that others made: a folder on disk, or a repository on the Hugging Face hub."""

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tqdm import TqdmWarning

from usam import paths
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
    except Exception as error:  # whatever a loader or a download trips over: there is no list of it
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{what} cannot be loaded from '{model}' ({reason}): mend `model` in the profile, "
            "or connect to the internet if it must be downloaded"
        ) from error
