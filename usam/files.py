"""Files that are written whole or not at all, by one run at a time, and read with clear errors."""

import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from usam.errors import UserError

PART_DIGITS = 12  # hex digits in the name of a file that is being written: `.0123456789ab.part`


@functools.cache
def file_sha(path: Path, _modified: int, _size: int) -> str:
    """SHA-256 of a file, read once as long as time and size stay: SAM ViT-H has 2.5 GB."""
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_disk(folder: Path, needed: float) -> None:
    """Fail early, in one line, when `folder`'s disk has less than `needed` GiB free."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 2**30
    if free < needed:
        raise UserError(
            f"disk of {folder} has {free:.1f} GiB free, about {needed:.1f} are needed: free some, "
            "or choose a folder on another disk (USAM_DATA for the data folder)"
        )


def read_csv(file: Path, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`, with one line for a damaged file.

    Raises:
        UserError: it cannot be read as a table.
    """
    try:
        return pd.read_csv(file, **options)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{file} cannot be read ({error}): restore it, or delete it and run again") from error


def one_line(text: str) -> str:
    """Text without control characters and repeated blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def no_formula(text: str) -> str:
    """Text of a stranger for a cell of a table: after an apostrophe, if a spreadsheet would compute it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an error of the operating system inside the block into one line.

    Raises:
        UserError: a full disk, a folder that must not be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error  # NumPy's short writes have no strerror
        raise UserError(
            f"cannot write {place}: {reason}; free some disk space or choose another folder, then start again"
        ) from error


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock a file or folder against all other threads and processes, such as another notebook."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire(timeout=1)
        except Timeout:
            print(f"waiting for another run that is writing {target.name}", flush=True)
            held = lock.acquire()
    with held:
        yield


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a temporary file and move it into place: readers see the old content or the new one, never a part.

    Its name is no other writer's. It is on the disk before it is moved, so that not even a loss of power leaves a file
    that is empty or cut off.
    """
    temporary = file.with_name(f".{uuid.uuid4().hex[:PART_DIGITS]}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as part:
                part.write(content.encode() if isinstance(content, str) else content)
                part.flush()
                os.fsync(part.fileno())
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
