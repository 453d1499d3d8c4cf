"""What the kernel says: packets of cachefiles and fanotify, and its table of mounts, which strangers have named."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

from nydus_erofs.erofs.errors import KernelError
from nydus_erofs.fscache.kernel import mount
from nydus_erofs.fscache.proto import cachefiles as cachefiles_proto
from nydus_erofs.fscache.proto import fanotify as fanotify_proto
from tests.fuzz import mutate
from tests.fuzz.target import target

_HEADER = struct.Struct("<IIII")


# --- cachefiles -----------------------------------------------------------------------------------------------


def _packet(operation: int, body: bytes) -> bytes:
    return _HEADER.pack(7, operation, _HEADER.size + len(body), 3) + body


def _cachefiles_seeds() -> Iterator[bytes]:
    for volume, cookie in [(b"erofs,domain\0", b"fsid"), (b"\0", b""), (b"erofs,\xff\0", b"\xc3(" * 100)]:
        yield _packet(0, struct.pack("<IIII", len(volume), len(cookie), 5, 0) + volume + cookie)
    yield _packet(1, b"")
    yield _packet(2, struct.pack("<QQ", 4096, 1 << 20))


def _true_length(packet: bytes) -> bytes:
    return packet[:8] + struct.pack("<I", len(packet)) + packet[12:] if len(packet) >= 12 else packet


def _fewer_keys(packet: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3 and len(packet) > 24:
        keys = struct.pack("<II", rng.choice([0, 1, 13, len(packet) - 32, 1 << 31]) % (1 << 32), rng.randrange(300))
        return packet[:16] + keys + packet[24:]
    return mutate.raw(packet, rng)


@target(_cachefiles_seeds, mutate.repaired(_fewer_keys, _true_length), refusals=(KernelError,))
def cachefiles(data: bytes) -> object:
    message = cachefiles_proto.parse(data)
    assert (message.msg_id, message.object_id) == struct.unpack_from("<I8xI", data)
    if isinstance(message, cachefiles_proto.Read):
        assert (message.offset, message.length) == struct.unpack_from("<QQ", data, 16)
    if isinstance(message, cachefiles_proto.Open):
        assert len(message.volume) + len(message.cookie) <= len(data) - 32
        assert b"\n" not in cachefiles_proto.opened(message.msg_id, 1)
    return type(message).__name__


# --- fanotify -------------------------------------------------------------------------------------------------

_EVENT = struct.Struct("<IBBHQii")
_RANGE = struct.Struct("<BBHIQQ")


def _event(fd: int = 9, *, offset: int = 4096, extra: bytes = b"") -> bytes:
    info = _RANGE.pack(6, 0, _RANGE.size, 0, offset, 8192) + extra
    return _EVENT.pack(_EVENT.size + len(info), 3, 0, _EVENT.size, 0x100000, fd, 42) + info


def _fanotify_seeds() -> Iterator[bytes]:
    yield _event()
    yield _event() + _event(fd=-1) + _event(offset=0, extra=struct.pack("<BBH", 1, 0, 4))
    yield _EVENT.pack(_EVENT.size, 3, 0, _EVENT.size, 0x1000, 4, 1)


def _true_sizes(buffer: bytes) -> bytes:
    """The last event as long as what is left."""
    at = 0
    while at + _EVENT.size <= len(buffer):
        (size,) = struct.unpack_from("<I", buffer, at)
        if size < _EVENT.size or at + size > len(buffer):
            return buffer[:at] + struct.pack("<I", len(buffer) - at) + buffer[at + 4 :]
        at += size
    return buffer[:at]


@target(_fanotify_seeds, mutate.repaired(mutate.raw, _true_sizes), refusals=(KernelError,))
def fanotify(data: bytes) -> object:
    events = list(fanotify_proto.parse(data))
    assert len(events) <= len(data) // _EVENT.size
    for event in events:
        assert event.fd >= 0
        assert event.offset is None or 0 <= event.offset < 1 << 64
        assert fanotify_proto.response(event.fd, True)
    return min(len(events), 4), {event.offset is None for event in events}


# --- mountinfo ------------------------------------------------------------------------------------------------

_MOUNT_WORDS = [rb"\040", rb"\011", rb"\134", rb"\777", rb"\9", b" - ", b" ", b"erofs", b"rw,nosuid", b"\r", b"\xff",
                b"master:3", b"fsid=a,domain_id=b", b"\0", b"-", b",", b"="]  # fmt: skip


def _mount_seeds() -> Iterator[bytes]:
    yield b"36 35 0:98 / /mnt/a\\040b ro,nosuid,nodev master:1 - erofs /var/boot rw,fsid=x,domain_id=d,device=1"
    yield b"22 1 8:1 / / rw - ext4 /dev/vda1 rw"


@target(_mount_seeds, mutate.text(_MOUNT_WORDS), refusals=())
def mount_table(data: bytes) -> object:
    entry = mount._entry(data.replace(b"\n", b""))
    if entry is not None:
        os.fsencode(entry.target)
    return entry is None
