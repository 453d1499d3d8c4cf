"""What a worker does with a batch: read its pieces, cut them into chunks, digest and compress these."""

from __future__ import annotations

import os

from ..erofs.codec import codec
from ..erofs.digest import digest_function
from ..erofs.record import Buffer
from .descent import Files
from .known import KnownDigests
from .options import BuildOptions
from .paths import changed, source_error
from .pieces import ALREADY_STORED, Piece, Slot


class _Reply:
    """What has become of a batch so far: chunks in order, stored bytes back to back in the slot."""

    __slots__ = ("_data", "_end", "digests", "sizes", "stored")

    def __init__(self, slot: Slot) -> None:
        self.sizes: list[int] = []
        self.digests: list[bytes] = []
        self.stored: set[bytes] = set()  # digests of chunks stored in this slot
        self._data = slot.data
        self._end = 0

    def store(self, digest: bytes, chunk: Buffer) -> None:
        end = self._end
        self._end = end + len(chunk)
        self._data[end : self._end] = chunk
        self.stored.add(digest)
        self.sizes.append(len(chunk))


class Worker:
    """Turns requests in slots into replies. Keeps one chunk's memory and a compressor; one thread at a time."""

    def __init__(self, options: BuildOptions, files: Files, known: KnownDigests) -> None:
        self._files = files
        self._chunk_size = options.chunk_size
        self._digest = digest_function(options.digest)
        self._compress = codec(options.compression, options.compression_level).compress
        self._known = known
        self._buffer = memoryview(bytearray(options.chunk_size))

    def run(self, slot: Slot) -> None:
        """Do the batch in ``slot``. SourceError when a file cannot be read or is not the one that was listed."""
        reply = _Reply(slot)
        for piece in slot.read_request():
            fd = self._files.open(piece.path)
            try:
                self._add(fd, piece, reply)
                # Whatever happened to the file since it was listed shows in its change time.
                st = os.fstat(fd)
            except OSError as error:
                raise source_error(error, piece.path) from None
            finally:
                os.close(fd)
            if (st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev) != piece.stamp:
                raise changed(piece.path)
        slot.write_reply(reply.sizes, reply.digests)

    def _add(self, fd: int, piece: Piece, reply: _Reply) -> None:
        """Read a piece chunk by chunk and store what is not stored yet."""
        for offset in range(piece.offset, piece.offset + piece.length, self._chunk_size):
            chunk = self._buffer[: piece.offset + piece.length - offset]
            if os.preadv(fd, [chunk], offset) != len(chunk) and not _fill(fd, chunk, offset):
                raise changed(piece.path)
            digest = self._digest(chunk)
            reply.digests.append(digest)
            if digest in reply.stored or digest in self._known:
                reply.sizes.append(ALREADY_STORED)
                continue
            compressed = self._compress(chunk)
            reply.store(digest, compressed if len(compressed) < len(chunk) else chunk)


def _fill(fd: int, chunk: memoryview, offset: int) -> bool:
    """Read all of ``chunk`` in as many calls as it takes; False when the file ends before."""
    done = 0
    while done < len(chunk):
        count = os.preadv(fd, [chunk[done:]], offset + done)
        if not count:
            return False
        done += count
    return True
