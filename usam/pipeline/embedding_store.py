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
    """Read access to a finished store in `folder`; `store[i]` are the embeddings of image `store.ids[i]`."""

    def __init__(self, folder: Path):
        self._shards = sorted(p for p in folder.glob("[0-9]" * 5) if p.is_dir())
        if not self._shards:
            raise UserError(f"no embeddings in {folder}: run notebook 02_embeddings first")
        self.folder = folder
        self._points: np.ndarray | None = None  # None: all
        images = [json.loads((shard / "images.json").read_text()) for shard in self._shards]
        self._images = list(chain.from_iterable(images))
        self._starts = np.cumsum([0] + [len(some) for some in images])
        self._side = math.isqrt(self._file(0, "iou").shape[1])
        self.ids: list[str | int] = [image["id"] for image in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskEmbeddings:
        index = range(len(self))[index]  # from the end, too
        image, (shard, row) = self._images[index], self._place(index)
        tokens, iou = (np.array(self._file(shard, name)[row]) for name in ("tokens", "iou"))
        masks = self._masks(shard, row, image["size"]) if "size" in image else []
        size = tuple(image["image_size"])
        whole = MaskEmbeddings(tokens, masks, iou, size, tuple(image["extent"]), point_grid(size, self._side))
        return whole if self._points is None else whole.at(self._points)

    def _file(self, shard: int, name: str) -> np.ndarray:
        """Memory-mapped for as long as it is held: not longer, since open files and mapped pages count."""
        return np.load(self._shards[shard] / f"{name}.npy", mmap_mode="r")

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _masks(self, shard: int, row: int, size: list[int]) -> list[dict]:
        ends = self._file(shard, "ends")
        before = int(ends[row - 1, -1]) if row else 0
        text = self._file(shard, "masks")[before : int(ends[row, -1])].tobytes()
        cuts = [0, *(ends[row] - before).tolist()]
        return [{"size": size, "counts": text[a:b]} for a, b in pairwise(cuts)]

    def at(self, points: np.ndarray) -> "EmbeddingStore":
        """The same store with these grid points (n,) alone."""
        fewer = copy.copy(self)
        fewer._points = points
        return fewer

    def tokens(self, indices: np.ndarray) -> np.ndarray:
        """Flattened tokens (n, d, 1024) float16 of some images; each shard is opened once."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        found = np.empty((len(indices), *self.shape[1:]), np.float16)
        for shard in np.unique(shards):
            at = np.flatnonzero(shards == shard)
            some = self._file(shard, "tokens")[indices[at] - self._starts[shard]]
            found[at] = (some if self._points is None else some[:, self._points]).reshape(len(at), *self.shape[1:])
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, d, 1024) of all flattened tokens."""
        _, d, *width = self._file(0, "tokens").shape
        return len(self), d if self._points is None else len(self._points), math.prod(width)


def build(
    folder: Path,
    ids: Sequence[str | int],
    stream: Callable[[Iterable[Any]], Iterator[MaskEmbeddings]],
    label: str = "embeddings",
) -> EmbeddingStore:
    """Take the embeddings that `folder` does not hold yet, shard by shard, and open the store.

    Args:
        folder: of this set of images and these settings alone (name it by `runs.stage_key`).
        ids: of the images, in order.
        stream: ids -> their embeddings in this order, such as `sam.Extractor.stream`; not called if all are there.
        label: text before the progress bar.

    Raises:
        UserError: an image that cannot be read, a full disk. Shards that are finished stay.
    """
    parts = [list(ids[k : k + SHARD]) for k in range(0, len(ids), SHARD)]
    with locked(folder):
        todo = [(k, part) for k, part in enumerate(parts) if not _is_whole(folder / f"{k:05d}", part)]
        missing = [one for _, part in todo for one in part]
        bar = tqdm(total=len(ids), initial=len(ids) - len(missing), desc=label, unit="image", disable=not todo)
        with bar, closing(_counted(stream(missing) if missing else (), bar)) as found:
            for k, part in todo:
                _write(folder / f"{k:05d}", part, list(islice(found, len(part))))
    return EmbeddingStore(folder)


def save(file: Path, embeddings: MaskEmbeddings) -> None:
    """Write the embeddings of one image, with masks, as NumPy's .npz: whole or not at all."""
    text = np.frombuffer(b"".join(mask["counts"] for mask in embeddings.masks), np.uint8)
    ends = np.cumsum([len(mask["counts"]) for mask in embeddings.masks], dtype=np.int64)
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
    (height, width, *extent, rows, columns), counts = sizes.tolist(), text.tobytes()
    masks = [{"size": [int(rows), int(columns)], "counts": counts[a:b]} for a, b in pairwise([0, *ends.tolist()])]
    size = (int(height), int(width))
    return MaskEmbeddings(tokens, masks, iou, size, tuple(extent), point_grid(size, math.isqrt(len(iou))))


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
    try:
        with writing(shard):
            temporary.mkdir(parents=True)
            np.save(temporary / "tokens.npy", np.stack([e.tokens for e in embeddings]))
            np.save(temporary / "iou.npy", np.stack([e.iou for e in embeddings]))
            if masks:
                np.save(temporary / "masks.npy", np.frombuffer(b"".join(m["counts"] for m in masks), np.uint8))
                ends = np.cumsum([len(m["counts"]) for m in masks], dtype=np.int64)
                np.save(temporary / "ends.npy", ends.reshape(len(embeddings), -1))
            (temporary / "images.json").write_text(json.dumps(images))
            temporary.rename(shard)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
