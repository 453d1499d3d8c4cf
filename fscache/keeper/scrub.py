"""``cache verify``: stores are compared with their plans again, one after the other, while readers read.

The verifier looks, the keeper decides. A wrong segment is cut to what is right before its first wrong byte, which is
what a segment that was never filled any further looks like: readers wait and get right bytes, or EIO.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import Protocol

from ...erofs.errors import BusyError, KernelError, NydusErofsError
from ..kernel import channel
from ..kernel.fd import Fd
from ..proto import control, verifier
from .log import logger
from .stores.kept_store import KeptStore, Waiter
from .stores.lies import LieError
from .stores.table import StoreTable
from .tasks import background
from .trouble import is_bug, refusal

MOST_DAMAGES = 1000  # that a report names; all are counted
_AGAIN = 3  # verifiers that may end over one segment


class Kept(Protocol):
    """What an engine knows of the stores that it keeps."""

    async def keys(self, image: str) -> list[str]:
        """Stores of an image, of everything mounted and unmounted for ""; ServiceError when it is not known."""
        ...

    async def hold(self, key: str) -> KeptStore | None:
        """Open a store, or join who has it open; None when it cannot be looked at. FormatError, OSError."""
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

    async def forget_pages(self, store: KeptStore) -> None:
        """What the kernel has in memory of files that have bytes of it is to be read again."""
        ...

    async def discard(self, key: str) -> bool:
        """Remove a store that nobody has open; False when somebody has."""
        ...


class Scrub:
    """One run at a time, and the report of the last one."""

    def __init__(
        self, table: StoreTable, kept: Kept, show: Callable[[verifier.ToVerifier, Sequence[Fd]], None]
    ) -> None:
        self._table, self._kept, self._show = table, kept, show
        self._task: asyncio.Task[None] | None = None
        self.heard: asyncio.Queue[verifier.Checked | verifier.Scrubbed | None] = asyncio.Queue()  # None: it ended
        self._ticket = 0
        self._next: int | None = None  # segment from which on something is to be heard; nothing is
        self._uncut = ""  # why the last one could not be cut
        self.report = control.ScrubStatus()

    # --- requests ---

    async def start(self, request: control.Scrub) -> control.ScrubStatus:
        """Begin; BusyError while another one runs."""
        if self.report.running:
            raise BusyError("the cache is being verified", hint="wait for it, or end it: 'nydus-erofs cache stop'")
        self.report = control.ScrubStatus(running=True, image=request.image, repair=request.repair)
        try:
            keys = await self._kept.keys(request.image)
        except BaseException:
            self.report.running = False
            raise
        self.report.stores = len(keys)
        self._task = background(self._run(self._kept, keys, request), "the cache is not verified")
        return self.report

    def stop(self) -> control.ScrubStatus:
        """End it; what was wrong and cut stays cut."""
        if self._task is not None:
            self._task.cancel()
        return self.report

    # --- what the verifier says ---

    def on_checked(self, message: verifier.Checked) -> None:
        """LieError for what cannot be true; so the others."""
        store = self._table.known(message.store)
        if store is None or message.ticket != self._ticket or self._next is None:
            return
        most = store.size(message.segment) if message.segment < len(store.have) else -1
        if message.segment < self._next or not max(message.good, message.unknown) <= message.bytes <= most:
            raise LieError(f"segment {message.segment} of store {store.label} cannot be like that")
        self._next = message.segment + 1
        self.heard.put_nowait(message)

    def on_scrubbed(self, message: verifier.Scrubbed) -> None:
        if self._table.known(message.store) is not None and message.ticket == self._ticket:
            self._end_with(message)

    def on_shortened(self, message: verifier.Shortened) -> None:
        if (store := self._table.known(message.store)) is not None:
            self._uncut = message.error
            self._table.shortened(store, message.segment, message.have)

    def on_no_verifier(self) -> None:
        """Whoever waits for it waits for the next one."""
        self._end_with(None)

    def _end_with(self, last: verifier.Scrubbed | None) -> None:
        if self._next is not None:
            self._next = None
            self.heard.put_nowait(last)

    def listen(self, first: int) -> int:
        """From now on hear of each segment from ``first`` on, once; the ticket."""
        while not self.heard.empty():
            self.heard.get_nowait()
        self._ticket, self._next = self._ticket + 1, first
        return self._ticket

    # --- the work ---

    async def _run(self, kept: Kept, keys: Sequence[str], request: control.Scrub) -> None:
        logger().info("verifying the cache", image=request.image or "all", stores=len(keys), repair=request.repair)
        report = self.report
        try:
            for key in keys:
                try:
                    await self._one(kept, key, request)
                except (OSError, NydusErofsError) as error:
                    if is_bug(error):
                        raise
                    failure = error if isinstance(error, NydusErofsError) else refusal(error)
                    self._damaged(kept, key, None, failure.message)
                report.stores_done += 1
        finally:
            report.running = False
            logger().info(
                "cache verified", stores=report.stores_done, bytes=report.bytes, damaged=report.damaged,
                repaired=report.repaired,
            )  # fmt: skip

    async def _one(self, kept: Kept, key: str, request: control.Scrub) -> None:
        store = await kept.hold(key)
        if store is None:
            self.report.skipped += 1
            return
        try:
            error = await self._look(kept, store, request)
        finally:
            self._next = None
            self._show(verifier.EndScrub(), [])
            self._table.close(store)
        if error:
            repaired = request.repair and error == verifier.NO_PLAN and await kept.discard(key)
            self._damaged(kept, key, None, error, repaired=repaired)

    async def _look(self, kept: Kept, store: KeptStore, request: control.Scrub) -> str:
        """Have each segment looked at; why that could not be done to the end."""
        first, tries = 0, 0
        while tries < _AGAIN:
            await self._until_looked(store)
            files = await kept.file(store)
            if not store.looked:
                channel.close(files)
                continue
            ticket = self.listen(first)
            self._show(verifier.Scrub(ticket, store.number, kept.plan(store), first, request.rate), files)
            while (message := await self.heard.get()) is not None:
                if isinstance(message, verifier.Scrubbed):
                    return message.error
                if isinstance(message, verifier.Checked):
                    await self._found(kept, store, message, repair=request.repair)
                    first, tries = message.segment + 1, 0
            tries += 1
        return "verifiers end over it"

    async def _until_looked(self, store: KeptStore) -> None:
        while not store.looked:
            await asyncio.sleep(0.05)

    async def _found(self, kept: Kept, store: KeptStore, found: verifier.Checked, *, repair: bool) -> None:
        self.report.bytes += found.bytes
        self.report.bytes_unknown += found.unknown
        if found.good >= found.bytes:
            return
        segment, good = found.segment, found.good
        logger().error(
            "segment is damaged", store=store.label, segment=segment, byte=good, mounted=kept.targets(store)
        )
        if not repair:
            self._damaged(kept, store.key, found, "")
            return
        error = ""
        try:
            await kept.begin(store)
            kept.unignore(store, segment)
            self._table.shorten(store, segment, good)
            await self._shortened(store, segment)
            await kept.forget_pages(store)
            if kept.targets(store):
                await self._fetched(store, segment)
                await kept.forget_pages(store)  # of who was reading just then
        except (OSError, NydusErofsError) as failure:
            if is_bug(failure):
                raise
            error = failure.message if isinstance(failure, NydusErofsError) else refusal(failure).message
        self._damaged(kept, store.key, found, error, repaired=not error)

    async def _shortened(self, store: KeptStore, segment: int) -> None:
        while segment in store.shortening:
            await asyncio.sleep(0.01)
        if self._uncut:
            raise KernelError(f"it cannot be cut: {self._uncut}")

    async def _fetched(self, store: KeptStore, segment: int) -> None:
        """Wait as a reader would."""
        if store.have[segment] == store.size(segment):
            return
        waiter = _Refetch()
        self._table.wait(store, segment, store.size(segment), waiter)
        if not await waiter.done:
            raise KernelError(store.counters.last_error or "its blob cannot be read now")

    def _damaged(
        self, kept: Kept, key: str, found: verifier.Checked | None, error: str, *, repaired: bool = False
    ) -> None:
        self.report.damaged += 1
        self.report.repaired += repaired
        if len(self.report.damages) < MOST_DAMAGES:
            store = self._table.opened(key)
            mounted = [] if store is None else kept.targets(store)
            segment, byte, size = (-1, 0, 0) if found is None else (found.segment, found.good, found.bytes)
            self.report.damages.append(control.Damage(key, mounted, segment, byte, size, repaired, error))


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
