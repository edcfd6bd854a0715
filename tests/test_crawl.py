"""The crawl against the miniature's web, and against servers of its own on loopback that do worse."""

import io
import itertools
import json
import os
import random
import shutil
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

import usam.data.crawl as crawling
from miniature import web
from usam.data.crawl import CrawlConfig, crawl
from usam.data.http import Rejected, Web
from usam.errors import UserError

FAST = dict(seconds_between_requests=0, seconds_between_api_requests=0)
ACCEPTED = ""


@pytest.fixture(autouse=True)
def no_thread_left(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    monkeypatch.delenv("OPENVERSE_TOKEN", raising=False)
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Waits are written down, not waited."""
    seconds: list[float] = []
    monkeypatch.setattr(Web, "sleep", lambda _, wait: seconds.append(wait) if wait > 0 else None)
    return seconds


@pytest.fixture
def requested(monkeypatch) -> list[str]:
    """Paths that were requested from the miniature's web."""
    seen: list[str] = []
    answer = web._Handler.do_GET

    def do_get(self) -> None:
        seen.append(self.path)
        answer(self)

    monkeypatch.setattr(web._Handler, "do_GET", do_get)
    return seen


class Reply(BaseHTTPRequestHandler):
    timeout = 5

    def log_message(self, *_args) -> None:
        pass

    def say(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(answer: Callable[[Reply], None], port: int = 0) -> Iterator[str]:
    """A server on loopback; yields its base URL."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, *_args) -> None:
            pass

    server = Quiet(("127.0.0.1", port), type("Handler", (Reply,), {"do_GET": answer}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(number: int, side: int = 64) -> Image.Image:
    """Coarse noise: another number is a picture that no perceptual hash takes for the same."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST)


def png(number: int, side: int = 64) -> bytes:
    return encoded(picture(number, side))


def config_for(tmp_path: Path, rows: list[tuple[str, str]], **options) -> CrawlConfig:
    """A CSV source of (class, url)."""
    file = tmp_path / "urls.csv"
    pd.DataFrame(rows, columns=["class", "url"]).to_csv(file, index=False)
    return CrawlConfig(**{"source": str(file), "allow_hosts": ["127.0.0.1"], **FAST, **options})


def reasons(tmp_path: Path, urls: list[str], **options) -> list[str]:
    """What becomes of each URL; "" is accepted. A good picture of another class comes first: there is a network."""
    with serving(lambda self: self.say(200, png(12345))) as good:
        config = config_for(tmp_path, [("good", f"{good}/"), *(("dog", url) for url in urls)], **options)
        try:
            crawl(tmp_path / "out", ["good", "dog"], config, len(urls))
        except UserError as error:
            assert str(error).startswith("no web image of 'dog'")
        table = pd.read_csv(tmp_path / "out" / "manifest.csv", keep_default_na=False)
    return table["reason"][table["class"] == "dog"].tolist()


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- the miniature's web --------------------------------------------------------------------------------------------


def mini(api: str, **options) -> CrawlConfig:
    return CrawlConfig(**{"api": api, "allow_hosts": ["127.0.0.1"], **FAST, **options})


def test_every_candidate_of_the_miniature_web_has_the_fate_it_should_have(tmp_path, waits, capfd):
    names = ["dog", "potted plant"]
    with web.serve(names) as api:
        table = crawl(tmp_path / "out", names, mini(api), 21)
    for name, folder in (("dog", "dog"), ("potted plant", "potted_plant")):
        rejected = {
            2: "HTTP 404",
            5: "no image",
            8: "truncated or damaged",
            11: f"exact duplicate of {folder}/0000.jpg",
            15: f"near duplicate of {folder}/0000.jpg",
            19: "smaller than 64 pixels",
            23: "redirect loop",
        }
        rows = table[table["class"] == name].reset_index()
        assert rows["reason"].tolist() == [rejected.get(place, "") for place in range(28)]
        accepted = rows[rows["status"] == "accepted"]
        assert accepted["file"].tolist() == [f"{folder}/{k:04d}.jpg" for k in range(21)]
        assert accepted["url"].str.rsplit("/").str[-1].astype(int).tolist() == [
            k for k in range(28) if k not in rejected
        ]
        for row in accepted.itertuples():
            stored = (tmp_path / "out" / row.file).read_bytes()
            assert stored == web._photograph(name, int(row.url.rsplit("/")[-1]))
            assert (row.sha256, row.bytes) == (sha256(stored).hexdigest(), len(stored))
            assert Image.open(io.BytesIO(stored)).size == (row.width, row.height)
    assert table.loc[0, ["creator", "licence"]].tolist() == ["nobody 0", "by 2.0"]
    assert table.loc[2, ["page", "licence"]].tolist() == [f"{table.loc[2, 'url']}/about", "cc0 1.0"]
    assert table["width"].isna().sum() == 6  # three of each class without a picture
    assert waits == [1.0]  # Retry-After: every third class has to wait, here the first
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}
    assert not [line for line in capfd.readouterr().err.splitlines() if "web images" not in line and line]


def test_a_finished_crawl_requests_nothing(tmp_path, waits, requested):
    with web.serve(["car"]) as api:
        first = crawl(tmp_path / "out", ["car"], mini(api), 3)
        before, there = len(requested), content(tmp_path / "out")
        second = crawl(tmp_path / "out", ["car"], mini(api), 3)
    assert before == 6  # the list; a picture, two requests for the one that moved, a missing one, a picture
    assert len(requested) == before
    pd.testing.assert_frame_equal(first, second)
    assert content(tmp_path / "out") == there


@pytest.mark.parametrize("where", ["judge", "flush", "_store"])
def test_a_killed_crawl_ends_like_one_that_ran_through(tmp_path, waits, requested, monkeypatch, where):
    whole = getattr(crawling._CrawlFolder, where)
    with web.serve(["car", "dog"]) as api:
        crawl(tmp_path / "whole", ["car", "dog"], mini(api), 9)
        for after in (0, 1, 3, 7):
            calls = iter(range(1000))

            def killed(self, *args, calls=calls, after=after):
                if next(calls) == after:
                    if where == "_store":
                        whole(self, *args)  # the image is there, its row is not
                    raise KeyboardInterrupt
                return whole(self, *args)

            monkeypatch.setattr(crawling._CrawlFolder, where, killed)
            with pytest.raises(KeyboardInterrupt):
                crawl(tmp_path / "out", ["car", "dog"], mini(api), 9)
        monkeypatch.setattr(crawling._CrawlFolder, where, whole)
        crawl(tmp_path / "out", ["car", "dog"], mini(api), 9)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sum(path.startswith("/v1") for path in requested) == 2 + 2  # a list is requested once


def test_what_was_decided_is_not_downloaded_again(tmp_path, waits, requested, monkeypatch):
    with web.serve(["car"]) as api:
        judge, calls = crawling._CrawlFolder.judge, iter(range(1000))

        def killed(self, *args):
            if next(calls) == 7:
                raise KeyboardInterrupt
            return judge(self, *args)

        monkeypatch.setattr(crawling._CrawlFolder, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            crawl(tmp_path / "out", ["car"], mini(api), 9)
        requested.clear()
        crawl(tmp_path / "out", ["car"], mini(api), 9)
    # places 0 to 6 were judged; 7 to 12 hold six more good ones, which is one more than it takes
    assert sorted(int(path.rsplit("/")[-1]) for path in requested) == [7, 8, 9, 10, 11, 12]


def test_a_server_that_went_away_loses_nothing(tmp_path, waits, monkeypatch):
    names = ["car", "dog"]
    with web.serve(names) as api:
        crawl(tmp_path / "whole", names, mini(api), 14)
    port = int(api.split(":")[2].split("/")[0])
    judge, calls, running = crawling._CrawlFolder.judge, iter(range(1000)), ExitStack()

    def stopping(self, *args):
        if next(calls) == 4:
            running.close()
        return judge(self, *args)

    monkeypatch.setattr(crawling._CrawlFolder, "judge", stopping)
    with running, pytest.raises(UserError, match="no network") as error:
        crawl(tmp_path / "out", names, mini(running.enter_context(web.serve(names, port))), 14)
    assert len(str(error.value).splitlines()) == 1
    assert 4 <= len(pd.read_csv(tmp_path / "out" / "manifest.csv")) <= 4 + crawling.WORKERS
    with web.serve(names, port) as api:
        crawl(tmp_path / "out", names, mini(api), 14)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_the_miniature_web_answers_like_openverse_on_loopback_only():
    with web.serve(["car"]) as api:
        one, two = (requests.get(f"{api}images/", {"q": "car", "page": page}).json() for page in (1, 2))
        assert [one[key] for key in ("result_count", "page_count", "page_size", "page")] == [240, 12, 20, 1]
        assert (len(one["results"]), len(two["results"]), two["page"]) == (20, 20, 2)
        assert one["results"][1]["url"] == api.replace("/v1/", "/pictures/car/1")
        assert requests.get(f"{api}images/", {"q": "unicorn"}).json()["results"] == []
        assert requests.get(f"{api}images/", {"q": "car", "page": 13}).status_code == 404
        assert requests.get(f"{api}images/", {"q": "car", "page_size": 21}).status_code == 401
        assert requests.get(api.replace("/v1/", "/pictures/unicorn/0")).status_code == 404
        busy = [requests.get(api.replace("/v1/", "/pictures/car/4")) for _ in range(2)]
        assert [answer.status_code for answer in busy] == [429, 200]
        assert busy[0].headers["Retry-After"] == "1"
        assert api.startswith("http://127.0.0.1:")
    with pytest.raises(requests.ConnectionError):
        requests.get(api)
    with pytest.raises(UserError, match="the drawn world has no 'unicorn'"), web.serve(["unicorn"]):
        pass


# -- rate limits ------------------------------------------------------------------------------------------------------


def failing(statuses: list[int], **headers) -> Callable[[Reply], None]:
    left = list(statuses)
    return lambda self: self.say(left.pop(0), **headers) if left else self.say(200, png(1))


@pytest.mark.parametrize(
    ("header", "shortest", "longest"),
    [
        ("7", 7, 7),
        ("100000", 120, 120),
        ("0", None, None),
        (lambda: formatdate(time.time() + 50, usegmt=True), 45, 50),
        (lambda: formatdate(time.time() - 50, usegmt=True), None, None),
        ("soon", 1, 2),
        ("9" * 5000, 1, 2),
    ],
    ids=["seconds", "too long", "at once", "date", "past", "nonsense", "huge"],
)
def test_retry_after_is_honoured(tmp_path, waits, header, shortest, longest):
    value = header() if callable(header) else header
    with serving(failing([503], Retry_After=value)) as base:
        assert reasons(tmp_path, [f"{base}/a"]) == [ACCEPTED]
    assert len(waits) == (shortest is not None)
    assert all(shortest <= wait <= longest for wait in waits)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_three_retries_with_growing_pauses(tmp_path, waits, status):
    with serving(failing([status] * 3)) as base:
        assert reasons(tmp_path, [f"{base}/a"]) == [ACCEPTED]
    assert [int(wait) for wait in waits] == [1, 2, 4]  # and up to a second of jitter
    with serving(failing([status] * 4)) as base:
        (tmp_path / "again").mkdir()
        assert reasons(tmp_path / "again", [f"{base}/a"]) == [f"HTTP {status}"]


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410, 451, 501])
def test_other_states_are_final(tmp_path, waits, status):
    with serving(failing([status])) as base:
        assert reasons(tmp_path, [f"{base}/a"]) == [f"HTTP {status}"]
    assert waits == []


