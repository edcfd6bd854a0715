"""The store of embeddings: what goes in comes out, and what was finished before a crash is never taken again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from usam import paths
from usam.errors import UserError
from usam.method.masks import MaskEmbeddings, masks_to_rle, point_grid, rle_to_masks
from usam.pipeline.embedding_store import SHARD, EmbeddingStore, build

COUNT = 130  # two full shards of 64 and one of 2


def embedding(k: int) -> MaskEmbeddings:
    """What the make-believe SAM says about image k: a grid of 2 x 2 masks, everything depends on k."""
    rng = np.random.default_rng(k)
    tokens, masks = rng.normal(0, 1, (4, 4, 256)).astype(np.float16), rng.random((4, 6, 8)) < 0.4
    size, iou = (12 + k, 16), rng.random(4).astype(np.float32)
    return MaskEmbeddings(tokens, masks_to_rle(masks), iou, size, (6.0, 8 - k / 256), point_grid(size, 2))


class Counting:
    """An extractor that keeps count and can fail at one image; images are arrays that hold their number."""

    def __init__(self, fails_at: int | None = None):
        self.seen: list[int] = []
        self.fails_at = fails_at

    def __call__(self, image: np.ndarray) -> MaskEmbeddings:
        k = int(image[0, 0, 0])
        if k == self.fails_at:
            raise KeyboardInterrupt
        self.seen.append(k)
        return embedding(k)

    def stream(self, ids: Iterable[str]) -> Iterator[MaskEmbeddings]:
        return (self(load(name)) for name in ids)


def load(name: str | int) -> np.ndarray:
    return np.full((2, 2, 3), int(str(name).removeprefix("image ")), np.uint8)


IDS = [f"image {k}" for k in range(COUNT)]


def assert_holds(found: EmbeddingStore, numbers: list[int]) -> None:
    assert len(found) == len(numbers)
    for got, k in zip(found, numbers, strict=True):
        wanted = embedding(k)
        np.testing.assert_array_equal(got.tokens, wanted.tokens)
        np.testing.assert_array_equal(got.iou, wanted.iou)
        np.testing.assert_array_equal(got.points, wanted.points)
        np.testing.assert_array_equal(rle_to_masks(got.masks), rle_to_masks(wanted.masks))
        assert got.masks == wanted.masks
        assert (got.image_size, got.extent) == (wanted.image_size, wanted.extent)


def test_build_then_open_again(tmp_path):
    extract = Counting()
    built = build(tmp_path / "s", IDS, extract.stream)
    assert extract.seen == list(range(COUNT)) and SHARD == 64
    for found in (built, EmbeddingStore(tmp_path / "s")):
        assert_holds(found, list(range(COUNT)))
        some = np.array([70, 3, 129, 70, 64])  # of all shards, in any order
        tokens = found.tokens(some)
        assert tokens.dtype == np.float16
        np.testing.assert_array_equal(tokens, [embedding(k).tokens.reshape(4, 1024) for k in some])
        np.testing.assert_array_equal(found[-1].tokens, embedding(COUNT - 1).tokens)
        with pytest.raises(IndexError):
            found[COUNT]
    again = Counting()
    build(tmp_path / "s", IDS, again.stream)
    assert again.seen == []


def test_ids_may_be_numbers(tmp_path):
    found = build(tmp_path / "s", [7, 3], Counting().stream)
    assert_holds(found, [7, 3])
    again = Counting()
    build(tmp_path / "s", [7, 3], again.stream)
    assert again.seen == []


def test_tokens_stay_on_disk(tmp_path):
    found = build(tmp_path / "s", IDS, Counting().stream)
    held = {name: value for name, value in vars(found).items() if isinstance(value, np.ndarray)}
    assert sum(value.nbytes for value in held.values()) < 100
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    all_tokens = [found[k].tokens for k in range(COUNT)]
    assert all(not isinstance(tokens, np.memmap) for tokens in all_tokens)  # else each would keep its file open
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_fewer_points(tmp_path):
    found = build(tmp_path / "s", IDS, Counting().stream).at(np.array([3, 1]))
    assert len(found) == COUNT
    np.testing.assert_array_equal(found.tokens(np.array([70]))[0], embedding(70).tokens[[3, 1]].reshape(2, 1024))
    some, whole = found[70], embedding(70)
    assert some.masks == [whole.masks[3], whole.masks[1]]
    for name in ("tokens", "iou", "points"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[[3, 1]])


def test_tokens_without_masks(tmp_path):
    def bare(ids: Iterable[str]) -> Iterator[MaskEmbeddings]:
        return (replace(one, masks=[]) for one in Counting().stream(ids))

    found = build(tmp_path / "s", IDS, bare)
    assert found[70].masks == [] and not list((tmp_path / "s").rglob("masks.npy"))
    np.testing.assert_array_equal(found[70].tokens, embedding(70).tokens)
    again = Counting()
    build(tmp_path / "s", IDS, again.stream)
    assert again.seen == []


def test_goes_on_after_a_crash(tmp_path):
    folder, broken = tmp_path / "s", Counting(fails_at=70)
    with pytest.raises(KeyboardInterrupt):
        build(folder, IDS, broken.stream)
    assert [p.name for p in folder.iterdir()] == ["00000"]
    extract = Counting()
    assert_holds(build(folder, IDS, extract.stream), list(range(COUNT)))
    assert extract.seen == list(range(64, COUNT))


def test_goes_on_after_kill_9(tmp_path):
    folder = tmp_path / "a store"
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_embedding_store as t\n"
        "def slow(image):\n"
        "    time.sleep(3600 if image[0, 0, 0] == 70 else 0)\n"
        "    return t.embedding(int(image[0, 0, 0]))\n"
        "t.build(Path(sys.argv[1]), t.IDS, lambda ids: (slow(t.load(i)) for i in ids))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (folder / "00000").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    assert not (folder / "00001").exists()
    extract = Counting()
    assert_holds(build(folder, IDS, extract.stream), list(range(COUNT)))
    assert extract.seen == list(range(64, COUNT))


def test_half_written_shard_does_not_count(tmp_path):
    folder = tmp_path / "s"
    left_over = folder / "00001.part"
    left_over.mkdir(parents=True)
    (left_over / "tokens.npy").write_bytes(b"half")
    extract = Counting()
    assert_holds(build(folder, IDS, extract.stream), list(range(COUNT)))
    assert len(extract.seen) == COUNT and not left_over.exists()


@pytest.mark.parametrize("name", ["tokens.npy", "iou.npy", "images.json", "masks.npy", "ends.npy"])
@pytest.mark.parametrize("keep", [0, 40, 0.9, None])
def test_damaged_shard_is_made_again(tmp_path, name, keep):
    folder = tmp_path / "s"
    build(folder, IDS, Counting().stream)
    file = folder / "00001" / name
    content = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    extract = Counting()
    assert_holds(build(folder, IDS, extract.stream), list(range(COUNT)))
    assert extract.seen == list(range(64, 128))


def test_shard_of_other_images_is_made_again(tmp_path):
    folder = tmp_path / "s"
    build(folder, IDS, Counting().stream)
    others = [*IDS[:100], "image 200", *IDS[101:]]
    extract = Counting()
    found = build(folder, others, extract.stream)
    assert extract.seen == [*range(64, 100), 200, *range(101, 128)]
    assert_holds(found, [*range(100), 200, *range(101, COUNT)])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("1024 requested and 512 written")])
def test_full_disk_keeps_what_is_finished(tmp_path, monkeypatch, error):
    folder, save, calls = tmp_path / "s", np.save, []

    def limited(file: Path, array: np.ndarray) -> None:
        calls.append(file)
        if len(calls) > 5:  # four arrays a shard: the second shard's second one does not fit
            raise error
        save(file, array)

    monkeypatch.setattr(np, "save", limited)
    reason = error.strerror or str(error)
    with pytest.raises(UserError, match=f"cannot write .*00001: {reason}; free some disk space"):
        build(folder, IDS, Counting().stream)
    monkeypatch.undo()
    assert [p.name for p in folder.iterdir()] == ["00000"]
    extract = Counting()
    assert_holds(build(folder, IDS, extract.stream), list(range(COUNT)))
    assert extract.seen == list(range(64, COUNT))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="run notebook 02_embeddings first"):
        EmbeddingStore(tmp_path)


def test_image_that_cannot_be_read_keeps_what_is_finished(tmp_path):
    def careful(name: str) -> np.ndarray:
        if name == "image 129":
            raise UserError("image 129 cannot be read")
        return load(name)

    with pytest.raises(UserError, match="image 129"):
        build(tmp_path / "s", IDS, lambda ids: (Counting()(careful(name)) for name in ids))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["00000", "00001"]
    assert len(json.loads((tmp_path / "s" / "00001" / "images.json").read_text())) == 64
