"""fanotify permission events as bytes: records in, responses out.

Source: ``include/uapi/linux/fanotify.h`` (Linux 6.14 to 6.18).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ...erofs.errors import KernelError

_METADATA = struct.Struct("<IBBHQii")  # event_len, vers, reserved, metadata_len, mask, fd, pid
_INFO = struct.Struct("<BBH")  # info_type, pad, len
_RANGE = struct.Struct("<4xQQ")  # offset, count
_RESPONSE = struct.Struct("<iI")
_INFO_TYPE_RANGE = 6
METADATA_VERSION = 3
EVENT_SIZE = 48  # of a pre-content event: metadata and one range record

ALLOW, DENY = 1, 2
_DENY_ERRNO_SHIFT = 24


class PreContentEvent(NamedTuple):
    """Somebody reads ``length`` bytes from byte ``offset`` of the file open as ``fd`` and waits for an answer.

    ``offset`` is None when the kernel gave no range (before 6.14): such an event cannot be served.
    """

    fd: int
    pid: int
    offset: int | None
    length: int


def parse(buffer: bytes) -> Iterator[PreContentEvent]:
    """The events in what one read of the group returned.

    Raises KernelError on a record that is not what the kernel's interface promises.
    """
    at = 0
    while at < len(buffer):
        if len(buffer) - at < _METADATA.size:
            raise KernelError(f"fanotify: {len(buffer) - at} stray bytes behind the last event")
        size, version, _, metadata, _mask, fd, pid = _METADATA.unpack_from(buffer, at)
        if version != METADATA_VERSION:
            raise KernelError(f"fanotify: event records of version {version}, this program knows {METADATA_VERSION}")
        if metadata < _METADATA.size or size < metadata or at + size > len(buffer):
            raise KernelError(f"fanotify: an event record of {size} bytes, {metadata} of metadata, does not fit")
        offset, length = None, 0
        info = at + metadata
        while info + _INFO.size <= at + size:
            kind, _, part = _INFO.unpack_from(buffer, info)
            if part < _INFO.size or info + part > at + size:
                raise KernelError(f"fanotify: an information record of {part} bytes does not fit its event")
            if kind == _INFO_TYPE_RANGE and part >= _INFO.size + _RANGE.size:
                offset, length = _RANGE.unpack_from(buffer, info + _INFO.size)
            info += part
        if fd >= 0:
            yield PreContentEvent(fd, pid, offset, length)
        at += size


def response(fd: int, allow: bool, number: int = errno.EIO) -> bytes:
    """The answer to the event that came with ``fd``.

    Args:
        number: what a read that is denied fails with (``FAN_DENY_ERRNO``): one of EPERM, EIO, EBUSY, ETXTBSY, EAGAIN,
            ENOSPC and EDQUOT. What reads through EROFS gets EIO nevertheless, and SIGBUS through mmap: up to Linux
            6.18 at least, no error of a backing file reaches a reader otherwise.
    """
    return _RESPONSE.pack(fd, ALLOW if allow else DENY | number << _DENY_ERRNO_SHIFT)
