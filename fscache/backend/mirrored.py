"""A client with mirrors: other servers with the same objects, asked before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..config.backend import Mirror
from .base import Client
from .http.deadline import within
from .http.routes import Routes, mirror_route

T = TypeVar("T")


class Mirrored:
    """Wraps a client. What its mirrors cannot give is for the client itself to give, or to say why not.

    Args:
        ping: raises BackendError unless a server answers well at a URL.
        base: seconds that each server may take for a whole request, beside those for its bytes.
    """

    def __init__(self, origin: Client, mirrors: Sequence[Mirror], ping: Callable[[str], object], base: float) -> None:
        self.label, self._base = origin.label, base
        self._routes = Routes([mirror_route(mirror, origin.at(mirror)) for mirror in mirrors], origin, ping)

    def call(self, request: Callable[[Client], T]) -> T:
        """Make any request of the client."""

        def timed(client: Client) -> T:
            with within(self._base):
                return request(client)

        return self._routes.first_good(timed)