def test_a_dead_host_behind_a_redirect_is_not_the_network(tmp_path, waits):
    dead = f"http://localhost:{closed_port()}/"
    with serving(lambda self: self.say(302, Location=dead)) as base:
        urls = [f"{base}/{k}" for k in range(12)]
        assert reasons(tmp_path, urls, allow_hosts=["127.0.0.1", "localhost"]) == ["connection broken"] * 12


def test_a_server_that_hangs_up_is_not_the_network(tmp_path, waits):
    with serving(lambda self: self.connection.close()) as base:
        assert reasons(tmp_path, [f"{base}/{k}" for k in range(6)]) == ["connection broken"] * 6


def test_broken_connections_are_tried_again(tmp_path, waits):
    left = [1, 2]

    def broken(self):
        if left:
            left.pop()
            return self.say(200, png(1)[:100], Content_Length=5000) if left else self.connection.close()
        self.say(200, png(1))

    with serving(broken) as base:
        assert reasons(tmp_path, [f"{base}/a"]) == [ACCEPTED]
    assert [int(wait) for wait in waits] == [1, 2]


def test_passing_failures_are_tried_once_more_by_a_later_run(tmp_path, waits, capsys):
    seen, down = [], {"/1": 8, "/2": 4}  # so many times

    def answer(self):
        seen.append(self.path)
        down[self.path] = down.get(self.path, 0) - 1
        self.say(503) if down[self.path] >= 0 else self.say(200, png(int(self.path[1:])))

    with serving(answer) as base:
        config = config_for(tmp_path, [("dog", f"{base}/{k}") for k in range(4)])
        states = [crawl(tmp_path / "out", ["dog"], config, 4)["reason"].tolist() for _ in range(3)]
    assert states == [
        ["", "HTTP 503", "HTTP 503", ""],
        ["", "HTTP 503, twice", "", ""],
        ["", "HTTP 503, twice", "", ""],
    ]
    assert sorted(seen) == ["/0", *["/1"] * 8, *["/2"] * 5, "/3"]
    manifest = tmp_path / "out" / "manifest.csv"
    assert capsys.readouterr().out.splitlines() == [
        f"warning: only {count} of 4 web images of 'dog': {manifest} lists the reasons" for count in (2, 3, 3)
    ]
    assert sorted(p.name for p in (tmp_path / "out" / "dog").iterdir()) == ["0000.png", "0001.png", "0002.png"]


