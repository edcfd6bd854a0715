"""Downloads that are polite to servers and believe nothing they send: addresses, limits, retries (paper 3.4)."""

import contextlib
import importlib.metadata
import io
import ipaddress
import logging
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import tenacity
import urllib3
from requests.adapters import HTTPAdapter
from requests_hardened.ip_filter import InvalidIPAddress
from requests_hardened.ip_filter_adapter import IPFilterAdapter

from usam.config import CrawlConfig

UNREACHABLE, BROKEN, LATE = "no connection", "connection broken", "time-out"
PASSING = {UNREACHABLE, BROKEN, LATE, *(f"HTTP {status}" for status in (429, 500, 502, 503, 504))}
BACK_OFF = tenacity.wait_exponential_jitter(initial=1, max=30, jitter=1)
REDIRECTED = requests.sessions.SessionRedirectMixin().get_redirect_target
ATTEMPTS, LONGEST_WAIT, REDIRECTS = 4, 120, 5  # requests for the same thing; seconds; hops

logging.getLogger("requests_hardened").addHandler(logging.NullHandler())  # the reason says which host was refused
_mine = threading.local()  # of a download: `left` seconds, and `hurry`, which raises when they are over


class Rejected(Exception):
    """Why a candidate is not kept; `wait`: seconds after which the server wants to be asked again."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class _Hurried(io.RawIOBase):
    """Bytes from the net, until the download's time is over: a time-out alone begins anew with each byte."""

    def __init__(self, raw: io.RawIOBase):
        self.raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        _mine.hurry()
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Reply(HTTPResponse):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Hurried(self.fp.detach()))


class _Http(urllib3.connection.HTTPConnection):
    response_class = _Reply


class _Https(urllib3.connection.HTTPSConnection):
    response_class = _Reply


class _Adapter(IPFilterAdapter):
    """Connects to public addresses only: to the very address that was checked."""

    def __init__(self, scheme: str, allow_hosts: list[str]):
        super().__init__(is_https_proto=scheme == "https")
        self.connections, self.allow_hosts = {"http": _Http, "https": _Https}[scheme], allow_hosts

    def build_connection_pool_key_attributes(self, request, verify, cert=None):
        if urlsplit(request.url).hostname in self.allow_hosts:
            return HTTPAdapter.build_connection_pool_key_attributes(self, request, verify, cert)
        place, options = super().build_connection_pool_key_attributes(request, verify, cert)
        address = ipaddress.ip_address(place["host"].strip("[]"))
        if address.is_reserved or getattr(address, "is_site_local", False):  # requests-hardened lets some of them pass
            raise InvalidIPAddress(address)
        return place, options

    def get_connection_with_tls_context(self, *args, **options):
        pool = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = self.connections
        return pool


