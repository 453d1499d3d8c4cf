"""Messages between keeper and ``prepare``, the short-lived process that localizes a bootstrap."""

from __future__ import annotations

import msgspec

from .packets import decoded

MAX_MESSAGE = 1 << 16


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    pass


class Prepare(_Message):
    """Localize the bootstrap (first descriptor) into the empty folder (second descriptor), or make only plans."""

    segment_size: int
    localize: bool


class Blob(_Message):
    """The blob asked for (one descriptor), or why it cannot be had."""

    error: str = ""
    hint: str = ""


class NeedBlob(_Message):
    """Open this blob for me."""

    blob_id: str


class Prepared(_Message):
    """Done: everything is in the folder."""


class NotPrepared(_Message):
    """The bootstrap or a blob is not what it should be. ``kind`` is the class of the error."""

    kind: str
    message: str
    hint: str = ""


ToPrepare = Prepare | Blob
ToKeeper = NeedBlob | Prepared | NotPrepared

encode = msgspec.json.Encoder().encode
_to_prepare: msgspec.json.Decoder[ToPrepare] = msgspec.json.Decoder(ToPrepare)
_to_keeper: msgspec.json.Decoder[ToKeeper] = msgspec.json.Decoder(ToKeeper)


def decode_for_prepare(packet: bytes) -> ToPrepare:
    return decoded(_to_prepare, packet)


def decode_for_keeper(packet: bytes) -> ToKeeper:
    """A packet from the process, which is not trusted; msgspec.DecodeError when it is not one."""
    return decoded(_to_keeper, packet)
