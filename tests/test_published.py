"""Downloads from a server on this machine that stops, lies and forgets, as those of the world do."""

import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from usam import paths, profiles
from usam.config_rivals import RivalsConfig
from usam.data import published
from usam.data.published import Published
from usam.data.voc import VocDataset
from usam.errors import UserError
from usam.method import sam
from usam.pipeline import stages
from usam.profiles import Profile

NAME = "checkpoints/sam_vit_b_01ec64.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path. `cut`: bytes after which a connection ends, from the first one on; `ranges`: does it
    know them, and by how much are they wrong; `requests`: paths and ranges; `slow`: seconds between pieces."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.ranges, self.slow, self.shift = True, 0.0, 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def publish(self, name: str, content: bytes) -> Published:
        self.content[f"/{name}"] = content
        return Published(self.url(name), len(content), hashlib.sha256(content).hexdigest())

    def handle_error(self, *_):
        pass  # the client hung up


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        content = server.content.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(content) and content:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        rest = content[start:]
        if server.cut:
            rest = rest[: server.cut.pop(0)]
        step = 2**16 if server.slow else 2**22
        for k in range(0, len(rest), step):
            self.wfile.write(rest[k : k + step])
            time.sleep(server.slow)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(published, "LONGEST_WAIT", 0)
    with Server() as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture
def paper(tmp_path, monkeypatch) -> Profile:
    """The paper's profile with ViT-B, an empty data folder, no data set and models that are folders."""
    monkeypatch.setenv("USAM_DATA", str(tmp_path))
    mini = profiles.load("mini")
    changes = {"datasets": {}, "sources": mini.sources, "clip": mini.clip}
    return profiles.load("vit_b").model_copy(update=changes)


def publish(monkeypatch, server: Server, content: bytes, name: str = NAME) -> Published:
    one = server.publish(Path(name).name, content)
    monkeypatch.setitem(published.FILES, name, one)
    return one


NOISE = np.random.default_rng(0).bytes(300_000)


def test_weights_of_acr_are_listed_and_loaded(paper, monkeypatch):
    seen = []
    monkeypatch.setattr(published, "get_files", lambda _profile: None)
    monkeypatch.setattr(published.imagenet, "load", lambda *arguments: seen.append(arguments))
    leopart, transfgu = ({"backbone": "miniature/weights/dino"} for _ in range(2))
    whole = paper.model_copy(update={"rivals": RivalsConfig(leopart=leopart, transfgu=transfgu)})
    row = published.table(whole).iloc[-1]
    assert row["file"] == "resnet50-11ad3fa6.pth" and row["SHA-256"] == "11ad3fa6…" and row["here"] == "no"
    assert row["from"].endswith("/resnet50-11ad3fa6.pth") and 90 < float(row["MiB"]) < 110
    published.get(whole)
    assert seen == [("resnet50", "IMAGENET1K_V2")]


def test_a_file_arrives_whole_and_is_requested_once(server, paper, tmp_path, monkeypatch):
    publish(monkeypatch, server, NOISE)
    table = published.table(paper)
    assert table[["file", "here"]].to_numpy().tolist() == [["sam_vit_b_01ec64.pth", "no"]]
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == NOISE and len(server.requests) == 1
    assert published.table(paper)["here"].tolist() == ["yes"]
    published.get(paper)
    assert len(server.requests) == 1
    assert [p.name for p in (tmp_path / NAME).parent.iterdir() if not p.name.startswith(".")] == [Path(NAME).name]


def test_a_download_continues_where_the_connection_broke(server, paper, tmp_path, monkeypatch):
    publish(monkeypatch, server, NOISE)
    server.cut = [100_000, 0, 1, 150_000]
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == NOISE
    assert [wanted for _, wanted in server.requests] == [
        None, "bytes=100000-", "bytes=100000-", "bytes=100001-", "bytes=250001-",
    ]  # fmt: skip


