"""Which random numbers belong to which split, so that no two splits ever share a drawing."""

import zlib

import numpy as np

SPLITS = ("sam", "train", "val", "test")


def rng_of(split: str, *key: int | str) -> np.random.Generator:
    """The generator of one picture (or batch) of `split`: the same for the same key, on every machine."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.default_rng([SPLITS.index(split), len(words), *words])  # NumPy pads keys with zeros
