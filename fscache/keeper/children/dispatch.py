"""The tables of what worker and verifier may say.

Each kind of message has one handler. ``proto/worker.py`` and ``proto/verifier.py`` bound every field; the handlers
refuse what cannot be true (``LieError``). Whatever else comes ends that process, never the keeper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ...kernel.fd import Fd
from ...proto import verifier, worker
from ..scrub import Scrub
from ..stores.lies import LieError
from ..stores.news import News
from .traffic import TrafficTable

Handler = Callable[[Any], None]


def of_worker(stores: News, traffic: TrafficTable, on_answer: Handler) -> Mapping[type, Handler]:
    """Message type -> its handler."""
    return {
        worker.Fetched: stores.on_fetched,
        worker.Failed: stores.on_failed,
        worker.Postponed: stores.on_postponed,
        worker.Traffic: traffic.on_news,
        worker.Pong: lambda _: None,  # any word tells that it hears
        worker.Inspected: on_answer,
        worker.Peeked: on_answer,
        worker.RangeFetched: on_answer,
        worker.BootstrapFetched: on_answer,
        worker.NotDone: on_answer,
    }


def of_verifier(stores: News, scrub: Scrub) -> Mapping[type, Handler]:
    """The same for what the verifier says."""
    return {
        verifier.Present: stores.on_present,
        verifier.Progress: stores.on_progress,
        verifier.Closed: stores.on_closed,
        verifier.Checked: scrub.on_checked,
        verifier.Unreadable: scrub.on_unreadable,
        verifier.Scrubbed: scrub.on_scrubbed,
        verifier.Shortened: scrub.on_shortened,
        verifier.Pong: lambda _: None,
    }


def handle(decode: Callable[[bytes], Any], handlers: Mapping[type, Handler], packet: bytes, fds: Sequence[Fd]) -> Any:
    """Do what one packet says, and give it; LieError for anything that it may not say."""
    if fds:
        raise LieError("descriptors")
    try:
        message = decode(packet)
    except msgspec.DecodeError as error:
        raise LieError(str(error)) from None
    handlers[type(message)](message)
    return message