def test_a_server_without_ranges_starts_again(server, paper, tmp_path, monkeypatch):
    publish(monkeypatch, server, NOISE)
    server.cut, server.ranges = [100_000], False
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == NOISE and len(server.requests) == 2


def test_a_server_that_always_hangs_up_is_given_up_and_what_came_stays(server, paper, tmp_path, monkeypatch):
    one = publish(monkeypatch, server, NOISE)
    server.cut = [1000] + [0] * 100
    with pytest.raises(UserError) as error:
        published.get(paper)
    lines = str(error.value).splitlines()
    assert "cannot be downloaded (the connection broke); 1,000 bytes of it are here" in lines[0]
    assert lines[1:] == [f"  {one.url} (300,000 bytes)", f"  -> {tmp_path / NAME}"]
    assert len(server.requests) == 1 + published.ATTEMPTS
    server.cut = []
    published.get(paper)
    assert server.requests[-1] == (f"/{Path(NAME).name}", "bytes=1000-")
    assert (tmp_path / NAME).read_bytes() == NOISE


def test_without_a_network_each_file_and_its_place_are_named(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "LONGEST_WAIT", 0)
    for name in published.FILES:
        monkeypatch.setitem(published.FILES, name, Published(f"http://127.0.0.1:9/{name}", 10, "0" * 64))
    whole = paper.model_copy(update={"datasets": profiles.load("paper").datasets})
    with pytest.raises(UserError) as error:
        published.get(whole)
    message = str(error.value)
    assert message.count("\n") == 2 * 4
    assert message.startswith("sam_vit_b_01ec64.pth cannot be downloaded (no connection")
    for name in (NAME, "VOCtrainval_11-May-2012.tar", "val2017.zip", "annotations_trainval2017.zip"):
        assert f"http://127.0.0.1:9/{name} (10 bytes)\n  -> {tmp_path / name}" in message


def test_a_missing_page_is_requested_once(server, paper, monkeypatch):
    publish(monkeypatch, server, NOISE)
    server.content.clear()
    with pytest.raises(UserError, match=r"cannot be downloaded \(HTTP 404\); 0 bytes"):
        published.get(paper)
    assert len(server.requests) == 1


def test_another_file_of_the_same_length_is_deleted(server, paper, tmp_path, monkeypatch):
    one = publish(monkeypatch, server, NOISE)
    server.content[f"/{Path(NAME).name}"] = NOISE[::-1]
    with pytest.raises(UserError, match=f"{one.url} sent another file than was published"):
        published.get(paper)
    assert not list((tmp_path / NAME).parent.glob("[!.]*"))
    server.content[f"/{Path(NAME).name}"] = NOISE
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == NOISE


@pytest.mark.parametrize("content", [b"<html>log in first</html>", NOISE + b"more", NOISE[:-1]])
@pytest.mark.parametrize("have", [0, 1000])
def test_a_page_of_another_length_does_not_touch_what_is_here(server, paper, tmp_path, monkeypatch, content, have):
    publish(monkeypatch, server, NOISE)
    server.content[f"/{Path(NAME).name}"] = content
    part = tmp_path / f"{NAME}.part"
    part.parent.mkdir()
    part.write_bytes(NOISE[:have])
    server.ranges = len(content) > have
    with pytest.raises(UserError, match=r"\(the server sends another file under this address\)"):
        published.get(paper)
    assert part.read_bytes() == NOISE[:have]
    server.content[f"/{Path(NAME).name}"], server.ranges = NOISE, True
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == NOISE


def test_a_part_that_begins_elsewhere_is_not_taken(server, paper, tmp_path, monkeypatch):
    publish(monkeypatch, server, NOISE)
    server.cut, server.shift = [1000], -1000
    with pytest.raises(UserError, match="another file under this address"):
        published.get(paper)
    assert (tmp_path / f"{NAME}.part").read_bytes() == NOISE[:1000]


def test_a_part_of_another_file_is_deleted(server, paper, tmp_path, monkeypatch):
    publish(monkeypatch, server, NOISE)
    (tmp_path / NAME).parent.mkdir()
    (tmp_path / f"{NAME}.part").write_bytes(bytes(1000))
    with pytest.raises(UserError, match="sent another file"):
        published.get(paper)
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == NOISE


