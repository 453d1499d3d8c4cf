"""The Authorization header of requests to one registry: basic ones, a given token, or one from a token server.

Nothing is sent before the registry asks for it. Tokens are kept for each purpose until shortly before they expire,
and fetched by one thread at a time, for which the others wait.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from ....erofs.errors import BackendError, DeniedError
from ...config import backend as config
from ...credentials.basic import IDENTITY_USER, decode
from ...decoding import decoded
from ..http.client import Answer, Request
from ..http.deadline import result
from .challenges import Challenge, parse_challenges

_DEFAULT_SECONDS = 60.0  # of a token that does not say how long it is valid
_LONGEST_SECONDS = 86400.0
_TOKEN_LIMIT = 65536  # bytes of a token server's answer
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what fits into a header
_CLIENT = "nydus-erofs"


class _Answer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


class _Kept(NamedTuple):
    header: str
    until: float  # of time.monotonic


class Tokens:
    """Knows how to be let in, once the registry has said how. Safe for several threads.

    Args:
        send: sends a request to a token server.
        tls: whether the registry itself is behind TLS.
    """

    def __init__(self, backend: config.Registry, send: Callable[[Request], Answer], tls: Callable[[], bool]) -> None:
        self._user, self._password = decode(backend.auth) if backend.auth else ("", "")
        self._auth = backend.auth.strip()
        self._given = backend.registry_token
        self._tls = tls
        self._repo = backend.repo
        self._what = f"token for {config.describe(backend)}"
        self._send = send
        self._challenges: dict[str, Challenge] = {}  # by purpose, what the registry asked for last
        self._kept: dict[str, _Kept] = {}
        self._flights: dict[str, Future[str]] = {}
        self._lock = threading.Lock()

    def header(self, actions: str) -> str:
        """The Authorization header for ``pull`` or ``pull,push``; "" while the registry asked for nothing."""
        if self._given:
            return f"Bearer {self._given}"
        with self._lock:
            kept, challenge = self._kept.get(actions), self._challenges.get(actions)
        if kept and time.monotonic() < kept.until:
            return kept.header
        return self._obtain(actions, challenge) if challenge else ""

    def renewed(self, actions: str, refused: str, challenges: str) -> str:
        """Another header after the registry answered 401; "" when there is none to be had.

        Args:
            refused: the header that it was sent.
            challenges: its WWW-Authenticate header.
        """
        challenge = self._answerable(parse_challenges(challenges))
        if self._given or challenge is None:
            return ""
        with self._lock:
            self._challenges[actions] = challenge
            kept = self._kept.get(actions)
            if kept and kept.header == refused:
                del self._kept[actions]
        if kept and kept.header != refused:
            return kept.header  # another thread was faster
        header = self._obtain(actions, challenge)
        return header if header != refused else ""

    def _answerable(self, challenges: list[Challenge]) -> Challenge | None:
        for challenge in challenges:
            if challenge.scheme == "bearer" or (
                challenge.scheme == "basic" and self._user not in ("", IDENTITY_USER)
            ):
                return challenge
        return None

    def _obtain(self, actions: str, challenge: Challenge) -> str:
        """A header for the challenge, fetched once for all threads that want it at the same time."""
        if challenge.scheme == "basic":
            return f"Basic {self._auth}"
        with self._lock:
            flight = self._flights.get(actions)
            mine = flight is None
            if flight is None:
                flight = self._flights[actions] = Future()
        if mine:
            self._fetch_for_all(actions, challenge, flight)
        return result(flight, self._what)

    def _fetch_for_all(self, actions: str, challenge: Challenge, flight: Future[str]) -> None:
        try:
            kept = self._fetch(actions, challenge)
        except BaseException as error:
            with self._lock:
                del self._flights[actions]
            flight.set_exception(error)
        else:
            with self._lock:
                self._kept[actions] = kept
                del self._flights[actions]
            flight.set_result(kept.header)

    def _fetch(self, actions: str, challenge: Challenge) -> _Kept:
        begin = time.monotonic()
        answer = self._send(self._request(actions, challenge))
        if not answer.good:
            raise answer.error(self._what)
        try:
            said = decoded(_ANSWER, answer.body)
        except msgspec.DecodeError:
            raise BackendError(f"{self._what}: {answer.where} answers no JSON of the known form") from None
        token = said.token or said.access_token
        if not _TOKEN.fullmatch(token):
            raise BackendError(f"{self._what}: {answer.where} answers without a token")
        seconds = min(max(said.expires_in or _DEFAULT_SECONDS, 0.0), _LONGEST_SECONDS)
        return _Kept(f"Bearer {token}", begin + seconds - min(seconds / 4, 10.0))

    def _request(self, actions: str, challenge: Challenge) -> Request:
        realm = challenge.realm
        scope = challenge.scope or f"repository:{self._repo}:{actions}"
        if not realm.startswith(("http://", "https://")) or len(realm) > 2048 or not realm.isprintable():
            raise DeniedError(f"{self._what}: the registry names no http(s) address of its token server")
        if self._user and self._tls() and not realm.startswith("https://"):
            raise DeniedError(
                f"{self._what}: the registry names a token server without TLS",
                hint="credentials are not sent in the clear",
            )
        query = {"service": challenge.service, "scope": scope, "client_id": _CLIENT}
        if self._user == IDENTITY_USER:
            form = urlencode({**query, "grant_type": "refresh_token", "refresh_token": self._password}).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return Request("POST", realm, self._what, headers, form, limit=_TOKEN_LIMIT, end_to_end=True)
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        headers = {"Authorization": f"Basic {self._auth}"} if self._user else {}
        return Request("GET", url, self._what, headers, limit=_TOKEN_LIMIT, end_to_end=True)
