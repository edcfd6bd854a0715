"""The miniature's web: a server on this machine that answers like Openverse, with drawings in place of photographs."""

import io
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from miniature.datasets import web
from usam.errors import UserError

# Faults by place in every class's list, which repeat: 7 of 28 results are bad, three more need patience.
ROUND = 28
RESULTS = 240  # of each class, as many as Openverse shows
# fine in the end
MOVED = 1
BUSY = 4
SLOW = 7
# never fine
MISSING = 2
PAGE = 5
CUT = 8
SAME = 11
ALIKE = 15
TINY = 19
LOOP = 23


@contextmanager
def serve(class_names: list[str], port: int = 0) -> Iterator[str]:
    """Serve 127.0.0.1 while the block runs; yields the base URL for `CrawlConfig.api`.

    Each class has `RESULTS` results; a quarter of them is bad: missing, a web page, cut short, a copy, nearly a copy,
    tiny, a redirect loop. Others have moved, are slow, or are busy at first, and are fine then. Pictures and their
    order are always the same. Waits are short, and only every third class has them, so that a run does not take longer.

    Args:
        class_names: classes of the drawn world, or the paper's superclasses.
        port: a free one by default; name it when a crawl continues with a new server.

    Raises:
        UserError: the drawn world has no such class; the port is in use.
    """
    for name in class_names:
        web(name, 0)  # an unknown class is an error here, not in the server's threads
    try:
        server = _Server(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise UserError(
            f"port {port} of this machine is in use ({error.strerror}): wait for the other run, or correct `api`"
        ) from error
    server.class_names, server.requested = class_names, set()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{server.address}/v1/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for them

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client may hang up."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a client that sends nothing

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        words = place.path.strip("/").split("/")
        if words == ["v1", "images"]:
            self._results({key: values[0] for key, values in parse_qs(place.query).items()})
        elif words[0] == "pictures" and words[1].replace("_", " ") in self.server.class_names:
            self._picture(words[1].replace("_", " "), int(words[2]), words[3:])
        else:
            self._answer(404)

    def _results(self, query: dict[str, str]) -> None:
        name, page, size = query.get("q", ""), int(query.get("page", 1)), int(query.get("page_size", 20))
        count = RESULTS if name in self.server.class_names else 0
        if size > 20:
            return self._json(401, {"detail": "page_size must be between 1 and 20 for anonymous requests."})
        if page > max(1, math.ceil(count / size)):
            return self._json(404, {"detail": "Invalid page."})
        places = range(count)[(page - 1) * size : page * size]
        answer = dict(result_count=count, page_count=math.ceil(count / size), page_size=size, page=page)
        self._json(200, answer | {"results": [_result(self.server.address, name, place) for place in places]})

    def _picture(self, name: str, place: int, extra: list[str]) -> None:
        """Send what is at a place of a class's list; `extra` are further words of the path, in redirects."""
        kind, path = place % ROUND, urlsplit(self.path).path
        if kind == MISSING:
            self._answer(404)
        elif kind == PAGE:
            self._answer(200, b"<!DOCTYPE html><title>Sign in</title>", "image/jpeg")
        elif kind == LOOP:
            self._answer(302, location=path.removesuffix("/again") if extra else f"{path}/again")
        elif kind == MOVED and not extra:
            self._answer(301, location=f"{path}/here")
        elif kind == BUSY and self.server.class_names.index(name) % 3 == 0 and self._first_time(path):
            self._answer(429, wait=1)
        else:
            time.sleep(0.1 * (kind == SLOW))
            self._answer(200, _photograph(name, place), "image/jpeg")

    def _first_time(self, path: str) -> bool:
        first = path not in self.server.requested
        self.server.requested.add(path)
        return first

    def _json(self, status: int, content: dict) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(
        self, status: int, body: bytes = b"", kind: str = "text/html", location: str = "", wait: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Location": location, "Retry-After": wait}.items():
            if value:
                self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _result(address: str, name: str, place: int) -> dict:
    """Return a result as Openverse describes it."""
    url = f"{address}/pictures/{name.replace(' ', '_')}/{place}"
    licence = ("by", "by-sa", "cc0", "pdm")[place % 4]
    return dict(
        id=f"{name}-{place}",
        title=f"{name} {place}",
        url=url,
        foreign_landing_url=f"{url}/about",
        creator=f"nobody {place % 5}",
        license=licence,
        license_version="1.0" if licence in ("cc0", "pdm") else "2.0",
        license_url="https://creativecommons.org/licenses/",
        width=192,
        height=192,
    )


def _photograph(name: str, place: int) -> bytes:
    """Return the JPEG at a place; a copy is of the first image in its round."""
    kind = place % ROUND
    index = place - kind if kind in (SAME, ALIKE) else place
    image = Image.fromarray(web(name, index))
    if kind == TINY:
        image = image.resize((20, 20))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40 if kind == ALIKE else 90)
    return file.getvalue()[: file.tell() // 2] if kind == CUT else file.getvalue()