def test_a_killed_download_continues(server, paper, tmp_path, monkeypatch):
    content = np.random.default_rng(1).bytes(40 * 2**20)
    one = publish(monkeypatch, server, content)
    server.slow = 0.01
    code = (
        "import sys; from usam import profiles; from usam.data import published\n"
        f"published.FILES[{NAME!r}] = published.Published({one.url!r}, {one.size}, {one.sha256!r})\n"
        "mini = profiles.load('mini')\n"
        "changes = {'datasets': {}, 'sources': mini.sources, 'clip': mini.clip}\n"
        "published.get(profiles.load('vit_b').model_copy(update=changes))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    part = tmp_path / f"{NAME}.part"
    deadline = time.monotonic() + 120
    while not part.exists() or part.stat().st_size < 2**20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have, server.slow = part.stat().st_size, 0.0
    assert 0 < have < len(content)
    published.get(paper)
    assert (tmp_path / NAME).read_bytes() == content
    assert server.requests[-1] == (f"/{Path(NAME).name}", f"bytes={have}-")


def test_disk_and_memory_are_looked_at_before_the_first_byte(server, paper, monkeypatch):
    publish(monkeypatch, server, NOISE)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 1000))
        with pytest.raises(UserError, match=r"has 0\.0 GiB free, about 0\.0 are needed"):
            published.get(paper)
    with monkeypatch.context() as patch:
        patch.setattr(published.psutil, "virtual_memory", lambda: namedtuple("memory", "available")(1000))
        with pytest.raises(UserError, match=r"of memory are free, about .* are needed to load SAM"):
            published.get(paper)
    assert server.requests == []


# -- checkpoints --------------------------------------------------------------------------------------------------


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(profile: Profile) -> torch.nn.Module:
    return sam.load_sam(profile.sam.model, published.checkpoint(profile.sam))


def test_the_whole_vit_b_comes_through_a_cut_and_loads(server, paper, monkeypatch):
    torch.manual_seed(0)
    weights = sam.build_sam("vit_b").state_dict()
    content = saved(weights)
    assert len(content) > 370_000_000 and "image_encoder.blocks.11.attn.rel_pos_w" in weights
    publish(monkeypatch, server, content)
    server.cut = [200_000_000]
    published.get(paper)
    loaded = load(paper).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights.items())
    file = published.checkpoint(paper.sam)
    with open(file, "r+b") as damaged:
        damaged.seek(100_000_000)
        damaged.write(b"damage")
    with pytest.raises(UserError, match=r"another SHA-256\): delete it and run notebook 00_setup"):
        load(paper)
    with open(file, "r+b") as damaged:
        damaged.truncate(100_000_000)
    with pytest.raises(UserError, match=rf"100,000,000 bytes\) is not the published file \({len(content):,} bytes"):
        load(paper)


class Intruder:
    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_checkpoint_is_not_run(server, paper, tmp_path, monkeypatch):
    intruder = Intruder()
    intruder.mark = tmp_path / "was here"
    publish(monkeypatch, server, saved({"image_encoder.pos_embed": intruder}))
    published.get(paper)
    with pytest.raises(UserError, match="cannot be read as weights"):
        load(paper)
    assert not intruder.mark.exists()


def test_a_checkpoint_that_is_not_here_names_the_notebook(paper):
    with pytest.raises(UserError, match=r"sam_vit_b_01ec64\.pth is missing: run notebook 00_setup"):
        load(paper)
    with pytest.raises(UserError, match="'some:thing' has no published weights: name a `checkpoint`"):
        published.checkpoint(paper.sam.model_copy(update={"model": "some:thing"}))


# -- data sets ----------------------------------------------------------------------------------------------------


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("P" if form == "PNG" else "RGB", (8, 6))
    if form == "PNG":
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((3, 3), 1)
    image.save(buffer, form)
    return buffer.getvalue()


