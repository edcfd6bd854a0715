"""Downloads that are polite to servers and trust nothing they send: addresses, limits, retries (paper 3.4)."""

import importlib.metadata
import io
import ipaddress
import logging
import random
import threading
import time
from functools import partial
from http.client import HTTPResponse
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests_hardened.ip_filter import InvalidIPAddress
from requests_hardened.ip_filter_adapter import IPFilterAdapter

from usam.data.sources import CrawlConfig

UNREACHABLE = "no connection"
BROKEN = "connection broken"
LATE = "time-out"
TEMPORARY = {UNREACHABLE, BROKEN, LATE, *(f"HTTP {status}" for status in (429, 500, 502, 503, 504))}
ATTEMPTS = 4  # requests for the same address
MAX_REDIRECTS = 5
RETRY_AFTER = urllib3.Retry(retry_after_max=120).get_retry_after  # seconds, also from a date
REDIRECT_TARGET = requests.Session().get_redirect_target

logging.getLogger("requests_hardened").addHandler(logging.NullHandler())  # the reason names the host already
_thread = threading.local()  # of this thread's download: seconds `left`, `end` of the request, event `stop`


class Rejected(Exception):
    """Tells why a candidate is not accepted; `wait` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class _TimedReader(io.RawIOBase):
    """Reads until the time is over; a socket's time-out alone starts again with every byte, of headers too."""

    def __init__(self, raw: io.RawIOBase):
        self.raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        if _thread.stop.is_set() or time.monotonic() >= _thread.end:
            raise TimeoutError
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


def _timed_response(*args, **options) -> HTTPResponse:
    response = HTTPResponse(*args, **options)
    response.fp = io.BufferedReader(_TimedReader(response.fp.detach()))
    return response


def _connection(kind: type, **options) -> urllib3.connection.HTTPConnection:
    connection = kind(**options)
    connection.response_class = _timed_response
    return connection


class _Adapter(IPFilterAdapter):
    """Connects to public addresses only, and to the very address that was checked."""

    def __init__(self, scheme: str, allow_hosts: list[str]):
        super().__init__(is_https_proto=scheme == "https")
        self.allow_hosts = allow_hosts

    def build_connection_pool_key_attributes(self, request, verify, cert=None):
        if urlsplit(request.url).hostname in self.allow_hosts:  # requests-hardened allows all of loopback, or nothing
            return HTTPAdapter.build_connection_pool_key_attributes(self, request, verify, cert)
        host, options = super().build_connection_pool_key_attributes(request, verify, cert)
        address = ipaddress.ip_address(host["host"].strip("[]"))
        if address.is_reserved or getattr(address, "is_site_local", False):  # requests-hardened lets some of them pass
            raise InvalidIPAddress(address)
        return host, options

    def get_connection_with_tls_context(self, *args, **options):
        pool = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = partial(_connection, type(pool).ConnectionCls)
        return pool


