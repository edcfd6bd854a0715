"""Openverse's search for openly licensed images (paper 3.4), https://api.openverse.org."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from usam.data.class_names import folder_name
from usam.data.http import UNREACHABLE, Rejected, Web
from usam.errors import UserError
from usam.files import write_atomically

PAGE_SIZE = 20  # results, the largest that Openverse gives to those without a token
ANONYMOUS_PAGES = 12  # Openverse shows them no more than 240 results
FINISHED = "finished images stay"
ADVICE = {
    "HTTP 401": "the token in OPENVERSE_TOKEN is wrong or missing: correct or unset it",
    "HTTP 429": f"too many requests: run again tomorrow, or set OPENVERSE_TOKEN; {FINISHED}",
    UNREACHABLE: f"no network? connect and run again; {FINISHED}",
}


def results(answers: Path, web: Web, name: str) -> Iterator[tuple[str, str | None, str | None, str]]:
    """Yield url, page, creator and licence of each result; an answer is stored in `answers` and not requested again.

    Raises:
        UserError: no network, no more requests allowed, or something that is no answer of Openverse.
    """
    token = os.environ.get("OPENVERSE_TOKEN", "").strip()
    for page in itertools.count(1):
        file = answers / folder_name(name) / f"{page:03d}.json"
        if (answer := _stored(file)) is None:
            query = urlencode({"q": name, "page": page, "page_size": PAGE_SIZE, "mature": "false"})
            url = f"{web.config.api.rstrip('/')}/images/?{query}"
            try:
                content = web.fetch(url, token)
            except Rejected as rejection:
                advice = ADVICE.get(rejection.reason, f"run again later, or correct `api`; {FINISHED}")
                raise UserError(f"{url}: {rejection.reason}: {advice}") from None
            answer = _parsed(content, url)
            write_atomically(file, content)
        for item in answer["results"]:
            licence = f"{item.get('license') or ''} {item.get('license_version') or ''}"
            yield item["url"], item.get("foreign_landing_url"), item.get("creator"), licence
        last = page >= answer["page_count"] or (page >= ANONYMOUS_PAGES and not token)
        if last or not answer["results"]:  # some servers count pages that they do not have
            return


def _stored(file: Path) -> dict | None:
    """An answer of an earlier run; None if there is none, or it is damaged."""
    try:
        return _parsed(file.read_bytes(), str(file))
    except (OSError, UserError):
        return None


def _parsed(content: bytes, where: str) -> dict:
    try:
        answer = json.loads(content)
        if isinstance(answer["page_count"], int) and all(isinstance(item["url"], str) for item in answer["results"]):
            return answer
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UserError(
        f"{where} is no answer of Openverse (JSON with page_count and results): correct `api`, or run again later"
    )
