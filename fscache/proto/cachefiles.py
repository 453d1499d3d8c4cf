"""The on-demand protocol of ``/dev/cachefiles`` as bytes: messages in, commands out.

Source: ``include/uapi/linux/cachefiles.h`` and ``fs/cachefiles/ondemand.c`` (Linux 5.19 to 6.18); what was
seen on 6.1 and 6.12.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...erofs.errors import ConfigError, KernelError

BUFFER_SIZE = 4096  # the largest message is 543 bytes; a buffer that is too small leaves it pending
READ_COMPLETE = 0x40049801  # _IOW(0x98, 1, int): ioctl of an object's descriptor, with the message's id
BLOCK_SIZE = 4096

_HEADER = struct.Struct("<IIII")  # msg_id, opcode, len (of the whole message), object_id
_OPEN = struct.Struct("<IIII")  # volume key size (with its NUL), cookie key size, fd, flags
_READ = struct.Struct("<QQ")  # offset, length
_OP_OPEN, _OP_CLOSE, _OP_READ = 0, 1, 2
_VOLUME_PREFIX = "erofs,"


class Open(NamedTuple):
    """The kernel wants an object: ``cookie`` (an fsid, or the tag of a device) in ``volume`` (a domain, or the
    fsid). ``fd`` is open in this process already and must be answered with ``copen``."""

    msg_id: int
    object_id: int
    volume: str
    cookie: str
    fd: int


class Close(NamedTuple):
    """The object is not used any more. No answer; its descriptor is to be closed."""

    msg_id: int
    object_id: int


class Read(NamedTuple):
    """A reader waits for ``length`` bytes from ``offset``, both multiples of a block."""

    msg_id: int
    object_id: int
    offset: int
    length: int


Message = Open | Close | Read


def parse(packet: bytes) -> Message:
    """One message, as one read of the device returns it; KernelError when it is not what the interface promises."""
    if len(packet) < _HEADER.size:
        raise KernelError(f"cachefiles: a message of {len(packet)} bytes")
    msg_id, opcode, length, object_id = _HEADER.unpack_from(packet)
    if length != len(packet):
        raise KernelError(f"cachefiles: a message of {len(packet)} bytes says it has {length}")
    body = packet[_HEADER.size :]
    if opcode == _OP_CLOSE:
        return Close(msg_id, object_id)
    if opcode == _OP_READ and len(body) >= _READ.size:
        return Read(msg_id, object_id, *_READ.unpack_from(body))
    if opcode == _OP_OPEN and len(body) >= _OPEN.size:
        volume_size, cookie_size, fd, _flags = _OPEN.unpack_from(body)
        keys = body[_OPEN.size :]
        if volume_size + cookie_size > len(keys):
            raise KernelError("cachefiles: the keys of an object do not fit their message")
        volume = keys[:volume_size].rstrip(b"\0").decode("utf-8", "surrogateescape")
        cookie = keys[volume_size : volume_size + cookie_size].decode("utf-8", "surrogateescape")
        return Open(msg_id, object_id, volume.removeprefix(_VOLUME_PREFIX), cookie, fd)
    raise KernelError(f"cachefiles: an unknown message, operation {opcode}")


def opened(msg_id: int, size: int) -> bytes:
    """Answer an open: the object has ``size`` bytes."""
    return f"copen {msg_id},{size}".encode()


def refused(msg_id: int, number: int) -> bytes:
    """Answer an open with an errno; mount(2) fails with EIO whatever it is."""
    return f"copen {msg_id},{-number}".encode()


class CullLimits(NamedTuple):
    """Free space of the cache's filesystem, percent: below ``cull`` idle objects go until ``run`` is reached;
    below ``stop`` nothing is cached any more."""

    run: int = 7
    cull: int = 5
    stop: int = 1


def set_up(directory: str, tag: str, limits: CullLimits) -> list[bytes]:
    """The commands that bind a freshly opened device to a folder, each for one write."""
    if not 0 <= limits.stop < limits.cull < limits.run < 100:
        raise ConfigError(f"cache limits: {limits.stop} < {limits.cull} < {limits.run} < 100 must hold (percent)")
    commands = [f"dir {directory}".encode(), f"tag {tag}".encode()]
    # In this order: each command is checked against the other two values of the moment (7, 5 and 1 %). Lower
    # limits first from the bottom, then raise from the top.
    for kind in ("b", "f"):
        values = [(f"{kind}stop", limits.stop), (f"{kind}cull", limits.cull), (f"{kind}run", limits.run)]
        now = {f"{kind}stop": 1, f"{kind}cull": 5, f"{kind}run": 7}
        lower = [item for item in values if item[1] < now[item[0]]]
        higher = [item for item in reversed(values) if item[1] > now[item[0]]]
        commands += [f"{name} {value}%".encode() for name, value in (*lower, *higher)]
    return [*commands, b"bind ondemand"]


RESTORE = b"restore"  # send again what was read and never answered (6.8+, and 6.1.95+ in Debian)


def cull(name: str) -> bytes:
    """Remove the idle cache file ``name`` of the working directory."""
    return f"cull {name}".encode()
