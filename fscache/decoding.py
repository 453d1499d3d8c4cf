"""Decoding JSON that others wrote: one kind of error, whatever is wrong with it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

Message = TypeVar("Message")


def decoded(decoder: msgspec.json.Decoder[Message], data: bytes | bytearray | memoryview) -> Message:
    """What the bytes say; msgspec.DecodeError also for bytes that are no UTF-8 and for endless nesting."""
    try:
        return decoder.decode(data)
    except (RecursionError, UnicodeDecodeError) as error:
        raise msgspec.DecodeError(str(error)) from None
