"""The one table of what a worker may say.

Each kind of message has one handler. ``proto/worker.py`` bounds every field; the handlers refuse what cannot be true
(``LieError``). Whatever else comes ends that worker, never the keeper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ...kernel.fd import Fd
from ...proto import worker as proto
from ..stores.lies import LieError
from ..stores.news import News
from .traffic import TrafficTable

Handler = Callable[[Any], None]


def table(stores: News, traffic: TrafficTable, on_answer: Handler) -> Mapping[type, Handler]:
    """Message type -> its handler."""
    return {
        proto.Progress: stores.on_progress,
        proto.Failed: stores.on_failed,
        proto.Postponed: stores.on_postponed,
        proto.Present: stores.on_present,
        proto.Synced: stores.on_synced,
        proto.Traffic: traffic.on_news,
        proto.Pong: lambda _: None,  # any word tells that it hears
        proto.Inspected: on_answer,
        proto.Peeked: on_answer,
        proto.RangeFetched: on_answer,
        proto.BootstrapFetched: on_answer,
        proto.NotDone: on_answer,
    }


def handle(handlers: Mapping[type, Handler], packet: bytes, fds: list[Fd]) -> proto.ToKeeper:
    """Do what one packet of a worker says, and give it; LieError for anything that it may not say."""
    if fds:
        raise LieError("descriptors")
    try:
        message = proto.decode_for_keeper(packet)
    except msgspec.DecodeError as error:
        raise LieError(str(error)) from None
    handlers[type(message)](message)
    return message
