"""Messages between keeper and ``prepare``, the short-lived process that localizes a bootstrap."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ..decoding import decoded
from .fault import Fault

MAX_MESSAGE = 1 << 16


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    pass


class Prepare(_Message):
    """Localize the bootstrap (first descriptor) into the empty folder (second descriptor), or make only plans."""

    segment_size: int
    localize: bool


class Bytes(_Message):
    """What was asked for (one descriptor): a file that holds the blob's bytes from ``base`` on."""

    base: int


class NoBytes(_Message):
    """Why it cannot be had."""

    fault: Fault


class NeedBytes(_Message):
    """Give me these bytes of a blob."""

    blob_id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
    offset: Annotated[int, Meta(ge=0, lt=1 << 53)]
    length: Annotated[int, Meta(gt=0, le=1 << 30)]


class Prepared(_Message):
    """Done: everything is in the folder."""


class NotPrepared(_Message):
    """The bootstrap or a blob is not what it should be."""

    fault: Fault


ToPrepare = Prepare | Bytes | NoBytes
ToKeeper = NeedBytes | Prepared | NotPrepared

encode = msgspec.json.Encoder().encode
_to_prepare: msgspec.json.Decoder[ToPrepare] = msgspec.json.Decoder(ToPrepare)
_to_keeper: msgspec.json.Decoder[ToKeeper] = msgspec.json.Decoder(ToKeeper)


def decode_for_prepare(packet: bytes) -> ToPrepare:
    return decoded(_to_prepare, packet)


def decode_for_keeper(packet: bytes) -> ToKeeper:
    """A packet from the process, which is not trusted; msgspec.DecodeError when it is not one."""
    return decoded(_to_keeper, packet)
