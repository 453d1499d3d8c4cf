"""Where inodes and blocks go in the metadata area.

Places are byte offsets from the area's start, always multiples of a slot (32 bytes). What is left of a
block when something had to start in the next one is kept and filled with inodes that fit, so that the
area has hardly any holes.
"""

from __future__ import annotations

from ..erofs.ondisk import BLOCK_SIZE, SLOT_SIZE
from ..erofs.record import round_up

_SLOTS = BLOCK_SIZE // SLOT_SIZE


class Allocator:
    """Hands out places. ``end`` is the first byte never handed out."""

    def __init__(self) -> None:
        self.end = BLOCK_SIZE  # the area's first block stays unused: the root inode has nid 128
        self._gaps: list[list[int]] = [[] for _ in range(_SLOTS)]  # by length in slots
        self._lengths = 0  # bit n: there is a gap of n slots

    def inode(self, size: int) -> int:
        """A place for ``size`` bytes that may cross blocks."""
        place = self._from_gap(size)
        if place is None:
            place = self.end
            self.end = place + round_up(size, SLOT_SIZE)
        return place

    def within_block(self, size: int) -> int:
        """A place for ``size`` bytes (at most a block) inside one block."""
        place = self._from_gap(size)
        if place is None:
            if -self.end % BLOCK_SIZE < size:
                self._align()
            place = self.end
            self.end = place + round_up(size, SLOT_SIZE)
        return place

    def blocks(self, size: int) -> int:
        """A place for ``size`` bytes of whole blocks."""
        self._align()
        place = self.end
        self.end = place + size
        return place

    def _align(self) -> None:
        rest = -self.end % BLOCK_SIZE
        if rest:
            self._keep(self.end, rest // SLOT_SIZE)
            self.end += rest

    def _keep(self, place: int, slots: int) -> None:
        self._gaps[slots].append(place)
        self._lengths |= 1 << slots

    def _from_gap(self, size: int) -> int | None:
        """The shortest gap that is long enough, if there is one."""
        slots = -(-size // SLOT_SIZE)
        fitting = self._lengths >> slots
        if not fitting:
            return None
        length = slots + (fitting & -fitting).bit_length() - 1
        gaps = self._gaps[length]
        place = gaps.pop()
        if not gaps:
            self._lengths ^= 1 << length
        if length > slots:
            self._keep(place + slots * SLOT_SIZE, length - slots)
        return place
