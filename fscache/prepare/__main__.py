"""Prepare an image: localize its bootstrap and write the plans of its stores, without any privilege.

Run by the keeper as ``python -m nydus_erofs.fscache.prepare SOCKET UID``; it ends when it is done, so that
the memory this takes goes back to the system. It parses bytes that nobody vouches for.

What it leaves in the folder it is given: ``image.json`` and ``stores/<key>/plan``; and, to localize, ``boot``.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import socket
import sys
from collections.abc import Sequence

import msgspec

from ...erofs import localize
from ...erofs.errors import BackendError, FormatError, NydusErofsError
from ...erofs.head import read_head
from ...erofs.ids import BlobId
from ...erofs.record import Buffer
from ...erofs.segments import segment_size_for
from ...erofs.source import BufferSource, FileSource
from ..kernel import channel
from ..kernel.confine import confine
from ..kernel.fd import Fd
from ..kernel.landlock import MAKE, Rule
from ..processes import PREPARE
from ..proto import prepare as proto
from ..proto.fault import Fault
from ..state.image import ImageRecord, StoreRef
from ..state.layout import BOOT, PLAN, RECORD, STORES
from .plan_writer import pack_plan
from .syscalls import PROFILE

# Chunks of its blobs that an image may leave unused, as one that was built with a chunk dictionary does. Each takes
# about 300 bytes here; the limits of ``processes.PREPARE`` are made for that.
_SPARE_CHUNKS, _CHUNKS_PER_USED = 1 << 18, 4


def prepare(sock: socket.socket, bootstrap: Fd, request: proto.Prepare) -> None:
    """Fill the working directory with what is asked for; blobs are asked for over ``sock``."""
    size = os.fstat(bootstrap.fd).st_size
    if not size:
        raise FormatError("the bootstrap is empty")
    # Left open: views of it may live on in an error's traceback, and closing it would then hide that error.
    data = memoryview(mmap.mmap(bootstrap.fd, size, prot=mmap.PROT_READ))
    head = read_head(BufferSource(data))
    check_chunks(sum(blob.entry.chunk_count for blob in head.blobs), head.chunk_rows[1])
    total = sum(blob.entry.uncompressed_size for blob in head.blobs)
    segment_size = segment_size_for(total, request.segment_size)
    maps = localize.read_blob_maps(data, head, lambda name: _AskedBlob(sock, name), segment_size)
    boot_size = 0
    if request.localize:
        with open(BOOT, "wb") as out:
            localize.write_localized(data, head, maps, out)
            boot_size = out.tell()
    else:
        localize.check_files(data, head, maps)
    stores = [_write_store(blob) for blob in maps]
    record = ImageRecord(stores=stores, boot_size=boot_size)
    with open(RECORD, "wb") as out:
        out.write(msgspec.json.encode(record))


def check_chunks(chunks: int, used: int) -> None:
    """Whether the blobs of an image that uses ``used`` chunks of them may have so many: each takes memory here."""
    most = _SPARE_CHUNKS + _CHUNKS_PER_USED * used
    if chunks > most:
        raise FormatError(
            f"its blobs have {chunks} chunks, it uses {used}: more than {most} would take too much memory",
            hint="build it anew, with larger chunks or without the chunk dictionary",
        )


class _AskedBlob:
    """A blob whose bytes are asked for over ``sock``. Not for several threads."""

    def __init__(self, sock: socket.socket, name: BlobId) -> None:
        self._sock, self._name = sock, name

    def size(self) -> int:
        raise NotImplementedError("nobody needs it here")

    def read_at(self, offset: int, length: int) -> Buffer:
        channel.send(self._sock, proto.encode(proto.NeedBytes(self._name, offset, length)))
        packet, fds = channel.receive(self._sock, proto.MAX_MESSAGE)
        reply = proto.decode_for_prepare(packet)
        if isinstance(reply, proto.NoBytes):
            raise reply.fault.error()
        if not isinstance(reply, proto.Bytes) or not fds:
            raise BackendError("no answer from the service")
        return FileSource(fds[0].steal()).read_at(offset - reply.base, length)


def _write_store(blob: localize.BlobMap) -> StoreRef:
    plan = pack_plan(blob)
    key = hashlib.sha256(plan).hexdigest()
    folder = os.path.join(STORES, key)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with open(os.path.join(folder, PLAN), "wb") as out:
        out.write(plan)
    return StoreRef(key, blob.blob_id, len(blob.segments), sum(s.size for s in blob.segments))


def main(arguments: Sequence[str]) -> None:
    fd, uid = (int(a) for a in arguments)
    sock = socket.socket(fileno=fd)
    packet, fds = channel.receive(sock, proto.MAX_MESSAGE)
    request = proto.decode_for_prepare(packet)
    bootstrap, folder = fds
    os.fchdir(folder.fd)
    kept = [fd, bootstrap.fd, folder.fd]
    size = os.fstat(bootstrap.fd).st_size
    missing = confine(PREPARE, uid, kept, [Rule(folder.fd, MAKE)], PROFILE, size)
    sys.stderr.writelines(f"sandbox: {what}\n" for what in missing)
    gc.disable()  # looking for cycles among a million numbers takes longer than to end
    reply: proto.ToKeeper = proto.Prepared()
    try:
        if not isinstance(request, proto.Prepare):
            raise FormatError("the service did not say what to prepare")
        prepare(sock, bootstrap, request)
    except NydusErofsError as error:
        reply = proto.NotPrepared(Fault.of(error))
    except MemoryError:
        most = PREPARE.limits[0].most(os.fstat(bootstrap.fd).st_size) >> 20
        reply = proto.NotPrepared(
            Fault("FormatError", f"it takes more than {most} MiB of memory, for its size too much")
        )
    except OSError as error:
        reply = proto.NotPrepared(Fault("CacheFullError", f"writing the prepared image: {error.strerror}"))
    channel.send(sock, proto.encode(reply))
    os._exit(0)  # everything is said; tidying up a million objects one by one would only take time


if __name__ == "__main__":
    main(sys.argv[1:])
