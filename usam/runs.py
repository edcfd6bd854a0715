"""What makes a run repeatable: seeds, where it ran, what it cost, keys of its stages, one row a run in runs.csv."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pandas as pd
import psutil
import torch
from filelock import FileLock, Timeout
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from usam import paths
from usam.errors import UserError

PACKAGES = (
    "torch", "segment-anything", "diffusers", "transformers", "numpy", "pycocotools", "opencv-python-headless",
)  # fmt: skip


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch; returns a CPU generator of its own for orders and initialisations."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def workers(at_once: int, ahead: int | None = None) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """A `map` whose calls run in `at_once` threads, each computing on one core (torch, BLAS and OpenCV have no threads
    of their own meanwhile); the plain `map` for one.

    Results that nobody has taken yet are at most `ahead`, twice the threads by default: memory does not grow with the
    number of items. Small networks gain: what two cores share of one image is too little to keep both busy.
    """
    if at_once == 1:
        yield map
        return
    before = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with threadpool_limits(1, "blas"):
            yield functools.partial(_in_order, pool, ahead or 2 * at_once)
    finally:
        pool.shutdown(cancel_futures=True)  # of a loop that was left early, nothing more is begun
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _in_order(pool: ThreadPoolExecutor, ahead: int, function: Callable, items: Iterable) -> Iterator:
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def over_images(function: Callable[[int], Any], count: int, label: str) -> Iterator[Any]:
    """`function` of 0 to `count` - 1 in this order, on all cores, with a progress bar."""
    with workers(cores()) as each:
        yield from tqdm(each(function, range(count)), label, count, leave=False, unit="image")


def cores() -> int:
    """Cores that torch computes on."""
    return torch.get_num_threads()


def processors() -> int:
    """Cores that this process may use at all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stage_key(parameters: Any, code: tuple[ModuleType, ...] = (), files: tuple[Path, ...] = ()) -> str:
    """16 hex digits that change whenever anything a stage depends on changes.

    Args:
        parameters: JSON-like (pydantic models allowed): all settings and the keys of the stages before.
        code: modules whose source decides the result.
        files: files whose content decides the result (weights).
    """
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=_plain).encode())
    for source in [Path(module.__file__) for module in code] + list(files):
        state = source.stat()
        digest.update(file_sha(source, state.st_mtime_ns, state.st_size).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


@functools.cache
def file_sha(path: Path, _modified: int, _size: int) -> str:
    """SHA-256 of a file, read once as long as time and size stay: SAM ViT-H has 2.5 GB."""
    return sha256(path)


def sha256(path: Path) -> str:
    """Of a file's content, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str:
    """The repository's commit, with "+" behind it when files differ from it; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", paths.ROOT, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "usam", "notebooks", "profiles")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """Processor, cores, memory and GPU, in one line."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = psutil.virtual_memory().total / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {processors()} cores, {memory:.0f} GiB, {gpu}"


def versions() -> str:
    """Python and the packages that decide numbers."""
    return f"python {platform.python_version()}; " + "; ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be had on a GPU, those that torch holds for later included; or in the memory of the machine
    or its container."""
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no limit is "max"
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """A dictionary that holds the block's `seconds` and the process's `peak_gib` when the block ends."""
    cost: dict[str, float] = {}
    start = time.perf_counter()
    yield cost
    cost.update(seconds=time.perf_counter() - start, peak_gib=peak_memory())


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


def provenance() -> dict[str, str]:
    """Where and with what this process runs: commit, hardware, versions, when."""
    return dict(commit=commit(), hardware=hardware(), versions=versions(), when=time.strftime("%Y-%m-%dT%H:%M:%S"))


def record(file: Path, **row: Any) -> None:
    """Write one run into `file` (runs.csv) beside where and with what it ran; replaces the row of the same run.

    Two rows are the same run when all of profile, dataset, source, method, split, seed, parameters and state (see
    `scoring.state`) agree. A `row` that brings its own provenance keeps it.
    """
    same = ["profile", "dataset", "split", "source", "method", "seed", "parameters", "state"]
    row = {**row, "parameters": json.dumps(row.get("parameters", {}), sort_keys=True, default=_plain)}
    row = provenance() | row if "commit" not in row else row
    new = pd.DataFrame([row])
    with alone(file):
        if file.exists():
            old = read_csv(file, dtype=str, keep_default_na=False)  # as it stands: no rounding, no 1 -> 1.0
            key = ["" if row.get(k) is None else str(row[k]) for k in same]
            known = (old.reindex(columns=same, fill_value="") == key).all(axis=1)
            new = pd.concat([old[~known], new], ignore_index=True)
        write_atomically(file, new.to_csv(index=False))


def read_csv(file: Path, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`, with one line for a damaged file.

    Raises:
        UserError: it cannot be read as a table.
    """
    try:
        return pd.read_csv(file, **options)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{file} cannot be read ({error}): restore it, or delete it and run again") from error


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what the operating system says inside into one line.

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
def alone(target: Path) -> Iterator[None]:
    """Nobody else, thread or process, is in here for the same file or folder: another notebook may be at work."""
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
    """Write beside `file`, then move into place: readers see the old content or the new, never half."""
    beside = file.with_name(f".{file.name}.part")
    try:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(beside, file)
    except UserError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