class Web:
    """Downloads from several threads: each host gets one request at a time, and a pause after it.

    The adapters are used without a session: `requests.Session`, and `requests_hardened.HTTPSession` with it, reads the
    whole body of a redirect whatever its size, keeps cookies, and takes proxies and passwords from the environment.
    """

    def __init__(self, config: CrawlConfig):
        self.config = config
        self.agent = f"usam/{importlib.metadata.version('usam')} (research; +images for class names)"
        self.adapters = {scheme: _Adapter(scheme, config.allow_hosts) for scheme in ("http", "https")}
        self.locks: dict[str, threading.Lock] = {}
        self.ready: dict[str, float] = {}  # when the pause of a host is over
        self.reached: set[str] = set()  # hosts that answered, whatever the answer
        self.unreachable: set[str] = set()  # hosts that did not, in all attempts: one attempt for each other image
        self.stop = threading.Event()

    def close(self) -> None:
        """End the downloads of other threads."""
        self.stop.set()
        for adapter in self.adapters.values():
            adapter.close()

    def sleep(self, seconds: float) -> None:
        self.stop.wait(max(0, seconds))

    def fetch(self, url: str, token: str = "") -> bytes:
        """Return the body behind `url`; a token goes to its origin only.

        Raises:
            Rejected: there is no such body; the reason is the same whenever the server does the same.
        """
        _thread.left, _thread.stop = self.config.seconds_per_image, self.stop
        visited: list[SplitResult] = []
        while url is not None:
            parts = _checked(url, visited)
            visited.append(parts)
            headers = {"User-Agent": self.agent, "Accept-Encoding": "identity"}
            if token and parts[:2] == visited[0][:2]:
                headers["Authorization"] = f"Bearer {token}"
            try:
                body, url = self._with_retries(parts, headers)
            except Rejected as rejection:
                if rejection.reason == UNREACHABLE and len(visited) > 1:  # another host answered: there is a network
                    raise Rejected(BROKEN) from None
                raise
        return body

    def _with_retries(self, parts: SplitResult, headers: dict[str, str]) -> tuple[bytes, str | None]:
        """Repeat a request; no other goes to the host meanwhile, not even in the waits.

        `urllib3.Retry` would not repeat a body that breaks off, and its waits could not be interrupted.
        """
        host = parts.hostname
        with self.locks.setdefault(host, threading.Lock()):
            for attempt in range(ATTEMPTS):
                try:
                    return self._request(parts, headers)
                except Rejected as rejection:
                    ended = self.stop.is_set() or _thread.left <= 0
                    last = ended or attempt == ATTEMPTS - 1 or host in self.unreachable
                    if rejection.reason == UNREACHABLE and last:
                        self.unreachable.add(host)
                    if rejection.reason not in TEMPORARY or last:
                        raise
                    self.sleep(2**attempt + random.random() if rejection.wait is None else rejection.wait)

    def _request(self, parts: SplitResult, headers: dict[str, str]) -> tuple[bytes, str | None]:
        """Make one request; returns the body and None, or b"" and the address of a redirect."""
        host, is_api = parts.hostname, parts.hostname == urlsplit(self.config.api).hostname
        self.sleep(self.ready.get(host, 0) - time.monotonic())
        start = time.monotonic()
        _thread.end = start + _thread.left
        try:
            if self.stop.is_set() or _thread.left <= 0:
                raise requests.Timeout
            request = requests.Request("GET", parts.geturl(), headers=headers).prepare()
            timeout = min(self.config.timeout, _thread.left)
            with self.adapters[parts.scheme].send(request, stream=True, timeout=timeout) as response:
                self.reached.add(host)
                self.unreachable.discard(host)
                return _content(response, self.config.largest_bytes)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise Rejected(_reason(error, host)) from None
        finally:
            end = time.monotonic()
            _thread.left -= end - start
            pause = self.config.seconds_between_api_requests if is_api else self.config.seconds_between_requests
            self.ready[host] = end + pause


def _checked(url: str, visited: list[SplitResult]) -> SplitResult:
    """Split an address that may be requested after the addresses that redirected to it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Rejected("no valid address") from None
    reasons = {
        f"more than {MAX_REDIRECTS} redirects": len(visited) > MAX_REDIRECTS,
        "refused: only http and https": parts.scheme not in ("http", "https"),
        "no valid address": not parts.hostname,
        "redirect loop": parts in visited,
        "refused: redirect from https to http": parts.scheme == "http" and "https" in [hop.scheme for hop in visited],
    }
    for reason, applies in reasons.items():
        if applies:
            raise Rejected(reason)
    return parts


def _reason(error: Exception, host: str) -> str:
    """Name a library's exception, without times, ports or addresses in it."""
    cause = error.args[0] if error.args else None
    names = {
        f"refused: {host} has no public address": isinstance(error, InvalidIPAddress),
        "no valid certificate": isinstance(error, requests.exceptions.SSLError),
        UNREACHABLE: isinstance(error, requests.ConnectTimeout),
        LATE: isinstance(error, requests.Timeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError),
        BROKEN: isinstance(error, requests.exceptions.ChunkedEncodingError)
        or isinstance(cause, urllib3.exceptions.ProtocolError),
    }
    other = UNREACHABLE if isinstance(error, requests.ConnectionError) else "no valid address or answer"
    return next((name for name, applies in names.items() if applies), other)


def _content(response: requests.Response, largest: int) -> tuple[bytes, str | None]:
    if (reason := f"HTTP {response.status_code}") in TEMPORARY:
        try:
            raise Rejected(reason, RETRY_AFTER(response.raw))
        except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
            raise Rejected(reason) from None
    if target := REDIRECT_TARGET(response):
        return b"", urljoin(response.url, target)
    if response.status_code != 200:
        raise Rejected(reason)
    content = bytearray()
    for piece in response.iter_content(2**16):
        content += piece
        if len(content) > largest:
            raise Rejected(f"larger than {largest} bytes")
    return bytes(content), None
