"""Models of the Hugging Face hub, from a server on this machine that speaks as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from usam import paths
from usam.data import huggingface
from usam.errors import UserError

REPO, COMMIT = "somebody/small-diffusion", "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """One repository, the files of a folder and some that nobody should want; `cut` ends its connections early."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.files |= {"unet/diffusion_pytorch_model.fp16.safetensors": b"half", "flax_model.msgpack": b"flax"}
        self.files |= {"unet/diffusion_pytorch_model.bin": b"pickled", "v1-4.ckpt": b"pickled"}
        self.sent: list[str] = []
        self.cut = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, whole: bool) -> None:
        path, files = unquote(urlsplit(self.path).path), self.server.files
        if path.startswith(f"/api/models/{REPO}/tree"):
            listing = [
                {"type": "file", "path": n, "size": len(c), "oid": digest(c)} for n, c in self.server.files.items()
            ]
            self.reply(json.dumps(listing).encode(), whole)
        elif path.startswith(f"/api/models/{REPO}"):
            siblings = [
                {"rfilename": name, "size": len(c), "blobId": digest(c)} for name, c in self.server.files.items()
            ]
            self.reply(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), whole)
        elif path.startswith(f"/{REPO}/resolve/"):
            name = path.removeprefix(f"/{REPO}/resolve/").partition("/")[2]
            content = files.get(name)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if whole:
                self.server.sent.append(name)
            self.reply(content, whole, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def reply(self, content: bytes, whole: bool, headers: dict[str, str] | None = None) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if start else 200)
        rest = content[start:]
        for key, value in {"Content-Length": str(len(rest)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if whole:
            if self.server.cut and len(rest) > self.server.cut:
                self.close_connection, rest = True, rest[: self.server.cut]
            self.wfile.write(rest)

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *_):
        pass


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server(model) -> Iterator[Hub]:
    with Hub(model) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def run(code: str, data: Path, **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own: the hub's library reads its settings once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"USAM_DATA": str(data), "PYTHONPATH": str(paths.ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | settings)


FETCH = f"from usam.data import huggingface\nhuggingface.fetch({REPO!r})\n"
DRAW = f"""
from usam.data.sources import GenerateConfig
from usam.data import generate
images, _ = generate.pipeline(GenerateConfig(model={REPO!r}, steps=2))("a photo of a dog", [0])
print(images.shape)
"""


def test_a_model_is_fetched_once_and_works_without_a_network(server, tmp_path):
    first = run(FETCH, tmp_path, HF_ENDPOINT=server.url)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "unet/diffusion_pytorch_model.safetensors" in server.sent and "model_index.json" in server.sent
    assert not [n for n in server.sent if n.endswith((".bin", ".ckpt", ".msgpack")) or ".fp16." in n]
    count = len(server.sent)
    again = run(FETCH + DRAW, tmp_path, HF_ENDPOINT=server.url)
    assert again.returncode == 0 and "(1, 16, 16, 3)" in again.stdout, again.stderr[-2000:]
    assert len(server.sent) == count
    server.shutdown()
    alone = run(FETCH + DRAW, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert alone.returncode == 0 and "(1, 16, 16, 3)" in alone.stdout, alone.stderr[-2000:]
    assert {p.name for p in tmp_path.iterdir()} == {"hub"}


def test_the_next_start_continues_after_a_cut(server, tmp_path):
    server.cut = 10_000
    first = run(FETCH, tmp_path, HF_ENDPOINT=server.url)
    if first.returncode:
        assert "UserError: the model cannot be loaded from" in first.stderr
    server.cut = 0
    assert run(FETCH + DRAW, tmp_path, HF_ENDPOINT=server.url).returncode == 0


def test_no_network_and_nothing_there_is_one_line(tmp_path):
    found = run(FETCH, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert f"UserError: the model cannot be loaded from '{REPO}'" in found.stderr
    assert "connect to the internet" in found.stderr.strip().splitlines()[-1]


def test_where_the_hub_keeps_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_DATA", str(tmp_path))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert huggingface.cache() == str(tmp_path / "hub")
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert huggingface.cache() is None


def test_weights_that_loaders_read():
    names = [
        "config.json",
        "merges.txt",
        "pytorch_model.bin",
        "tf_model.h5",
        "model.safetensors",
        "model.fp16.safetensors",
    ]
    assert huggingface._read_by_loaders(names) == ["config.json", "merges.txt", "model.safetensors"]
    assert huggingface._read_by_loaders(names[:4]) == ["config.json", "merges.txt", "pytorch_model.bin"]


def test_a_folder_needs_nothing(model):
    huggingface.fetch(str(model))
    with pytest.raises(UserError, match="no model folder"):
        huggingface.fetch("no/such/folder/at all")