def test_one_request_at_a_time_and_a_pause_for_each_host(tmp_path):
    times: list[tuple[float, float]] = []

    def answer(self):
        start = time.monotonic()
        time.sleep(0.02)
        self.say(200, png(int(self.path[1:])))
        times.append((start, time.monotonic()))

    with serving(answer) as base:
        config = config_for(tmp_path, [("dog", f"{base}/{k}") for k in range(5)], seconds_between_requests=0.1)
        crawl(tmp_path / "out", ["dog"], config, 5)
    times.sort()
    assert len(times) == 5
    # the server ends after the client has all: a little less than the pause lies between
    assert all(after[0] - before[1] > 0.08 for before, after in itertools.pairwise(times))


def test_result_does_not_depend_on_timing(tmp_path, monkeypatch):
    def answer(self):
        time.sleep(random.random() * 0.06)
        number = int(self.path[1:])
        self.say(404) if number % 7 == 3 else self.say(200, png(number // 2, 64 + number % 2))

    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: resolve("127.0.0.1" if host.endswith(".test") else host, *a, **k)
    )
    hosts = [f"h{k}.test" for k in range(6)]
    with serving(answer) as base:
        urls = [base.replace("127.0.0.1", hosts[k % 6]) + f"/{k}" for k in range(40)]
        config = config_for(tmp_path, [("dog", url) for url in urls], allow_hosts=hosts)
        for run in "abc":
            crawl(tmp_path / run, ["dog"], config, 12)
    # pairs 2k, 2k + 1 are one picture at two sizes; 3, 10, 17, 24 are missing
    table = pd.read_csv(tmp_path / "a" / "manifest.csv")
    accepted = table[table["status"] == "accepted"]["url"].str.rsplit("/").str[-1].astype(int).tolist()
    assert accepted == [0, 2, 4, 6, 8, 11, 12, 14, 16, 18, 20, 22]
    assert len(table) == 23
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")


def test_the_token_is_for_the_api_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVERSE_TOKEN", "secret")
    got: list[tuple[str, str | None, str]] = []

    def answer(self):
        host = self.headers["Host"].split(":")[0]
        got.append((host, self.headers["Authorization"], self.path.split("?")[0]))
        other = f"http://localhost:{self.server.server_port}"
        if self.path.startswith("/api/v1"):
            self.say(302, Location=f"{other}/elsewhere/images/")
        elif self.path.startswith("/elsewhere"):
            results = b'{"page_count": 1, "results": [{"url": "%s/0"}, {"url": "%s/1"}]}'
            self.say(200, results % (other.encode(), other.replace("localhost", "127.0.0.1").encode()))
        else:
            self.say(200, png(int(self.path[1:])))

    with serving(answer) as base:
        crawl(tmp_path / "out", ["dog"], mini(f"{base}/api/v1", allow_hosts=["127.0.0.1", "localhost"]), 2)
    assert set(got) == {
        ("127.0.0.1", "Bearer secret", "/api/v1/images/"),
        ("localhost", None, "/elsewhere/images/"),
        ("localhost", None, "/0"),
        ("127.0.0.1", None, "/1"),
    }


def test_the_api_has_a_pause_of_its_own(tmp_path, waits):
    def answer(self):
        other = f"http://localhost:{self.server.server_port}"
        if self.path.startswith("/v1"):
            page = 2 if "page=2" in self.path else 1
            self.say(200, b'{"page_count": 2, "results": [{"url": "%s/%d"}]}' % (other.encode(), page))
        else:
            self.say(200, png(int(self.path[1:])))

    with serving(answer) as base:
        config = mini(f"{base}/v1/", allow_hosts=["127.0.0.1", "localhost"], seconds_between_api_requests=3)
        assert crawl(tmp_path / "out", ["dog"], config, 2)["reason"].tolist() == ["", ""]
    assert len(waits) == 1
    assert 2 < waits[0] <= 3
    assert (CrawlConfig().seconds_between_api_requests, CrawlConfig().seconds_between_requests) == (3, 1)


def test_requests_name_their_sender(tmp_path):
    got = []

    def answer(self):
        got.append((self.headers["User-Agent"], self.headers["Accept-Encoding"], self.headers["Cookie"]))
        self.say(200, png(int(self.path[1:])), Set_Cookie="a=b")

    with serving(answer) as base:
        assert reasons(tmp_path, [f"{base}/1", f"{base}/2"]) == [ACCEPTED, ACCEPTED]
    assert got == [("usam/0.1.0 (research; +images for class names)", "identity", None)] * 2


# -- what must not be connected to ----------------------------------------------------------------------------------

PRIVATE = {
    "127.0.0.1": "127.0.0.1",
    "localhost": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",
    "0x7f.1": "127.0.0.1",
    "0.0.0.0": "0.0.0.0",
    "10.1.2.3": "10.1.2.3",
    "100.64.0.1": "100.64.0.1",
    "169.254.169.254": "169.254.169.254",
    "192.168.0.1": "192.168.0.1",
    "224.0.0.1": "224.0.0.1",
    "240.0.0.1": "240.0.0.1",
    "255.255.255.255": "255.255.255.255",
    "[::]": "::",
    "[::1]": "::1",
    "[::ffff:127.0.0.1]": "::ffff:127.0.0.1",
    "[::ffff:7f00:1]": "::ffff:7f00:1",
    "[::127.0.0.1]": "::127.0.0.1",
    "[64:ff9b::7f00:1]": "64:ff9b::7f00:1",
    "[2002:7f00:1::]": "2002:7f00:1::",
    "[fc00::1]": "fc00::1",
    "[fe80::1]": "fe80::1",
    "[fec0::1]": "fec0::1",
    "[ff02::1]": "ff02::1",
    "metadata.example": "169.254.169.254",
    "six.example": "::1",
    "mapped.example": "::ffff:10.0.0.1",
}


@pytest.fixture
def unconnected(monkeypatch) -> list[tuple]:
    """Nothing is connected to; what would have been is written down. IPv6 is there, whatever this machine has."""
    tried: list[tuple] = []

    def connect(address, *_args, **_options):
        tried.append(address)
        raise OSError("not in a test")

    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    monkeypatch.setattr("requests_hardened.ip_filter.allowed_gai_family", lambda: socket.AF_UNSPEC)
    return tried


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_whatever_they_are_called(waits, unconnected, monkeypatch, host):
    resolve = socket.getaddrinfo

    def resolved(name, port, *args, **options):
        known = PRIVATE[name] if name.endswith(".example") else name
        return resolve(known, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(Rejected) as error:
        Web(CrawlConfig()).fetch(f"http://{host}/a.jpg")
    assert error.value.reason == f"refused: {host.strip('[]')} has no public address"
    assert (unconnected, waits) == ([], [])


def test_the_address_that_was_checked_is_the_one_connected_to(waits, unconnected, monkeypatch):
    answers = iter(["93.184.215.14"] + ["127.0.0.1"] * 9)  # a name that changes after the check

    def resolved(_host, port, *_args, **_options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(Rejected) as error:
        Web(CrawlConfig()).fetch("http://rebinding.example:81/a.jpg")
    assert unconnected == [("93.184.215.14", 81)]
    assert error.value.reason == "refused: rebinding.example has no public address"  # the second attempt looks again


def test_loopback_is_refused_unless_allowed(tmp_path, requested):
    with web.serve(["car"]) as api:
        with pytest.raises(UserError, match=r"127\.0\.0\.1 has no public address") as error:
            crawl(tmp_path / "out", ["car"], mini(api, allow_hosts=[]), 2)
        assert requested == []
        assert len(str(error.value).splitlines()) == 1


def test_redirects_are_checked_at_each_hop(tmp_path, waits):
    seen = []

    def answer(self):
        seen.append(self.path)
        port = self.server.server_port
        target = {
            "/inside": f"http://localhost:{port}/secret",
            "/decimal": f"http://2130706433:{port}/secret",
            "/user": f"http://127.0.0.1:{port}@localhost:{port}/secret",
            "/file": "file:///etc/passwd",
            "/broken": "http://[::1",
            "/5": "/4",
            "/4": "3",
            "/3": "/2",
            "/2": f"//127.0.0.1:{port}/1",
            "/1": "/0",
            "/6": "/5",
            "/loop": "/pool",
            "/pool": "/loop",
        }.get(self.path)
        self.say(307, Location=target) if target else self.say(200, png(0))

    paths = ["inside", "decimal", "user", "file", "broken", "loop", "6", "5"]
    with serving(answer) as base:
        assert reasons(tmp_path, [f"{base}/{path}" for path in paths]) == [
            "refused: localhost has no public address",
            "refused: 2130706433 has no public address",
            "refused: localhost has no public address",
            "refused: only http and https",
            "no valid address or answer",
            "redirect loop",
            "more than 5 redirects",
            ACCEPTED,
        ]
    assert "/secret" not in seen


def test_no_redirect_from_https_to_http(monkeypatch):
    hops = {"https://a.example/": "https://b.example/", "https://b.example/": "http://c.example/"}
    monkeypatch.setattr(Web, "_request", lambda _self, parts, _headers: (b"", hops[parts.geturl()]))
    with pytest.raises(Rejected) as error:
        Web(CrawlConfig()).fetch("https://a.example/")
    assert error.value.reason == "refused: redirect from https to http"


def test_other_schemes_and_nonsense_are_refused(tmp_path, waits):
    assert (
        reasons(tmp_path, ["file:///etc/passwd", "ftp://a.example/a.jpg", "data:image/png;base64,AA", "a.jpg"])
        == ["refused: only http and https"] * 4
    )
    (tmp_path / "more").mkdir()
    urls = ["http://", "http://[::1", "http://" + "a" * 70 + ".example/", "http://a.example:99999/"]
    assert reasons(tmp_path / "more", urls) == ["no valid address"] * 2 + ["no valid address or answer"] * 2


# -- what must not be swallowed -------------------------------------------------------------------------------------


def test_no_more_bytes_than_allowed_are_read(tmp_path):
    sent = []

    def endless(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(5000):
            sent.append(self.wfile.write(bytes(100_000)))

    with serving(endless) as base:
        assert reasons(tmp_path, [f"{base}/a"], largest_bytes=1_000_000) == ["larger than 1000000 bytes"]
    assert sum(sent) < 50_000_000  # the rest stands in buffers


def test_compressed_bodies_are_limited_by_what_they_hold(tmp_path):
    def answer(self):
        if self.path == "/bomb":
            self.say(200, zlib.compress(bytes(10_000_000)), Content_Encoding="deflate")
        else:
            self.say(200, zlib.compress(png(1)), Content_Encoding="deflate")

    with serving(answer) as base:
        urls = [f"{base}/bomb", f"{base}/fine"]
        assert reasons(tmp_path, urls, largest_bytes=1_000_000) == ["larger than 1000000 bytes", ACCEPTED]


def header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_pixel_bombs_and_what_is_no_picture(tmp_path):
    bodies = {
        "/bomb": header(60000, 60000),
        "/large": header(9000, 9000),
        "/flat": png(1, 200)[:150],
        "/cut": encoded(picture(2, 300), "JPEG")[:-900],
        "/empty": b"",
        "/page": b"<!DOCTYPE html><p>no",
        "/svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "/small": encoded(picture(3).resize((200, 63))),
        "/fine": encoded(picture(3).resize((200, 64))),
    }
    with serving(lambda self: self.say(200, bodies[self.path], Content_Type="image/png")) as base:
        assert reasons(tmp_path, [f"{base}{path}" for path in bodies]) == [
            "more than 50000000 pixels",
            "more than 50000000 pixels",
            "truncated or damaged",
            "truncated or damaged",
            "no image",
            "no image",
            "no image",
            "smaller than 64 pixels",
            ACCEPTED,
        ]


@pytest.mark.parametrize("where", ["headers", "body", "chunk size"])
def test_a_dripping_server_does_not_hold_the_crawl(tmp_path, waits, where):
    def drip(self):
        if where != "headers":
            self.send_response(200)
            if where == "chunk size":
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        for _ in range(200):
            self.wfile.write(b"0")
            time.sleep(0.05)

    with serving(drip) as base:
        start = time.monotonic()
        assert reasons(tmp_path, [f"{base}/a"], seconds_per_image=0.4) == ["time-out"]
        assert time.monotonic() - start < 2
    assert waits == []  # attempts share the time


def test_a_server_that_sends_nothing_times_out(tmp_path, waits):
    with serving(lambda self: time.sleep(0.3)) as base:
        assert reasons(tmp_path, [f"{base}/a"], timeout=0.1, seconds_per_image=0.25) == ["time-out"]
    assert [int(wait) for wait in waits] == [1, 2]  # the third attempt is cut short by the total


# -- pictures and sources -------------------------------------------------------------------------------------------


def test_all_kinds_of_pictures_are_accepted_as_they_are(tmp_path):
    source = tmp_path / "source" / "hot_dog"
    source.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    frames = [picture(k) for k in (20, 21, 22)]
    deep = np.random.default_rng(7).integers(0, 2**16, (8, 8)).astype(np.uint16).repeat(8, 0).repeat(8, 1)
    kinds = {
        "a_turned.jpg": encoded(picture(1), "JPEG", exif=exif),
        "b_cmyk.jpg": encoded(picture(2).convert("CMYK"), "JPEG"),
        "c_palette.png": encoded(picture(3).quantize(16), "PNG", transparency=bytes(range(16))),
        "d_16_bit.png": encoded(Image.fromarray(deep), "PNG"),
        "e_animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "f_animated.webp": encoded(picture(23), "WEBP", save_all=True, append_images=frames[1:]),
        "g_wrong_name.jpg": encoded(picture(5), "BMP"),
        "h_pages.tiff": encoded(picture(6), "TIFF", save_all=True, append_images=frames),
        "i_phone": encoded(picture(8), "MPO", save_all=True, append_images=frames),
        "j_see_through.png": encoded(picture(9).convert("RGBA"), "PNG"),
        "k_grey.webp": encoded(picture(10).convert("L"), "WEBP"),
        "l_bits.png": encoded(picture(11).convert("1"), "PNG"),
    }
    for name, data in kinds.items():
        (source / name).write_bytes(data)
    table = crawl(tmp_path / "out", ["hot dog"], CrawlConfig(source=str(tmp_path / "source")), len(kinds))
    suffixes = ["jpg", "jpg", "png", "png", "gif", "webp", "bmp", "tif", "jpg", "png", "webp", "png"]
    assert table["file"].tolist() == [f"hot_dog/{k:04d}.{suffix}" for k, suffix in enumerate(suffixes)]
    assert table["url"].tolist() == [f"hot_dog/{name}" for name in kinds]
    assert [(tmp_path / "out" / file).read_bytes() for file in table["file"]] == list(kinds.values())


def test_a_folder_is_read_with_the_same_care(tmp_path):
    for folder, name, data in [
        ("hot dog", "b.png", png(1)),
        ("hot_dog", "a.png", png(1)),
        ("hot_dog", ".hidden.png", png(2)),
        ("hot_dog", "notes.txt", b"text"),
        ("hot_dog", "large.png", png(3) + bytes(100_000)),
        ("hot_dog", "near.jpg", encoded(picture(1), "JPEG", quality=30)),
        ("cat", "other.png", png(9)),
    ]:
        (tmp_path / "source" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / folder / name).write_bytes(data)
    (tmp_path / "source" / "hot_dog" / "lost.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "source" / "hot_dog" / "more").mkdir()
    config = CrawlConfig(source=str(tmp_path / "source"), largest_bytes=50_000)
    table = crawl(tmp_path / "out", ["hot dog"], config, 2)
    assert list(zip(table["url"], table["reason"], strict=True)) == [
        ("hot dog/b.png", ""),
        ("hot_dog/a.png", "exact duplicate of hot_dog/0000.png"),
        ("hot_dog/large.png", "larger than 50000 bytes"),
        ("hot_dog/lost.png", "cannot be read"),
        ("hot_dog/near.jpg", "near duplicate of hot_dog/0000.png"),
        ("hot_dog/notes.txt", "no image"),
    ]


def test_odd_names_in_a_folder_are_read_and_pipes_are_not(tmp_path):
    names = [
        "two  blanks.png",
        "a\ttab.png",
        "no\u00a0break.png",
        "50%25.png",
        "new\nline.png",
        "=SUM(A1).png",
        "plain name.png",
    ]
    folder = tmp_path / "source" / "dog"
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        (folder / name).write_bytes(png(k))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(png(50))
    os.mkfifo(tmp_path / "pipe")
    (folder / "link.png").symlink_to(tmp_path / "pipe")
    config = CrawlConfig(source=str(tmp_path / "source"))
    table = crawl(tmp_path / "out", ["dog"], config, 9)
    assert table["status"].value_counts().to_dict() == {"accepted": 8, "rejected": 1}
    assert table.set_index("url").loc["dog/link.png", "reason"] == "no regular file"
    assert {"dog/plain name.png", "dog/two%20%20blanks.png", "dog/50%2525.png"} <= set(table["url"])
    before = content(tmp_path / "out")
    crawl(tmp_path / "out", ["dog"], config, 9)
    assert content(tmp_path / "out") == before  # nothing is read twice under another name


def test_strangers_text_is_no_formula(tmp_path):
    file = tmp_path / "urls.csv"
    with serving(lambda self: self.say(200, png(1))) as base:
        file.write_text(f'class,url,page,creator,licence\ndog,{base}/1,"=HYPERLINK(""x"")",@SUM(1),by -1\n')
        config = CrawlConfig(source=str(file), allow_hosts=["127.0.0.1"], **FAST)
        for _ in range(2):
            table = crawl(tmp_path / "out", ["dog"], config, 1)
            assert table.loc[0, ["page", "creator", "licence"]].tolist() == [
                '\'=HYPERLINK("x")',
                "'@SUM(1)",
                "by -1",
            ]


def test_a_damaged_answer_is_asked_for_again_and_empty_pages_end_a_class(tmp_path, waits):
    asked = []

    def answer(self: Reply) -> None:
        asked.append(self.path)
        if not self.path.startswith("/v1/images/?"):
            return self.say(200, png(1))
        page = int(parse_qs(urlsplit(self.path).query)["page"][0])
        results = [{"url": f"http://127.0.0.1:{self.server.server_port}/one.png"}] if page == 1 else []
        self.say(200, json.dumps({"page_count": 10**9, "results": results}).encode())

    with serving(answer) as base:
        crawl(tmp_path / "out", ["dog"], mini(f"{base}/v1/"), 2)
        searches = [path for path in asked if "page=" in path]
        assert len(searches) == 2  # the second page was empty, whatever was promised
        (stored,) = (tmp_path / "out" / ".answers").rglob("001.json")
        stored.write_bytes(b"")
        shutil.rmtree(tmp_path / "out" / "dog")
        table = crawl(tmp_path / "out", ["dog"], mini(f"{base}/v1/"), 2)
    assert table["status"].tolist() == ["accepted"] and stored.stat().st_size > 0


def test_a_list_says_where_its_pictures_come_from_and_duplicates_are_found_across_classes(tmp_path):
    file = tmp_path / "urls.csv"
    with serving(lambda self: self.say(200, png(int(self.path[1]), 64 + 8 * (len(self.path) - 2)))) as base:
        lines = [
            "creator,class,url,licence,ignored",
            f'"Ann,\nBob",dog,{base}/1,by 4.0,x',
            f",cat,{base}/2,,",
            f",cat,{base}/1,,",  # exactly the dog
            f",dog,{base}/1,,",  # twice the same line is one candidate
            f",cat,{base}/1a,,",  # nearly the dog: only within a class
            f",cat,{base}/2a,,",
        ]
        file.write_text("\n".join(lines))
        config = CrawlConfig(source=str(file), allow_hosts=["127.0.0.1"], **FAST)
        table = crawl(tmp_path / "out", ["dog", "cat"], config, 3)
    assert table["class"].tolist() == ["dog", "cat", "cat", "cat", "cat"]
    assert table.loc[0, ["creator", "licence", "page"]].tolist() == ["Ann, Bob", "by 4.0", ""]
    assert table["reason"].tolist() == [
        "",
        "",
        "exact duplicate of dog/0000.png",
        "",
        "near duplicate of cat/0000.png",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url,page\nhttp://a.example/,\n", "has no column 'class'"),
        ("class,link\ndog,http://a.example/\n", "has no column 'url'"),
        ("class,url\nunicorn,http://a.example/\n", "has images of 'unicorn', which is not among the class names"),
        ("class,url\n", "has no rows"),
        ("", "cannot be read"),
        (b"class,url\ndog,\xff\xfe\n", "cannot be read"),
        (None, "'openverse', a CSV file or a folder"),
    ],
)
def test_bad_lists_are_one_line(tmp_path, text, message):
    file = tmp_path / "urls.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        crawl(tmp_path / "out", ["dog"], CrawlConfig(source=str(file)), 1)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>sign in", "is no answer of Openverse"),
        (200, b"[]", "is no answer of Openverse"),
        (200, b'{"page_count": 1}', "is no answer of Openverse"),
        (200, b'{"page_count": 1, "results": ["a"]}', "is no answer of Openverse"),
        (200, b'{"page_count": 1, "results": [{"url": null}]}', "is no answer of Openverse"),
        (200, b'\xff{"page_count": 1, "results": []}', "is no answer of Openverse"),
        (200, b"[" * 100_000, "is no answer of Openverse"),
        (401, b"", "HTTP 401: the token in OPENVERSE_TOKEN is wrong"),
        (429, b"", "HTTP 429: too many requests"),
        (400, b"", "HTTP 400: run again later, or correct `api`"),
        (503, b"", "HTTP 503: run again later, or correct `api`"),
    ],
)
def test_bad_answers_of_the_api_are_one_line(tmp_path, waits, status, body, message):
    with serving(lambda self: self.say(status, body)) as base, pytest.raises(UserError, match=message) as error:
        crawl(tmp_path / "out", ["dog"], mini(f"{base}/v1/"), 1)
    assert len(str(error.value).splitlines()) == 1
    assert content(tmp_path / "out") == {"manifest.csv": (",".join(crawling.COLUMNS) + "\n").encode()}


HELD: list[socket.socket] = []


def closed_port() -> int:
    """A port where nobody listens: bound, so that no other server gets it before the test is over."""
    HELD.append(socket.socket())
    HELD[-1].bind(("127.0.0.1", 0))
    return HELD[-1].getsockname()[1]


@pytest.mark.parametrize("count", [1, 12])
def test_no_network_is_one_line_and_nothing_is_lost(tmp_path, waits, count):
    port = closed_port()
    with pytest.raises(UserError, match="no network") as error:
        crawl(tmp_path / "api", ["dog"], mini(f"http://127.0.0.1:{port}/v1/"), 1)
    assert len(str(error.value).splitlines()) == 1
    config = config_for(tmp_path, [("dog", f"http://127.0.0.1:{port}/{k}") for k in range(count)])
    with pytest.raises(UserError, match="no network") as error:
        crawl(tmp_path / "out", ["dog"], config, count)
    assert len(str(error.value).splitlines()) == 1
    HELD.pop().close()
    with serving(lambda self: self.say(200, png(int(self.path[1:]))), port):
        table = crawl(tmp_path / "out", ["dog"], config, count)
    assert table["file"].tolist() == [f"dog/{k:04d}.png" for k in range(count)]


def test_many_dead_hosts_do_not_hold_the_crawl_for_ever(tmp_path, waits, monkeypatch):
    resolve = socket.getaddrinfo

    def resolved(host, *args, **options):
        if host.endswith(".dead"):
            raise socket.gaierror(-2, "Name or service not known")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with serving(lambda self: self.say(200, png(1))) as base:
        urls = [*(f"http://h{k}.dead/" for k in range(15)), f"{base}/"]
        config = config_for(tmp_path, [("dog", url) for url in urls])
        with pytest.raises(UserError, match=r"no network: http://h9\.dead/ and others"):
            crawl(tmp_path / "out", ["dog"], config, 3)
        table = crawl(tmp_path / "out", ["dog"], config, 3)
        assert table["reason"].tolist() == ["no connection, twice"] * 10 + ["no connection"] * 5 + [""]
        table = crawl(tmp_path / "out", ["dog"], config, 3)
        assert table["reason"].tolist() == ["no connection, twice"] * 15 + [""]
    before = len(waits)
    crawl(tmp_path / "out", ["dog"], config, 3)
    assert len(waits) == before


def test_a_host_that_is_down_is_not_the_network(tmp_path, waits):
    down = [f"http://127.0.0.1:{closed_port()}/{k}" for k in range(7)]
    # the good picture of `reasons` is on the same host name, so one name of its own stands for the dead host
    assert (
        reasons(
            tmp_path, [url.replace("127.0.0.1", "localhost") for url in down], allow_hosts=["127.0.0.1", "localhost"]
        )
        == ["no connection"] * 7
    )
    assert len(waits) == 3  # all attempts for the first picture, one for each of the others


# -- the folder -----------------------------------------------------------------------------------------------------


def test_only_as_many_candidates_as_allowed(tmp_path):
    seen = []
    with serving(lambda self: [seen.append(self.path), self.say(404)]) as base:
        config = config_for(tmp_path, [("dog", f"{base}/{k}") for k in range(30)], candidates_per_image=4)
        for _ in range(2):
            with pytest.raises(UserError, match=r"no web image of 'dog': .*manifest\.csv lists the reasons") as error:
                crawl(tmp_path / "out", ["dog"], config, 2)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(seen) == sorted(f"/{k}" for k in range(8))


def test_lost_images_come_back_and_stray_ones_are_replaced(tmp_path):
    with serving(lambda self: self.say(200, png(int(self.path[1:])))) as base:
        config = config_for(tmp_path, [("dog", f"{base}/{k}") for k in range(9)])
        crawl(tmp_path / "whole", ["dog"], config, 4)
        crawl(tmp_path / "out", ["dog"], config, 2)
        (tmp_path / "out" / "dog" / "0000.png").unlink()
        (tmp_path / "out" / "dog" / "0002.jpg").write_bytes(b"of a run that was killed")
        (tmp_path / "out" / "dog" / "0003.png").write_bytes(b"of a run that was killed")
        crawl(tmp_path / "out", ["dog"], config, 4)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_folders_that_are_no_crawl_are_left_alone(tmp_path):
    source = tmp_path / "mine" / "dog"
    source.mkdir(parents=True)
    (source / "0000.png").write_bytes(png(1))
    with pytest.raises(UserError, match=r"has files, but no manifest\.csv"):
        crawl(tmp_path / "mine", ["dog"], CrawlConfig(source=str(tmp_path / "mine")), 1)
    assert content(tmp_path / "mine") == {"dog/0000.png": png(1)}
    (tmp_path / "mine" / "manifest.csv").write_text("class,file\n")
    with pytest.raises(UserError, match="is no crawl's manifest"):
        crawl(tmp_path / "mine", ["dog"], CrawlConfig(source=str(tmp_path / "mine")), 1)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../dog", "a/b", "/etc", "a\\b", "dog\n", ".hidden", "a.b", "C:", "\x00"]
)
def test_class_names_stay_in_the_folder(tmp_path, name):
    with pytest.raises(UserError, match="is no folder name"):
        crawl(tmp_path / "out", ["dog", name], CrawlConfig(), 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["hot_dog", "Hot Dog", "hot dog"])
def test_two_classes_never_share_a_folder(tmp_path, other):
    with pytest.raises(UserError, match="share its folder"):
        crawl(tmp_path / "out", ["hot dog", other], CrawlConfig(), 1)


@pytest.mark.parametrize(
    "wrong", [{"apii": "http://a"}, {"api": "ftp://a/"}, {"timeout": 0}, {"largest_bytes": "1"}, {"smallest_side": 0}]
)
def test_wrong_settings_are_errors(wrong):
    with pytest.raises(ValidationError):
        CrawlConfig(**wrong)
