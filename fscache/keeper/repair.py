"""``cache verify --repair``: what is wrong in a store is cut, forgotten by the kernel, and fetched again.

A wrong segment is cut to what is right before its first wrong byte, which is what a segment that was never filled any
further looks like: readers wait and get right bytes, or EIO. From the first cut on it is noted of each mount that the
kernel may remember wrong bytes of it, until that is known not to be so.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Protocol

from ...erofs.errors import KernelError, NydusErofsError
from ..kernel.fd import Fd
from ..proto.control import Damage
from .stores.kept_store import KeptStore, Waiter
from .stores.table import StoreTable
from .trouble import is_bug, refusal


class Kept(Protocol):
    """What an engine knows of the stores that it keeps."""

    async def keys(self, image: str) -> list[str]:
        """Stores of an image, of everything mounted and unmounted for ""; ServiceError when it is not known."""
        ...

    async def hold(self, key: str) -> KeptStore | None:
        """Open a store, or join who has it open; None when it cannot be looked at. FormatError, OSError."""
        ...

    async def boots(self, image: str) -> list[str]:
        """The same for bootstraps that were made for mounting: names."""
        ...

    async def boot_is_right(self, name: str) -> bool:
        """Whether it is as it was when it was made, as far as that is known."""
        ...

    def mounted_boots(self, name: str) -> list[str]:
        """Where it is mounted."""
        ...

    async def discard_boot(self, name: str) -> bool:
        """Remove it, to be made anew with the next mount, unless it is mounted."""
        ...

    async def begin(self, store: KeptStore) -> None:
        """Note on disk that it is going to be written to."""
        ...

    def plan(self, store: KeptStore) -> str:
        """Key of its plan."""
        ...

    async def file(self, store: KeptStore) -> list[Fd]:
        """The file that it is on disk, if the verifier does not have that anyway."""
        ...

    def targets(self, store: KeptStore) -> list[str]:
        """Where images that have it are mounted."""
        ...

    def unignore(self, store: KeptStore, segment: int) -> None:
        """Readers of this segment are to be seen again."""
        ...

    def note_stale(self, store: KeptStore) -> None:
        """What the kernel has in memory of its images may be wrong, until ``forget_at_last``."""
        ...

    def stale(self, store: KeptStore) -> bool:
        """Whether that is so of any of them."""
        ...

    async def forget_pages(self, store: KeptStore) -> None:
        """Have the kernel forget what it can of its images' files."""
        ...

    async def forget_at_last(self, store: KeptStore) -> list[str]:
        """The same, when everything is there again; files that are wrong in memory all the same."""
        ...

    async def discard(self, key: str) -> bool:
        """Remove a store that nobody has open; False when somebody has."""
        ...


class Repair:
    """Of one store."""

    def __init__(self, table: StoreTable, kept: Kept, store: KeptStore) -> None:
        self._table, self._kept, self._store = table, kept, store
        self._cut: dict[int, Damage] = {}  # by segment
        self._begun = False
        self.uncut = ""  # why the last one could not be cut

    async def cut(self, segment: int, good: int, damage: Damage) -> None:
        """Let nobody read more than the first ``good`` bytes of a segment. What fails is said in ``damage``."""
        try:
            if not self._begun:
                await self._kept.begin(self._store)
                self._begun = True
            self._kept.note_stale(self._store)
            self._kept.unignore(self._store, segment)
            self._table.shorten(self._store, segment, good)
            while segment in self._store.shortening:
                await asyncio.sleep(0.01)
            if self.uncut:
                raise KernelError(f"it cannot be cut: {self.uncut}")
        except (OSError, NydusErofsError) as error:
            damage.error = why(error)
        else:
            self._cut[segment] = damage

    async def finish(self, *, fetch: bool) -> list[str]:
        """Have everything that was cut forgotten, and fetched again; files that are wrong in memory all the same.

        Args:
            fetch: or else it is, when it is read.
        """
        kept, store = self._kept, self._store
        if not (self._cut or kept.stale(store)):
            return []
        try:
            await kept.forget_pages(store)
            if fetch and kept.targets(store):
                for segment, damage in self._cut.items():
                    damage.error = await self._fetched(segment)
            wrong = await kept.forget_at_last(store)
        except (OSError, NydusErofsError) as error:
            for damage in self._cut.values():
                damage.error = damage.error or why(error)
            return [] if self._cut else [why(error)]
        for damage in self._cut.values():
            damage.repaired = not damage.error
        return [f"{name} is wrong in memory: end what has it mapped" for name in wrong]

    async def _fetched(self, segment: int) -> str:
        """Wait as a reader would; why it was in vain."""
        store = self._store
        if store.have[segment] == store.size(segment):
            return ""
        waiter = _Refetch()
        self._table.wait(store, segment, store.size(segment), waiter)
        return "" if await waiter.done else store.counters.last_error or "its blob cannot be read now"


def why(error: OSError | NydusErofsError) -> str:
    """What a person is told of trouble; a bug is none, and goes on."""
    if is_bug(error):
        raise error
    return error.message if isinstance(error, NydusErofsError) else refusal(error).message


class _Refetch(Waiter):
    """Waits for a segment as a reader does."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer(self, allow: bool, waited: float, number: int = errno.EIO) -> None:
        if not self.done.done():
            self.done.set_result(allow)

    def completed(self, store: KeptStore, segment: int) -> None:
        """Readers who come see to it."""
