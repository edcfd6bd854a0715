"""Mask embeddings on disk: taken once, used by every notebook after (paper 4, "one-pass extraction").

A store is a folder of shards. A shard holds up to SHARD images and appears under its name only when it is whole, so
that a run that was killed goes on where it stopped:

    00000/tokens.npy    (n, d, 4, 256) float16
    00000/iou.npy       (n, d) float32
    00000/images.json   a list of n: id, image_size, extent; where masks were drawn, their size, and two more files
    00000/masks.npy     the text of all RLEs, one after the other, uint8
    00000/ends.npy      (n, d) int64, where each ends

Images are read from the disk when they are needed: memory does not grow with the store.

Embeddings of a single image, which belongs to no set, are a file (`save`, `load`).
"""

import copy
import io
import json
import math
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from usam.errors import UserError
from usam.files import locked, write_atomically, writing
from usam.method.masks import MaskEmbeddings, point_grid

SHARD = 64


class EmbeddingStore(Sequence[MaskEmbeddings]):
    """Read access to a finished store in `folder`; `store[i]` are the embeddings of the image that was its i-th."""

    def __init__(self, folder: Path):
        shards = sorted(folder.glob("[0-9]" * 5))
        if not shards:
            raise UserError(f"no embeddings in {folder}: run notebook 02_embeddings first")
        self.folder = folder
        self._images = [image for shard in shards for image in json.loads((shard / "images.json").read_text())]
        self._points = np.arange(self._file(0, "iou").shape[1])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskEmbeddings:
        index = range(len(self))[index]  # from the end, too
        image, (shard, row) = self._images[index], divmod(index, SHARD)
        tokens, iou = (self._file(shard, name)[row] for name in ("tokens", "iou"))
        masks = self._masks(shard, row, image["size"]) if "size" in image else []
        size = tuple(image["image_size"])
        whole = MaskEmbeddings(tokens, masks, iou, size, tuple(image["extent"]), point_grid(size, math.isqrt(len(iou))))
        return whole.at(self._points)  # a copy: the files are closed again

    def _file(self, shard: int, name: str) -> np.ndarray:
        """Memory-mapped for as long as it is held: not longer, since open files and mapped pages count."""
        return np.load(self.folder / f"{shard:05d}" / f"{name}.npy", mmap_mode="r")

    def _masks(self, shard: int, row: int, size: list[int]) -> list[dict]:
        ends = self._file(shard, "ends")
        before = int(ends[row - 1, -1]) if row else 0
        return _cut(self._file(shard, "masks")[before : int(ends[row, -1])], ends[row] - before, size)

    def at(self, points: np.ndarray) -> "EmbeddingStore":
        """The same store with these grid points (n,) alone."""
        fewer = copy.copy(self)
        fewer._points = self._points[points]
        return fewer

    def tokens(self, indices: np.ndarray) -> np.ndarray:
        """Flattened tokens (n, d, 1024) float16 of some images; each shard is opened once."""
        shards, rows = np.divmod(indices, SHARD)
        found = np.empty((len(indices), len(self._points), *self._file(0, "tokens").shape[2:]), np.float16)
        for shard in np.unique(shards):
            at = shards == shard
            found[at] = self._file(shard, "tokens")[rows[at]][:, self._points]
        return found.reshape(*found.shape[:2], -1)


def build(
    folder: Path,
    ids: Sequence[str | int],
    stream: Callable[[Iterable[Any]], Iterator[MaskEmbeddings]],
    label: str = "embeddings",
) -> EmbeddingStore:
    """Take the embeddings that `folder` does not hold yet, shard by shard, and open the store.

    Args:
        folder: of this set of images and these settings alone.
        ids: of the images, in order.
        stream: ids -> their embeddings in this order, such as `sam.Extractor.stream`; not called if all are there.
        label: text before the progress bar.

    Raises:
        UserError: an image that cannot be read, a full disk. Shards that are finished stay.
    """
    parts = {folder / f"{k // SHARD:05d}": list(ids[k : k + SHARD]) for k in range(0, len(ids), SHARD)}
    with locked(folder):
        todo = {shard: part for shard, part in parts.items() if not _is_whole(shard, part)}
        missing = list(chain(*todo.values()))
        bar = tqdm(total=len(ids), initial=len(ids) - len(missing), desc=label, unit="image", disable=not todo)
        with bar, closing(_counted(stream(missing) if missing else (), bar)) as found:
            for shard, part in todo.items():
                _write(shard, part, list(islice(found, len(part))))
    return EmbeddingStore(folder)


