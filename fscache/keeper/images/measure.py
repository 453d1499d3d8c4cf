"""What a bootstrap is, found out by ourselves: on a copy that nobody else has ever had open for writing."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from functools import partial
from typing import Annotated

import msgspec

from ....erofs import merkle
from ....erofs.errors import FormatError
from ...kernel.fd import Fd
from ..children.errands import Say, said_by
from ..paths import NEW, new_name

_PATIENCE = 120.0  # seconds: 2 GiB are copied and hashed
_PIECE = 1 << 30  # bytes


class Measured(msgspec.Struct):
    """SHA-256 (hex), and the identity: ``sha256:`` and the fs-verity digest."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    identity: str


_MEASURED = msgspec.json.Decoder(Measured)


async def kept(source: Fd, folder: str) -> Measured:
    """Copy a bootstrap to ``<folder>/<SHA-256>.meta``, unless it is there; what it is. FormatError if it is empty."""
    path = os.path.join(folder, new_name(NEW))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with Fd(fd) as copy:
        try:
            call = partial(_copy, source, copy)
            (packet,) = await said_by(call, "copying the bootstrap", _PATIENCE, [source, copy])
            measured = _MEASURED.decode(packet.data)
            final = os.path.join(folder, f"{measured.sha256}.meta")
            # Another name for one that is there: the prepared image hangs on that file.
            if os.path.isfile(final):
                os.unlink(path)
            else:
                os.rename(path, final)
        except BaseException:
            with contextlib.suppress(OSError):  # else the next start removes it
                os.unlink(path)
            raise
    return measured


def _copy(source: Fd, copy: Fd, say: Say) -> None:
    """In a child."""
    at = 0
    while done := os.sendfile(copy.fd, source.fd, at, _PIECE):
        at += done
    if not at:
        raise FormatError("the bootstrap is empty")
    os.fsync(copy.fd)
    with mmap.mmap(copy.fd, at, prot=mmap.PROT_READ) as data, memoryview(data) as view:
        say(msgspec.json.encode(Measured(hashlib.sha256(view).hexdigest(), merkle.identity(view))), [])
