"""This machine: its cores, its memory, the arithmetic it is good at, and what a run cost on it."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import random
import resource
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from usam import paths

_SEEDING = threading.Lock()
UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # for bfloat16, as torch names them: two of x86, one of Arm
PACKAGES = (
    "torch", "segment-anything", "diffusers", "transformers", "numpy", "pycocotools", "opencv-python-headless",
)  # fmt: skip


def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def supported_precision(precision: str) -> str:
    """What a profile's `precision` means on this machine: "float32", "bfloat16" or "float16"; "auto" is replaced.

    Raises:
        ValueError: "float16" without a GPU: many operations have no such version on a CPU, and none is faster.
    """
    kind = device().type
    if precision == "float16" and kind == "cpu":
        raise ValueError("float16 needs a GPU, and there is none: write auto, float32 or bfloat16")
    return best_precision(kind) if precision == "auto" else precision


@functools.cache
def best_precision(kind: str) -> str:
    """What "auto" means on "cpu" or "cuda": "bfloat16" where the hardware multiplies it, else "float32".

    A CPU without units for bfloat16 computes it two to five times slower than float32, without a warning. Nothing is
    timed here: on a busy machine two notebooks of one run could come to different answers, and mix their numbers.
    docs/performance.md has measurements on both kinds of CPU.
    """
    if kind != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    known = torch.cpu.get_capabilities()
    return "bfloat16" if any(known.get(name) for name in UNITS) else "float32"


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


def side_by_side(function: Callable[..., Any], calls: Iterable[tuple]) -> list:
    """`function` of each of `calls`, tuples of its arguments, in this order.

    Without a GPU each core works on a call of its own: a head's small steps are too little to share.
    """
    with workers(cores() if device().type == "cpu" else 1) as each:
        return list(each(lambda call: function(*call), calls))


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Seed Python, NumPy and torch for a block that no other thread enters meanwhile, as they share these generators;
    gives a CPU generator of its own, for the order of images."""
    with _SEEDING:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def cores() -> int:
    """Cores that torch computes on."""
    return torch.get_num_threads()


def processors() -> int:
    """Cores that this process may use at all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The repository's commit, with "+" behind it when files differ from it; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", paths.ROOT, *words]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "usam", "notebooks", "profiles")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """Processor, cores, memory and GPU, in one line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
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


def peak_memory(who: int = resource.RUSAGE_SELF) -> float:
    """Largest resident memory so far, in GiB: of this process, or of any of its children that have ended."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(who).ru_maxrss * unit / 2**30


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """A dictionary that holds the block's `seconds` and the process's `peak_gib` when the block ends."""
    cost: dict[str, float] = {}
    start = time.perf_counter()
    yield cost
    cost.update(seconds=time.perf_counter() - start, peak_gib=peak_memory())


def provenance() -> dict[str, str]:
    """Where and with what this process runs: commit, hardware, versions, when."""
    return dict(commit=commit(), hardware=hardware(), versions=versions(), when=time.strftime("%Y-%m-%dT%H:%M:%S"))
