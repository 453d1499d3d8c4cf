"""A table that is kept in memory and on disk, by an owner who cannot wait for the disk: children write it.

File: the SHA-256 of what follows in hex, a newline, a JSON object. It is whole or it does not count.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Generic, TypeVar

import msgspec

from ...decoding import decoded
from ...kernel.plain import read_plain
from .. import durable
from ..children.errands import in_child
from ..log import logger

MAX_TABLE = 16 << 20  # bytes; a longer one does not count
Entry = TypeVar("Entry")


class DiskTable(Generic[Entry]):
    """Name -> entry. After changing ``entries``, say so (``changed``), and wait until that is on disk (``saved``)."""

    def __init__(self, path: str, kind: type[Entry]) -> None:
        self._path = path
        found = self._load(msgspec.json.Decoder(dict[str, kind]))  # type: ignore[valid-type]
        self.fresh = found is None  # nothing was there that counts
        self.entries: dict[str, Entry] = {} if found is None else found
        self._lock = asyncio.Lock()
        self._version = self._on_disk = 0

    def _load(self, decoder: msgspec.json.Decoder[dict[str, Entry]]) -> dict[str, Entry] | None:
        try:
            data = read_plain(self._path, MAX_TABLE + 1)
            digest, _, body = data.partition(b"\n")
            if len(data) > MAX_TABLE or digest != _digest(body):
                raise msgspec.DecodeError("damaged, or too long")
            return decoded(decoder, body)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            logger().error("a record is not read", file=self._path, error=str(error))
            return None

    def changed(self) -> None:
        """The entries have changed."""
        self._version += 1

    async def saved(self) -> None:
        """Wait until all changes so far are on disk; KernelError when they cannot be written."""
        wanted = self._version
        async with self._lock:
            if self._on_disk >= wanted:
                return  # together with somebody else's
            version, body = self._version, msgspec.json.encode(self.entries)
            data = b"%b\n%b" % (_digest(body), body)
            await in_child(partial(durable.write, self._path, data), f"writing {self._path}")
            self._on_disk = version


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
