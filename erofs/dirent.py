"""Directories: blocks of entries in strict byte order.

Each block stands alone: n entries of 12 bytes, then their names back to back. A name ends where the
next begins; the last one at a NUL or at the block's (in the last block: the directory's) end. Kernel and
nydusd search by bisection, over blocks and within one, so entries out of order are entries lost.
Order is by unsigned bytes over all names, ``.`` and ``..`` among them: ``-x`` comes first.
Source: Linux ``fs/erofs/dir.c`` and ``namei.c`` (6.18).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from .errors import FormatError
from .ondisk import DIRENT, FileType
from .record import Buffer
from .rules import Rule

MAX_NAME = 255

_LAST_TYPE = max(FileType)


class Dirent(NamedTuple):
    """One name in a directory. ``file_type`` is a ``FileType``."""

    name: bytes
    nid: int
    file_type: int


def parse_block(block: Buffer) -> list[Dirent]:
    """The entries of one block, cut at the directory's end if it is the last; order is not looked at.

    FormatError (dirent-format, dirent-name) when offsets or names are not what they must be.
    """
    data = bytes(block)
    if len(data) < DIRENT.size:
        raise FormatError(f"a directory block of {len(data)} bytes holds no entry", rule=Rule.DIRENT_FORMAT)
    names_start = DIRENT.unpack_from(data)[1]
    if names_start % DIRENT.size or not DIRENT.size <= names_start < len(data):
        raise FormatError(f"the first name lies at byte {names_start} of its block", rule=Rule.DIRENT_FORMAT)
    heads = list(DIRENT.iter_unpack(data[:names_start]))
    starts = [head[1] for head in heads]
    last = starts[-1]
    if last >= len(data):
        raise FormatError(f"a name lies at byte {last}, behind its block", rule=Rule.DIRENT_FORMAT)
    if not all(map(operator.lt, starts, islice(starts, 1, None))):
        raise FormatError("the names of a block do not follow each other", rule=Rule.DIRENT_FORMAT)
    end = data.find(b"\0", last)
    end = len(data) if end < 0 else end
    if b"/" in data[names_start:end] or b"\0" in data[names_start:last]:
        raise FormatError('a name has a "/" or a NUL byte in it', rule=Rule.DIRENT_NAME)
    entries = []
    for (nid, start, file_type, _), stop in zip(heads, [*starts[1:], end], strict=True):
        if not 0 < stop - start <= MAX_NAME:
            raise FormatError(f"a name of {stop - start} bytes", rule=Rule.DIRENT_NAME)
        if file_type > _LAST_TYPE:
            raise FormatError(f"an entry of unknown type {file_type}", rule=Rule.DIRENT_FORMAT)
        entries.append(Dirent(data[start:stop], nid, file_type))
    return entries


def first_disorder(entries: Sequence[Dirent], last: bytes = b"") -> int | None:
    """Index of the first entry whose name is not above the one before it; None if all are in order.

    ``last`` is the name before the first entry: the block before this one may end with it.
    """
    names = [last, *(entry.name for entry in entries)]
    if all(map(operator.lt, names, islice(names, 1, None))):
        return None
    return next(i for i in range(len(entries)) if names[i] >= names[i + 1])


def check_order(entries: Sequence[Dirent], last: bytes = b"") -> None:
    """FormatError (dirent-order) unless the names rise strictly, above ``last``."""
    at = first_disorder(entries, last)
    if at is not None:
        before = entries[at - 1].name if at else last
        raise FormatError(f"{entries[at].name!r} comes after {before!r}", rule=Rule.DIRENT_ORDER)


def parse_blocks(blocks: Iterable[Buffer]) -> Iterator[Dirent]:
    """All entries of a directory, ``.`` and ``..`` included, block by block; FormatError when anything is amiss."""
    last = b""
    for block in blocks:
        entries = parse_block(block)
        check_order(entries, last)
        yield from entries
        last = entries[-1].name


def packed_size(names: Iterable[bytes], block_size: int) -> int:
    """The size (``i_size``, bytes) of a directory with these names in this order, ``.`` and ``..`` included."""
    blocks, used = 0, 0
    for name in names:
        need = DIRENT.size + len(name)
        if used + need > block_size:
            blocks, used = blocks + 1, 0
        used += need
    return blocks * block_size + used


def pack_blocks(entries: Sequence[Dirent], block_size: int) -> tuple[bytes, int]:
    """The blocks of a directory and its size.

    Args:
        entries: all entries, ``.`` and ``..`` included, in strict byte order (else FormatError).
        block_size: bytes of a block.

    Returns:
        Whole blocks, zero-filled behind the names, and the size (``i_size``, bytes): the last block's used
        bytes count, its filling does not.
    """
    check_order(entries)
    out = bytearray()
    block: list[Dirent] = []
    used = 0
    for entry in entries:
        name = entry.name
        if not 0 < len(name) <= MAX_NAME or b"/" in name or b"\0" in name:
            raise FormatError(f"not a file name: {name!r}", rule=Rule.DIRENT_NAME)
        need = DIRENT.size + len(name)
        if used + need > block_size:
            _pack_block(out, block)
            out += bytes(-len(out) % block_size)
            block, used = [], 0
        block.append(entry)
        used += need
    if block:
        _pack_block(out, block)
    size = len(out)
    out += bytes(-size % block_size)
    return bytes(out), size


def _pack_block(out: bytearray, block: list[Dirent]) -> None:
    start = len(block) * DIRENT.size
    for name, nid, file_type in block:
        out += DIRENT.pack(nid, start, file_type, 0)
        start += len(name)
    out += b"".join([entry.name for entry in block])
