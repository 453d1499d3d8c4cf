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


class Lanes:
    """Arithmetic on whole columns: each is one large integer with a lane of 64 bits for each of ``count`` numbers.

    Fast where a loop over millions of numbers is not. Nothing may leave its lane: mask what was shifted.
    """

    def __init__(self, count: int) -> None:
        self._size = 8 * count
        self._ones = self.load(array("Q", [1]) * count)

    def load(self, numbers: array[int] | memoryview) -> int:
        """A column from integers of 8 bytes, or of 4, which are widened."""
        if numbers.itemsize == 4:
            wide = memoryview(bytearray(self._size)).cast("I")
            wide[_lowest(2)] = memoryview(numbers)
            return int.from_bytes(wide.tobytes(), sys.byteorder)
        return int.from_bytes(numbers.tobytes(), sys.byteorder)

    def each(self, value: int) -> int:
        """The same number in each lane."""
        return self._ones * value

    def store(self, typecode: Literal["B", "I", "Q"], column: int) -> array[int]:
        """The numbers of a column, cut to the size of ``typecode``."""
        numbers = memoryview(column.to_bytes(self._size, sys.byteorder)).cast(typecode)
        return array(typecode, numbers[_lowest(8 // numbers.itemsize)].tobytes())


def _lowest(parts: int) -> slice:
    """Of words of several parts each: the part with the lowest bits."""
    return slice(0 if sys.byteorder == "little" else parts - 1, None, parts)