def voc_archive() -> bytes:
    buffer, root = io.BytesIO(), "VOCdevkit/VOC2012"
    files = {
        "ImageSets/Segmentation/val.txt": b"2007_000001\n",
        "JPEGImages/2007_000001.jpg": picture("JPEG"),
        "SegmentationClass/2007_000001.png": picture("PNG"),
        "SegmentationObject/2007_000001.png": picture("PNG"),
    }
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_both_data_sets_are_unpacked_into_their_places_and_read(server, paper, tmp_path, monkeypatch):
    archive = voc_archive()
    publish(monkeypatch, server, archive, "VOCtrainval_11-May-2012.tar")
    instances = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "height": 6, "width": 8}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    publish(monkeypatch, server, zipped({"val2017/000000000007.jpg": picture("JPEG")}), "val2017.zip")
    annotations = {
        "annotations/instances_val2017.json": json.dumps(instances).encode(),
        "annotations/other.json": b"{}",
    }
    publish(monkeypatch, server, zipped(annotations), "annotations_trainval2017.zip")
    publish(monkeypatch, server, NOISE)
    whole = paper.model_copy(update={"datasets": profiles.load("paper").datasets})
    server.cut = [1000, len(archive) // 2, 100]
    published.get(whole)
    examples = {dataset_name: stages.dataset(whole, dataset_name)[0] for dataset_name in ("voc", "coco")}
    assert [one.label for one in examples["voc"].instances] == [0] and examples["voc"].semantic[3, 3] == 1
    assert examples["coco"].image_id == 7 and not examples["coco"].instances
    left = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
    assert left == {"checkpoints", "VOCdevkit", "coco"}  # the archives are gone, and what unpacking left
    assert not (tmp_path / "coco" / "annotations" / "other.json").exists()
    count = len(server.requests)
    published.get(whole)
    assert len(server.requests) == count and published.table(whole)["here"].tolist() == ["yes"] * 4


def test_an_archive_that_was_put_there_by_hand_is_checked_and_unpacked(server, paper, tmp_path, monkeypatch):
    content = zipped({"val2017/000000000007.jpg": picture("JPEG")})
    publish(monkeypatch, server, content, "val2017.zip")
    coco = profiles.load("paper").datasets["coco"]
    only = paper.model_copy(update={"datasets": {"coco": coco}, "sam": profiles.load("mini").sam})
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text("{}")
    (tmp_path / "val2017.zip").write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"val2017\.zip \(.* bytes\) is not the published file .*: delete it"):
        published.get(only)
    (tmp_path / "val2017.zip").write_bytes(content)
    published.get(only)
    assert (tmp_path / "coco" / "val2017" / "000000000007.jpg").is_file() and server.requests == []


@pytest.mark.parametrize("unpacked", [False, True])
def test_unpacking_that_was_stopped_leaves_nothing(server, paper, tmp_path, monkeypatch, unpacked):
    content = zipped({"val2017/000000000007.jpg": picture("JPEG")})
    publish(monkeypatch, server, content, "val2017.zip")
    coco = profiles.load("paper").datasets["coco"]
    only = paper.model_copy(update={"datasets": {"coco": coco}, "sam": profiles.load("mini").sam})
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text("{}")
    (tmp_path / "val2017.zip").write_bytes(content)
    (tmp_path / "coco" / "val2017.unpacking" / "val2017").mkdir(parents=True)
    if unpacked:
        (tmp_path / "coco" / "val2017").mkdir()
    published.get(only)
    assert {p.name for p in (tmp_path / "coco").iterdir()} == {"annotations", "val2017"}
    assert not (tmp_path / "val2017.zip").exists() and server.requests == []


def test_a_data_set_that_is_missing_names_the_notebook(paper, tmp_path):
    with pytest.raises(UserError, match="run 00_setup"):
        VocDataset(tmp_path, "val")


def test_the_miniature_needs_nothing(capsys):
    mini = profiles.load("mini")
    assert published.table(mini).empty
    published.get(mini)
