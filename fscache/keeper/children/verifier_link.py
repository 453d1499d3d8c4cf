"""The keeper's hold on its verifier."""

from __future__ import annotations

from collections.abc import Callable

from ...processes import VERIFIER
from ...proto import verifier as proto
from ..ticker import Ticker
from .process_link import ProcessLink


class VerifierLink(ProcessLink):
    """One verifier at a time. ``start``: what each is started with; the others as of ``ProcessLink``."""

    def __init__(
        self, start: proto.Start, on_start: Callable[[], None], on_end: Callable[[], None], ticker: Ticker
    ) -> None:
        super().__init__(VERIFIER, proto.decode_for_keeper, proto.Ping(), on_start, on_end, ticker)
        self._start = start

    def started_with(self) -> str:
        return proto.encode_start(self._start)

    def works(self, said: object) -> bool:
        return isinstance(said, proto.Present | proto.Progress)