class Web:
    """Polite, guarded and limited downloads, from several threads.

    requests' sessions are left out on purpose: they follow redirects, keep cookies, and take passwords and proxies
    (which would choose the address that is connected to) from the environment.
    """

    def __init__(self, config: CrawlConfig):
        self.config = config
        self.agent = f"usam/{importlib.metadata.version('usam')} (research; +images for class names)"
        self.adapters = {scheme: _Adapter(scheme, config.allow_hosts) for scheme in ("http", "https")}
        self.locks: dict[str, threading.Lock] = {}
        self.ready: dict[str, float] = {}  # when a host may be asked again
        self.reached: set[str] = set()  # hosts that answered, whatever it was
        self.silent: set[str] = set()  # hosts that did not, in spite of all attempts: asked once for other images
        self.stop = threading.Event()

    def close(self) -> None:
        """Ends what other threads are at."""
        self.stop.set()
        for adapter in self.adapters.values():
            adapter.close()

    def sleep(self, seconds: float) -> None:
        self.stop.wait(max(0, seconds))

    def fetch(self, url: str, token: str = "") -> bytes:
        """The body behind `url`; a token goes to its origin only.

        Raises:
            Rejected: no such body; the reason is the same whenever the server does the same.
        """
        _mine.left, _mine.hurry = self.config.seconds_per_image, self._hurry
        been: list[SplitResult] = []
        for _ in range(REDIRECTS + 1):
            place = _checked(url)
            if place in been:
                raise Rejected("redirect loop")
            if been and been[-1].scheme == "https" and place.scheme == "http":
                raise Rejected("refused: redirect from https to http")
            been.append(place)
            headers = {"User-Agent": self.agent, "Accept-Encoding": "identity"}
            if token and place[:2] == been[0][:2]:
                headers["Authorization"] = f"Bearer {token}"
            try:
                body, url = self._insist(place, headers)
            except Rejected as rejection:
                behind = rejection.reason == UNREACHABLE and len(been) > 1  # another host answered: there is a network
                raise Rejected(BROKEN) if behind else rejection from None
            if url is None:
                return body
        raise Rejected(f"more than {REDIRECTS} redirects")

    def _insist(self, place: SplitResult, headers: dict[str, str]) -> tuple[bytes, str | None]:
        """The host is nobody else's meanwhile: while it wants us to wait, it is not asked for other images either."""
        host = place.hostname
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: getattr(error, "reason", "") in PASSING),
            stop=lambda state: (
                state.attempt_number >= ATTEMPTS or host in self.silent or self.stop.is_set() or _mine.left <= 0
            ),
            wait=_wait,
            sleep=self.sleep,
            reraise=True,
        )
        with self.locks.setdefault(host, threading.Lock()):
            try:
                return again(self._once, place, headers)
            except Rejected as rejection:
                if rejection.reason == UNREACHABLE:
                    self.silent.add(host)
                raise

    def _once(self, place: SplitResult, headers: dict[str, str]) -> tuple[bytes, str | None]:
        """One request: the body, or b"" and where it is."""
        self.sleep(self.ready.get(place.hostname, 0) - time.monotonic())
        start = time.monotonic()
        _mine.end = start + _mine.left
        try:
            with _reasons(place.hostname):
                _mine.hurry()
                request = requests.Request("GET", place.geturl(), headers=headers).prepare()
                wait = min(self.config.timeout, _mine.left)
                with self.adapters[place.scheme].send(request, stream=True, timeout=wait) as response:
                    self.reached.add(place.hostname)
                    self.silent.discard(place.hostname)
                    return _body(response, self.config.largest_bytes)
        finally:
            end = time.monotonic()
            _mine.left -= end - start
            api = place.hostname == urlsplit(self.config.api).hostname
            pause = self.config.seconds_between_api_requests if api else self.config.seconds_between_requests
            self.ready[place.hostname] = end + pause

    def _hurry(self) -> None:
        if self.stop.is_set() or time.monotonic() >= _mine.end:
            raise Rejected(LATE)


def _checked(url: str) -> SplitResult:
    try:
        place = urlsplit(url)
    except ValueError:
        raise Rejected("no valid address") from None
    if place.scheme not in ("http", "https"):
        raise Rejected("refused: only http and https")
    if not place.hostname:
        raise Rejected("no valid address")
    return place


@contextlib.contextmanager
def _reasons(host: str) -> Iterator[None]:
    """What the libraries raise, as reasons without timing, ports or addresses in them."""
    try:
        yield
    except InvalidIPAddress:
        raise Rejected(f"refused: {host} has no public address") from None
    except (requests.exceptions.SSLError, urllib3.exceptions.SSLError):
        raise Rejected("no valid certificate") from None
    except requests.ConnectTimeout:
        raise Rejected(UNREACHABLE) from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise Rejected(LATE) from None
    except requests.ConnectionError as error:
        broken = isinstance(error.args[0], urllib3.exceptions.ProtocolError)  # there was one
        raise Rejected(BROKEN if broken else UNREACHABLE) from None
    except urllib3.exceptions.ProtocolError:
        raise Rejected(BROKEN) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError):
        raise Rejected("no valid address or answer") from None


def _body(response: requests.Response, largest: int) -> tuple[bytes, str | None]:
    if (reason := f"HTTP {response.status_code}") in PASSING:
        raise Rejected(reason, _told(response))
    if target := REDIRECTED(response):
        return b"", urljoin(response.url, target)
    if response.status_code != 200:
        raise Rejected(reason)
    content = bytearray()
    while piece := response.raw.read1(2**16, decode_content=True):  # what is there; read() would wait for all of it
        content += piece
        if len(content) > largest:
            raise Rejected(f"larger than {largest} bytes")
    return bytes(content), None


def _told(response: requests.Response) -> float | None:
    """Seconds of Retry-After, which may be a date."""
    try:
        return urllib3.Retry(retry_after_max=LONGEST_WAIT).get_retry_after(response.raw)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def _wait(state: tenacity.RetryCallState) -> float:
    told = state.outcome.exception().wait
    return BACK_OFF(state) if told is None else told
