"""Keys of stages, rows of runs.csv, files that are never half there."""

import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import torch

from usam import machine, paths
from usam.config import HeadConfig
from usam.errors import UserError
from usam.files import check_disk, write_atomically
from usam.machine import seeded
from usam.pipeline import cache
from usam.pipeline.records import record

RUN = dict(profile="mini", dataset="voc", split="test", source="web", method="U-SAM", seed=0, parameters={"a": 10})


def rewrite(file: Path, content: str) -> None:
    """Other content and a later time, however fast the disk."""
    before = file.stat().st_mtime_ns
    file.write_text(content)
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_key_is_16_hex_digits_and_the_same_for_the_same_parameters():
    key = cache.key({"b": [1, 2], "a": HeadConfig()})
    assert re.fullmatch("[0-9a-f]{16}", key)
    assert key == cache.key({"a": HeadConfig(), "b": (1, 2)})


def test_key_changes_with_every_parameter():
    values = [
        HeadConfig(),
        HeadConfig(a=9),
        HeadConfig(epochs=7),
        {"a": 1},
        {"a": 2},
        {"a": "1"},
        [1, 2],
        [2, 1],
        None,
        [],
    ]
    assert len({cache.key(v) for v in values}) == len(values)


def test_key_changes_with_the_content_of_files_alone(tmp_path):
    one, other = tmp_path / "one.bin", tmp_path / "other.bin"
    one.write_text("weights")
    other.write_text("weights")
    key = cache.key(1, files=(one,))
    assert key == cache.key(1, files=(other,)) != cache.key(1)
    rewrite(one, "weights")  # touched, not changed
    assert cache.key(1, files=(one,)) == key
    rewrite(one, "Weights")
    assert cache.key(1, files=(one,)) != key
    assert cache.key(1, files=(one, other)) != cache.key(1, files=(other, one))


def test_key_changes_with_what_code_does_and_not_with_what_it_says(tmp_path):
    file = tmp_path / "stage.py"
    file.write_text('"""A stage."""\n\n\ndef double(x):\n    """Twice x."""\n    return 2 * x  # twice\n')
    key = cache.key(1, [tmp_path])
    assert key == cache.key(1, [tmp_path]) != cache.key(1)
    rewrite(file, "def double(x):\n    # two times\n    return 2 * x\n")
    assert cache.key(1, [tmp_path]) == key
    rewrite(file, "def double(x):\n    return 3 * x\n")
    assert cache.key(1, [tmp_path]) != key
    rewrite(file, "def double(x):\n    return 2 * x\n")
    (tmp_path / "other.py").write_text("k = 1\n")
    assert cache.key(1, [tmp_path]) != key


def test_a_number_sign_inside_text_is_no_comment():
    assert cache.without_prose('a = "#1"  # one\n') == 'a = "#1"'
    assert cache.without_prose('"""Said."""\nb = """\n# kept\n"""\n') == 'b = """\n# kept\n"""'
    assert cache.without_prose('class A:\n    b: int = 1\n    """Said of b."""\n') == "class A:\n    b: int = 1"


def table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"parameters": str})


def test_record_appends_other_runs_and_replaces_the_same(tmp_path):
    file = tmp_path / "results" / "runs.csv"
    record(file, RUN | {"miou": 0.1})
    others = ({"seed": 1}, {"parameters": {"a": 9}}, {"method": "teacher"}, {"split": "val"}, {"dataset": "coco"})
    for k, other in enumerate(others, 2):
        record(file, RUN | other | {"miou": k / 10})
    assert table(file)["miou"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    record(file, RUN | {"miou": 0.9})
    record(file, RUN | {"parameters": {"a": 9}} | {"miou": 0.8})
    assert table(file)["miou"].tolist() == [0.2, 0.4, 0.5, 0.6, 0.9, 0.8]
    row = table(file).iloc[4]
    assert row["parameters"] == '{"a": 10}' and "torch" in row["versions"] and "cores" in row["hardware"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", row["when"])


@pytest.mark.parametrize("missing", [{"split": None}, {"split": ""}])
def test_record_knows_runs_without_a_split(tmp_path, missing):
    file = tmp_path / "runs.csv"
    training = {k: v for k, v in RUN.items() if k != "split"}
    for seconds in (1.0, 2.0):
        record(file, training | missing | {"seconds": seconds})
    record(file, training | {"seconds": 3.0})  # the column left out says the same
    record(file, RUN | {"seconds": 4.0})
    assert table(file)["seconds"].tolist() == [3.0, 4.0]


def test_record_keeps_what_older_rows_say(tmp_path):
    file = tmp_path / "runs.csv"
    value = 0.1 + 0.2  # 0.30000000000000004
    record(file, RUN | {"miou": value, "images": 200})
    for seed in range(1, 4):
        record(file, RUN | {"seed": seed} | {"ap": 0.5})  # rows with other columns
    first = file.read_text().splitlines()[1]
    assert repr(value) in first and ",200," in first  # neither rounded nor turned into 200.0
    assert table(file)["ap"].isna().tolist() == [True, False, False, False]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor(6), ProcessPoolExecutor(3, get_context("fork"))])
def test_record_from_several_threads_or_processes_loses_nothing(tmp_path, pool):
    file = tmp_path / "runs.csv"
    with pool:
        for done in [pool.submit(record, file, RUN | {"seed": k}) for k in range(12)]:
            done.result()
    assert sorted(table(file)["seed"]) == list(range(12))


@pytest.mark.parametrize("content, stored", [("größer\n", "größer\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_write_atomically(tmp_path, content, stored):
    file = tmp_path / "a" / "b" / "file"
    for _ in range(2):
        write_atomically(file, content)
        assert file.read_bytes() == stored
    assert [p.name for p in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["write", "move"])
def test_failed_write_leaves_the_old_content(tmp_path, monkeypatch, step):
    file = tmp_path / "runs.csv"
    write_atomically(file, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr(os, "fsync", full)  # what was written does not fit the disk
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*runs\.csv: No space left on device; free"):
        write_atomically(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["runs.csv"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert machine.commit() == "unknown"

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    for folder in ("usam", "notebooks", "profiles", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("one")
    git("init", "-q")
    assert machine.commit() == "unknown"  # nothing committed yet
    git("add", ".")
    git("commit", "-qm", "first")
    clean = machine.commit()
    assert re.fullmatch("[0-9a-f]{12}", clean) and git("rev-parse", "HEAD").startswith(clean)
    (tmp_path / "results" / "file").write_text("two")  # results are written by every run
    assert machine.commit() == clean
    (tmp_path / "usam" / "file").write_text("two")
    assert machine.commit() == f"{clean}+"


def test_seeded_repeats():
    draws = []
    for _ in range(2):
        with seeded(5) as order:
            draws.append((torch.rand(3).tolist(), torch.randperm(9, generator=order).tolist()))
    assert draws[0] == draws[1]
    with seeded(6):
        assert torch.rand(3).tolist() != draws[0][0]


def test_threads_do_not_share_a_seed():
    def draw(seed: int) -> list[float]:
        with seeded(seed):
            return [torch.rand(1).item() for _ in range(200) if not time.sleep(1e-5)]

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == alone


def test_cost_of_a_block():
    with machine.timed() as cost:
        assert not cost
        sum(range(10**6))
    assert 0 < cost["seconds"] < 60 and 0.01 < cost["peak_gib"] < 1000


def test_disk_is_checked_early(tmp_path):
    check_disk(tmp_path / "new", 1e-6)
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match=r"GiB free, about 1000000000\.0 are needed"):
        check_disk(tmp_path, 1e9)
