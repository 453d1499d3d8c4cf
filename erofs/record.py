"""Fixed-size little-endian records: a frozen dataclass beside the struct that describes its bytes."""

from __future__ import annotations

import struct
import sys
from array import array
from typing import ClassVar, Literal, Self

from .errors import FormatError

Buffer = bytes | bytearray | memoryview


class Record:
    """Base of on-disk records.

    A subclass is a frozen, slotted dataclass whose fields stand in the order of ``LAYOUT``;
    padding is written as ``x`` in the layout and has no field.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[struct.Struct]

    @classmethod
    def size(cls) -> int:
        """Bytes one record takes."""
        return cls.LAYOUT.size

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Read one record at byte ``offset`` of ``buffer``; FormatError when it ends before the record does."""
        if offset < 0 or offset + cls.LAYOUT.size > len(buffer):
            raise FormatError(f"{cls.__name__} at byte {offset} is cut off: {len(buffer)} bytes in all")
        return cls(*cls.LAYOUT.unpack_from(buffer, offset))

    def pack(self) -> bytes:
        """The record's bytes."""
        return self.LAYOUT.pack(*[getattr(self, name) for name in type(self).__slots__])


def round_up(value: int, unit: int) -> int:
    """``value`` raised to the next multiple of ``unit`` (a power of two)."""
    return (value + unit - 1) & -unit


def integers(typecode: Literal["I", "Q"], buffer: Buffer) -> memoryview:
    """A buffer's little-endian integers: typecode "I" for 4 bytes each, "Q" for 8, as in ``array``. Not a copy where
    the host has the same byte order."""
    if sys.byteorder == "little":
        return memoryview(buffer).cast("B").cast(typecode)
    return memoryview(little_endian(array(typecode, bytes(buffer))))


def little_endian(numbers: array[int]) -> array[int]:
    """The same numbers as they are written to disk: changed in place where the host has another byte order."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
