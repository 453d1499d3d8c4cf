"""The table of contents at a blob's end, and the tar headers that stand *behind* each of its sections.

A blob with tar headers reads backwards: its last 512 bytes are a header, which names the section before
it and gives its size; before that section stands the next header. It is no tar file from the front.
The TOC, when there is one, is the last section.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, NamedTuple

from .errors import FormatError
from .record import Buffer, Record
from .rules import Rule
from .source import Source

TAR_HEADER_SIZE = 512
MAX_ENTRIES = 28  # readers fetch 4096 bytes: so many entries and a tar header

BLOB_DATA = b"image.blob"
BLOB_META = b"blob.meta"
BLOB_META_HEADER = b"blob.meta.header"
BLOB_DIGEST = b"blob.digest"
BOOTSTRAP = b"image.boot"
TOC = b"rafs.blob.toc"

_MAX_SECTIONS = 16
_CHECKSUM = slice(148, 156)
_MAX_TAR_SIZE = 0o77777777777


class TocFlags(IntFlag):
    """How a section is compressed."""

    NONE = 0x1
    ZSTD = 0x2
    LZ4_BLOCK = 0x4


@dataclass(frozen=True, slots=True)
class TocEntry(Record):
    """One section: its name (NUL-padded), the SHA-256 of its uncompressed bytes, and its place in the blob (bytes).

    The digest of ``image.blob`` covers the section's tar header too. What lies behind the sizes is
    ignored: old builders left rubbish there.
    """

    LAYOUT: ClassVar = struct.Struct("<I4x16s32sQQQ48x")

    flags: int
    raw_name: bytes
    digest: bytes
    compressed_offset: int
    compressed_size: int
    uncompressed_size: int

    @property
    def name(self) -> bytes:
        return self.raw_name.rstrip(b"\0")


assert TocEntry.size() == 128


class Section(NamedTuple):
    """One section of a blob: ``offset`` and ``size`` in bytes, its tar header right behind."""

    name: bytes
    offset: int
    size: int


def pack_tar_header(name: bytes, size: int) -> bytes:
    """The header behind a section, byte for byte as Nydus writes it (its modes and owners are NUL, not "0")."""
    if not 0 <= size <= _MAX_TAR_SIZE or not 0 < len(name) < 100:
        raise FormatError(f"section {name!r} of {size} bytes does not fit a tar header", rule=Rule.TOC)
    header = bytearray(TAR_HEADER_SIZE)
    header[: len(name)] = name
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"00000000000\0"
    header[156] = ord("0")
    header[257:265] = b"ustar  \0"
    header[_CHECKSUM] = b"%07o\0" % _checksum(header)
    return bytes(header)


def parse_tar_header(header: Buffer) -> tuple[bytes, int]:
    """Name and size (bytes) of the section that ends where ``header`` begins; FormatError (toc) for anything else."""
    data = bytes(header)
    if len(data) != TAR_HEADER_SIZE or data[257:265] != b"ustar  \0" or data[156:157] != b"0":
        raise FormatError("not a tar header of a section", rule=Rule.TOC)
    name = data[:100].partition(b"\0")[0]
    if _octal(data[_CHECKSUM]) != _checksum(data):
        raise FormatError(f"tar header of {name!r} has a wrong checksum", rule=Rule.TOC)
    return name, _octal(data[124:136])


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise FormatError(f"tar header: {field!r} is not an octal number", rule=Rule.TOC)
    return int(digits, 8)


def _checksum(header: Buffer) -> int:
    """Sum of a header's bytes with the checksum field taken as spaces."""
    return sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")


def tail_sections(blob: Source) -> Iterator[Section]:
    """The sections of a blob with tar headers, last one first, up to the first or to ``image.blob``."""
    end = blob.size()
    for _ in range(_MAX_SECTIONS):
        if end < TAR_HEADER_SIZE:
            return
        end -= TAR_HEADER_SIZE
        name, size = parse_tar_header(blob.read_at(end, TAR_HEADER_SIZE))
        if size > end:
            raise FormatError(f"section {name!r} of {size} bytes begins before its blob", rule=Rule.TOC)
        end -= size
        yield Section(name, end, size)
        if name == BLOB_DATA:
            return


def parse_entries(data: Buffer) -> list[TocEntry]:
    """The entries of a TOC without its tar header; FormatError (toc) when they are cut off or too many."""
    count, rest = divmod(len(data), TocEntry.size())
    if rest or not 0 < count <= MAX_ENTRIES:
        raise FormatError(f"a table of contents of {len(data)} bytes", rule=Rule.TOC)
    return [TocEntry.unpack(data, at * TocEntry.size()) for at in range(count)]


def pack_toc(entries: Sequence[TocEntry]) -> bytes:
    """A TOC with its tar header: the end of a blob."""
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise FormatError(f"{len(entries)} entries do not fit a table of contents", rule=Rule.TOC)
    body = b"".join([entry.pack() for entry in entries])
    return body + pack_tar_header(TOC, len(body))


def read_toc(blob: Source, toc_size: int = 0, toc_digest: bytes = bytes(32)) -> list[TocEntry]:
    """The TOC at the end of a blob.

    Args:
        blob: the blob.
        toc_size: its size with its tar header as the blob table has it, 0 for unknown (a merge drops it).
        toc_digest: SHA-256 of the same bytes, zeros for unknown.

    FormatError (toc) when there is none, or not this one, or an entry lies outside the blob.
    """
    section = next(tail_sections(blob), None)
    if section is None or section.name != TOC:
        raise FormatError("the blob does not end in a table of contents", rule=Rule.TOC)
    size = section.size + TAR_HEADER_SIZE
    if toc_size and toc_size != size:
        raise FormatError(f"the table of contents has {size} bytes, not {toc_size}", rule=Rule.TOC)
    if section.size > MAX_ENTRIES * TocEntry.size():
        raise FormatError(f"a table of contents of {section.size} bytes", rule=Rule.TOC)
    data = bytes(blob.read_at(section.offset, size))
    if toc_size and any(toc_digest) and hashlib.sha256(data).digest() != toc_digest:
        raise FormatError("the table of contents has a wrong digest", rule=Rule.TOC)
    return parse_entries(data[: section.size])