def save(file: Path, embeddings: MaskEmbeddings) -> None:
    """Write the embeddings of one image, with masks, as NumPy's .npz: whole or not at all."""
    text, ends = _joined(embeddings.masks)
    sizes = np.array([*embeddings.image_size, *embeddings.extent, *embeddings.masks[0]["size"]], float)
    content = io.BytesIO()
    np.savez(content, tokens=embeddings.tokens, iou=embeddings.iou, sizes=sizes, text=text, ends=ends)
    write_atomically(file, content.getvalue())


def load(file: Path) -> MaskEmbeddings:
    """What `save` wrote.

    Raises:
        UserError: it is not there any more, or damaged.
    """
    try:
        with open(file, "rb") as content, np.load(content) as found:
            tokens, iou, sizes, text, ends = (found[name] for name in ("tokens", "iou", "sizes", "text", "ends"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}): delete it and start again") from error
    height, width, rows, columns = sizes[[0, 1, 4, 5]].astype(int).tolist()
    size, masks = (height, width), _cut(text, ends, [rows, columns])
    return MaskEmbeddings(tokens, masks, iou, size, tuple(sizes[2:4].tolist()), point_grid(size, math.isqrt(len(iou))))


def _joined(masks: Iterable[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The text of all RLEs, one after the other, uint8, and where each ends, (n,) int64."""
    counts = [mask["counts"] for mask in masks]
    return np.frombuffer(b"".join(counts), np.uint8), np.cumsum([len(one) for one in counts], dtype=np.int64)


def _cut(text: np.ndarray, ends: np.ndarray, size: list[int]) -> list[dict]:
    """The RLEs of masks of one size that `_joined` has joined."""
    counts = text.tobytes()
    return [{"size": size, "counts": counts[a:b]} for a, b in pairwise([0, *ends.tolist()])]


def _counted(items: Iterable[MaskEmbeddings], bar: tqdm) -> Generator[MaskEmbeddings, None, None]:
    for item in items:
        bar.update()
        yield item


def _is_whole(shard: Path, ids: list[str | int]) -> bool:
    """True if the shard holds exactly these images; a damaged one is removed, to be made again."""
    if not shard.is_dir():
        return False
    try:
        images = json.loads((shard / "images.json").read_text())
        whole = [image["id"] for image in images] == ids
        tokens, iou = (np.load(shard / f"{name}.npy", mmap_mode="r") for name in ("tokens", "iou"))
        whole &= len(tokens) == len(iou) == len(ids)
        if "size" in images[0]:
            masks, ends = (np.load(shard / f"{name}.npy", mmap_mode="r") for name in ("masks", "ends"))
            whole &= ends.shape == iou.shape and int(ends[-1, -1]) == len(masks)
    except (OSError, ValueError, LookupError, TypeError, EOFError):
        whole = False
    if not whole:
        shutil.rmtree(shard)
    return whole


def _write(shard: Path, ids: list[str | int], embeddings: list[MaskEmbeddings]) -> None:
    temporary = shard.with_suffix(".part")
    shutil.rmtree(temporary, ignore_errors=True)
    masks = [mask for one in embeddings for mask in one.masks]
    images = [
        {"id": i, "image_size": e.image_size, "extent": e.extent} | ({"size": e.masks[0]["size"]} if masks else {})
        for i, e in zip(ids, embeddings, strict=True)
    ]
    arrays = {name: np.stack([getattr(one, name) for one in embeddings]) for name in ("tokens", "iou")}
    if masks:
        text, ends = _joined(masks)
        arrays |= {"masks": text, "ends": ends.reshape(len(embeddings), -1)}
    try:
        with writing(shard):
            temporary.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "images.json").write_text(json.dumps(images))
            temporary.rename(shard)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
