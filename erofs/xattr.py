"""Inline extended attributes: a 12-byte header behind the inode, then entries padded to 4 bytes.

Shared xattrs, name filters and long name prefixes are parts of EROFS that RAFS v6 does not use.
Source: Linux ``fs/erofs/erofs_fs.h`` (6.18).
"""

from __future__ import annotations

from .errors import FormatError, UnsupportedError
from .ondisk import XATTR_ENTRY_HEADER, XATTR_HEADER_SIZE, XATTR_PREFIXES
from .record import Buffer, round_up
from .rules import Rule

MAX_NAME = 255
MAX_VALUE = 65535
MAX_AREA = XATTR_HEADER_SIZE + (65535 - 1) * 4  # what the 16-bit count of an inode can say

_ALIGN = 4
_WHOLE_NAMES = (2, 3)  # these prefixes are whole names


def area_size(count: int) -> int:
    """Bytes of xattrs behind an inode whose ``i_xattr_icount`` is ``count``."""
    return XATTR_HEADER_SIZE + (count - 1) * 4 if count else 0


def area_count(size: int) -> int:
    """``i_xattr_icount`` for an area of ``size`` bytes, as ``pack`` returns it."""
    return (size - XATTR_HEADER_SIZE) // 4 + 1 if size else 0


def parse(area: Buffer) -> dict[bytes, bytes]:
    """Full name -> value, in the order on disk; FormatError (xattr) when the area is not well-formed."""
    if not len(area):
        return {}
    if len(area) < XATTR_HEADER_SIZE:
        raise FormatError(f"an xattr area of {len(area)} bytes", rule=Rule.XATTR)
    data = bytes(area)
    if data[4]:
        raise FormatError("shared xattrs, which RAFS v6 does not have", rule=Rule.XATTR)
    xattrs: dict[bytes, bytes] = {}
    at = XATTR_HEADER_SIZE
    while at < len(data):
        if at + XATTR_ENTRY_HEADER.size > len(data):
            raise FormatError("an xattr is cut off", rule=Rule.XATTR)
        suffix_len, index, value_len = XATTR_ENTRY_HEADER.unpack_from(data, at)
        start = at + XATTR_ENTRY_HEADER.size
        stop = start + suffix_len + value_len
        if stop > len(data):
            raise FormatError("an xattr reaches behind its inode's xattrs", rule=Rule.XATTR)
        name = _name(index, data[start : start + suffix_len])
        if name in xattrs:
            raise FormatError(f"xattr {name!r} occurs twice", rule=Rule.XATTR)
        xattrs[name] = data[start + suffix_len : stop]
        at = round_up(stop, _ALIGN)
    return xattrs


def _name(index: int, suffix: bytes) -> bytes:
    prefix = XATTR_PREFIXES.get(index)
    if prefix is None:
        raise FormatError(f"an xattr of unknown name index {index}", rule=Rule.XATTR)
    name = prefix + suffix
    if bool(suffix) == (index in _WHOLE_NAMES) or len(name) > MAX_NAME or b"\0" in suffix:
        raise FormatError(f"not an xattr name: {name!r}", rule=Rule.XATTR)
    return name


def pack(xattrs: dict[bytes, bytes]) -> bytes:
    """The xattr area of an inode, header included, sorted by full name; empty for no xattrs.

    UnsupportedError when a name or value does not fit the format: the message names it.
    """
    if not xattrs:
        return b""
    out = bytearray(XATTR_HEADER_SIZE)
    for name, value in sorted(xattrs.items()):
        index, suffix = _split(name)
        if len(value) > MAX_VALUE:
            raise UnsupportedError(f"xattr {name!r} has {len(value)} bytes; the format holds {MAX_VALUE}")
        out += XATTR_ENTRY_HEADER.pack(len(suffix), index, len(value))
        out += suffix
        out += value
        out += bytes(-len(out) % _ALIGN)
    if len(out) > MAX_AREA:
        raise UnsupportedError(f"xattrs of {len(out)} bytes on one file; the format holds {MAX_AREA}")
    return bytes(out)


def _split(name: bytes) -> tuple[int, bytes]:
    for index, prefix in XATTR_PREFIXES.items():
        whole = index in _WHOLE_NAMES
        if name == prefix if whole else name.startswith(prefix) and name != prefix:
            if len(name) > MAX_NAME or b"\0" in name:
                raise UnsupportedError(f"not an xattr name: {name!r}")
            return index, name[len(prefix) :]
    raise UnsupportedError(
        f"xattr {name!r} is in a namespace the format does not have",
        hint="it knows user., trusted., security. and the two POSIX ACLs",
    )
