"""Mask embeddings on disk: taken once, used by every notebook after (paper 4, "one-pass extraction").

A store is a folder of shards. A shard holds up to SHARD images and appears under its name only when it is whole, so
that a run that was killed goes on where it stopped:

    00000/tokens.npy   (n, d, 4, 256) float16, memory-mapped when read
    00000/iou.npy      (n, d) float32
    00000/masks.json   a list of n: id, image_size, extent, and d RLE strings with their size
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from usam import runs
from usam.errors import UserError
from usam.runs import alone, writing
from usam.sam import MaskEmbeddings, point_grid

SHARD = 64


class EmbeddingStore(Sequence[MaskEmbeddings]):
    """Read access to a finished store in `folder`; `store[i]` are the embeddings of image `store.ids[i]`."""

    def __init__(self, folder: Path):
        shards = sorted(p for p in folder.glob("[0-9]" * 5) if p.is_dir())
        if not shards:
            raise UserError(f"no embeddings in {folder}: run notebook 02_embeddings first")
        self.folder = folder
        self._points: slice | np.ndarray = slice(None)
        self._tokens = [np.load(s / "tokens.npy", mmap_mode="r") for s in shards]
        self._iou = np.concatenate([np.load(s / "iou.npy") for s in shards])
        self._entries = [entry for s in shards for entry in json.loads((s / "masks.json").read_text())]
        self._starts = np.cumsum([0] + [len(t) for t in self._tokens])
        self.ids: list[str | int] = [entry["id"] for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> MaskEmbeddings:
        index = range(len(self))[index]  # from the end, too
        entry = self._entries[index]
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        masks = [{"size": entry["size"], "counts": c.encode()} for c in np.array(entry["counts"])[self._points]]
        tokens = np.asarray(self._tokens[shard][index - self._starts[shard]][self._points])
        size, side = tuple(entry["image_size"]), math.isqrt(len(entry["counts"]))
        points = point_grid(size, side)[self._points]
        return MaskEmbeddings(tokens, masks, self._iou[index][self._points], size, tuple(entry["extent"]), points)

    @property
    def tokens(self) -> np.ndarray:
        """All flattened tokens, (N, d, 1024) float16, read into memory."""
        return np.concatenate([t.reshape(len(t), t.shape[1], -1)[:, self._points] for t in self._tokens])

    def at(self, points: np.ndarray) -> "EmbeddingStore":
        """The same store with these grid points (n,) alone."""
        fewer = copy.copy(self)
        fewer._points = points
        return fewer


def build(
    folder: Path,
    ids: Sequence[str | int],
    load_image: Callable[[str | int], np.ndarray],
    extract: Callable[[np.ndarray], MaskEmbeddings],
    label: str = "embeddings",
    at_once: int = 1,
) -> EmbeddingStore:
    """Take the embeddings that `folder` does not hold yet, shard by shard, and open the store.

    Args:
        folder: of this set of images and these settings alone (name it by `runs.stage_key`).
        ids: of the images, in order.
        load_image: id -> (H, W, 3) uint8 RGB.
        extract: an `Extractor`.
        label: text before the progress bar.
        at_once: images in work at the same time, each in a thread of its own, which computes on one core.

    Raises:
        UserError: an image that cannot be read, a full disk. Shards that are finished stay.
    """
    parts = [list(ids[k : k + SHARD]) for k in range(0, len(ids), SHARD)]
    with alone(folder):
        todo = [(k, part) for k, part in enumerate(parts) if not _is_whole(folder / f"{k:05d}", part)]
        done = len(ids) - sum(len(part) for _, part in todo)
        with (
            tqdm(total=len(ids), initial=done, desc=label, unit="image", disable=not todo) as bar,
            runs.workers(at_once) as each,
        ):
            for k, part in todo:
                entries = _progress(each(lambda i: extract(load_image(i)), part), bar)
                _write(folder / f"{k:05d}", part, entries)
    return EmbeddingStore(folder)


def _progress(items: Iterable[MaskEmbeddings], bar: tqdm) -> list[MaskEmbeddings]:
    taken = []
    for item in items:
        taken.append(item)
        bar.update()
    return taken


def _is_whole(shard: Path, ids: list[str | int]) -> bool:
    """True if the shard holds exactly these images; a damaged one is removed, to be made again."""
    if not shard.is_dir():
        return False
    try:
        entries = json.loads((shard / "masks.json").read_text())
        whole = [e["id"] for e in entries] == ids
        whole &= len(np.load(shard / "tokens.npy", mmap_mode="r")) == len(np.load(shard / "iou.npy")) == len(ids)
    except (OSError, ValueError, KeyError, EOFError):
        whole = False
    if not whole:
        shutil.rmtree(shard)
    return whole


def _write(shard: Path, ids: list[str | int], embeddings: list[MaskEmbeddings]) -> None:
    beside = shard.with_suffix(".part")
    shutil.rmtree(beside, ignore_errors=True)
    entries = [
        {
            "id": i,
            "image_size": e.image_size,
            "extent": e.extent,
            "size": [int(n) for n in e.masks[0]["size"]],
            "counts": [m["counts"].decode() for m in e.masks],
        }
        for i, e in zip(ids, embeddings, strict=True)
    ]
    try:
        with writing(shard):
            beside.mkdir(parents=True)
            np.save(beside / "tokens.npy", np.stack([e.tokens for e in embeddings]))
            np.save(beside / "iou.npy", np.stack([e.iou for e in embeddings]))
            (beside / "masks.json").write_text(json.dumps(entries))
            beside.rename(shard)
    except UserError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
