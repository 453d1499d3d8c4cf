"""Where an answer leads, and whether that is the same server."""

from __future__ import annotations

from urllib.parse import urljoin

import urllib3

from ....erofs.errors import BackendError
from .client import Answer, Request

_URL_LIMIT = 16384  # characters


def location_of(request: Request, answer: Answer) -> str:
    """The absolute URL of an answer's Location header; BackendError if it has none that is http(s)."""
    location = answer.header("Location", _URL_LIMIT)
    try:
        parts = urllib3.util.parse_url(urljoin(request.url, location))
    except ValueError:  # LocationParseError is one
        parts = urllib3.util.Url()
    if not location or parts.scheme not in ("http", "https") or not parts.host or parts.auth:
        raise BackendError(f"{request.what}: {answer.where} leads to no http(s) address", retryable=False)
    return parts._replace(fragment=None).url


def origin(url: str) -> tuple[str | None, str | None, int]:
    """Scheme, host and port: what credentials are for."""
    parts = urllib3.util.parse_url(url)
    return parts.scheme, parts.host, parts.port or (443 if parts.scheme == "https" else 80)
