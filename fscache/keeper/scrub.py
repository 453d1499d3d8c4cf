"""``cache verify``: stores are compared with their plans again, one after the other, while readers read.

The verifier looks, the keeper decides; what is done about it is in ``repair.py``. A run belongs to the client who
began it: it ends when he does not ask for it any more, and what he hears is never of another one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from ...erofs.errors import BusyError, FormatError, KernelError, NydusErofsError, ServiceError
from ..kernel import channel
from ..kernel.fd import Fd
from ..proto import control, verifier
from .log import logger
from .repair import Kept, Repair, why
from .stores.kept_store import KeptStore
from .stores.lies import LieError
from .stores.table import StoreTable
from .tasks import background

MOST_DAMAGES = 1000  # that a report names; all are counted
LEASE = 20.0  # seconds that a run goes on of which nobody wants to hear
_AGAIN = 3  # verifiers that may end over one segment
_REPORTS = 8  # of the last runs

_Heard = verifier.Checked | verifier.Unreadable | verifier.Scrubbed | None  # None: the verifier ended, or all is to


class Scrub:
    """One run at a time, and the reports of the last ones."""

    def __init__(
        self, table: StoreTable, kept: Kept, show: Callable[[verifier.ToVerifier, Sequence[Fd]], None]
    ) -> None:
        self._table, self._kept, self._show = table, kept, show
        self._task: asyncio.Task[None] | None = None
        self.heard: asyncio.Queue[_Heard] = asyncio.Queue()
        self._ticket = 0
        self._next: int | None = None  # segment from which on something is to be heard; nothing is
        self._repair: Repair | None = None
        self._stopping = False
        self._asked = 0.0  # when its client wanted to hear of it
        self.report = control.ScrubStatus()
        self._reports: dict[str, control.ScrubStatus] = {}
        table.ticker.add(self._tick)

    # --- requests ---

    async def start(self, request: control.Scrub) -> control.ScrubStatus:
        """Begin; BusyError while another one runs."""
        if self.report.running:
            raise BusyError("the cache is being verified", hint="wait for whoever began that, or interrupt it there")
        run = os.urandom(8).hex()
        self.report = self._reports[run] = control.ScrubStatus(
            run=run, running=True, image=request.image, repair=request.repair
        )
        if len(self._reports) > _REPORTS:
            del self._reports[next(iter(self._reports))]
        self._stopping = False
        try:
            keys = await self._kept.keys(request.image)
        except BaseException:
            self.report.running = False
            raise
        self.report.stores = len(keys)
        self._asked = self._table.ticker.now()
        self._table.ticker.wake()
        self._task = background(self._run(self._kept, keys, request), "the cache is not verified")
        return self.report

    def ask(self, request: control.Scrubbing) -> control.ScrubStatus:
        """How far a run is, the last one unless it is named; with ``stop``, it ends after the step that it is at."""
        report = self._reports.get(request.run) if request.run else self.report
        if report is None:
            raise ServiceError("it is not known how that ended", hint="was the service started again? begin anew")
        if report is self.report:
            self._asked = self._table.ticker.now()
            if request.stop:
                self._end()
        return report

    def abandon(self) -> None:
        """End it now. What the kernel was not told to forget is known (``Kept.note_stale``)."""
        if self._task is not None:
            self._task.cancel()

    def _end(self) -> None:
        if self.report.running:
            self._stopping = True
            self._end_with(None)

    def _tick(self, now: float) -> bool:
        """While it runs the verifier is asked whether it hears."""
        if self.report.running and now - self._asked > LEASE and not self._stopping:
            logger().warning("nobody wants to hear of it: the cache is not verified any further")
            self._end()
        return self.report.running

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

    def on_unreadable(self, message: verifier.Unreadable) -> None:
        store = self._table.known(message.store)
        if store is None or message.ticket != self._ticket or self._next is None:
            return
        if not self._next <= message.segment < len(store.have):
            raise LieError(f"store {store.label} has no segment {message.segment} to look at")
        self._next = message.segment + 1
        self.heard.put_nowait(message)

    def on_scrubbed(self, message: verifier.Scrubbed) -> None:
        if self._table.known(message.store) is not None and message.ticket == self._ticket:
            self._end_with(message)

    def on_shortened(self, message: verifier.Shortened) -> None:
        if (store := self._table.known(message.store)) is not None:
            if self._repair is not None:
                self._repair.uncut = message.error
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
                    # A store that makes no sense is made anew with the next mount.
                    gone = request.repair and isinstance(error, FormatError) and await kept.discard(key)
                    store = self._table.opened(key)
                    targets = [] if store is None else kept.targets(store)
                    self._damaged(control.Damage(key, targets, -1, 0, 0, gone, why(error)))
                if self._stopping:
                    return
                report.stores_done += 1
            for name in await kept.boots(request.image):
                await self._boot(kept, name, request)
            report.finished = True
        finally:
            report.running = False
            logger().info(
                "cache verified", stores=report.stores_done, bytes=report.bytes, damaged=report.damaged,
                repaired=report.repaired, finished=report.finished,
            )  # fmt: skip

    async def _boot(self, kept: Kept, name: str, request: control.Scrub) -> None:
        try:
            right = await kept.boot_is_right(name)
        except NydusErofsError as error:
            self._damaged(control.Damage("", kept.mounted_boots(name), -1, 0, 0, False, why(error)))
            return
        self.report.bootstraps += 1
        if not right:
            targets = kept.mounted_boots(name)
            logger().error("bootstrap is damaged", image=name, mounted=targets)
            gone = request.repair and await kept.discard_boot(name)
            what = "its bootstrap is damaged" + (": unmount it, then repair it" if targets else "")
            self._damaged(control.Damage("", targets, -1, 0, 0, gone, what))

    async def _one(self, kept: Kept, key: str, request: control.Scrub) -> None:
        store = await kept.hold(key)
        if store is None:
            self.report.skipped += 1
            return
        found: list[control.Damage] = []
        self._repair = Repair(self._table, kept, store)
        try:
            with self._table.settling.opening(key):  # it may be written to
                error = await self._look(kept, store, request, found)
                self._end_look()
                wrong = await self._repair.finish(fetch=not self._stopping)
            if store.complete:
                self._table.settling.complete(store)
            while self._table.settling.is_opening(key):
                await asyncio.sleep(0.05)  # who is about to open it has looked at it before it was cut
            targets = kept.targets(store)
        finally:
            self._end_look()
            self._repair = None
            self._table.close(store)
        whole = error == verifier.NO_PLAN or any(damage.error == verifier.NO_FILE for damage in found)
        gone = request.repair and whole and await kept.discard(key)
        for damage in found:
            damage.repaired |= gone
            self.report.repaired += damage.repaired
        for text in filter(None, [error, *wrong]):
            self._damaged(control.Damage(key, targets, -1, 0, 0, gone, text))

    def _end_look(self) -> None:
        self._next = None
        self._show(verifier.EndScrub(), [])

    async def _look(self, kept: Kept, store: KeptStore, request: control.Scrub, found: list[control.Damage]) -> str:
        """Have each segment looked at; why that could not be done to the end."""
        first, tries = 0, 0
        while tries < _AGAIN and not self._stopping:
            await self._until_looked(store)
            files = await kept.file(store)
            if self._stopping or not store.looked:
                channel.close(files)
                continue
            before, ticket = list(store.have), self.listen(first)
            self._show(verifier.Scrub(ticket, store.number, kept.plan(store), first, request.rate), files)
            while not self._stopping and (message := await self.heard.get()) is not None:
                if isinstance(message, verifier.Scrubbed):
                    return message.error
                await self._heard_of(kept, store, message, before[message.segment], request, found)
                first, tries = message.segment + 1, 0
            tries += 1
        return "" if self._stopping else "verifiers end over it"

    async def _until_looked(self, store: KeptStore) -> None:
        while not (store.looked or self._stopping):
            if store.barred is not None:
                raise KernelError(f"it cannot be looked at: {store.barred.message}")
            await asyncio.sleep(0.01)

    async def _heard_of(
        self, kept: Kept, store: KeptStore, message: verifier.Checked | verifier.Unreadable, before: int,
        request: control.Scrub, found: list[control.Damage],
    ) -> None:  # fmt: skip
        """Of one segment, of which the keeper knew so many bytes ``before`` it was looked at."""
        segment, targets = message.segment, kept.targets(store)
        damage = control.Damage(store.key, targets, segment, 0, before, False, "")
        if isinstance(message, verifier.Unreadable):
            damage.error = message.error
        else:
            self.report.bytes += message.bytes
            self.report.bytes_unknown += message.unknown
            damage.byte, damage.bytes = message.good, message.bytes
            if store.folder is None:  # the kernel's: what is not used by the image has no bytes there
                before = 0
            elif store.folder.inodes.get(message.inode) != segment:
                damage.error = "another file is in its place: unmount its images, and mount them again"
            if not damage.error and message.good == message.bytes >= before:
                if message.bytes < store.size(segment):
                    kept.unignore(store, segment)  # somebody may have cut it when it was complete
                return
        logger().error("segment is damaged", store=store.label, segment=segment, byte=damage.byte, mounted=targets)
        found.append(damage)
        self._damaged(damage)
        if request.repair and not damage.error:
            assert self._repair is not None
            await self._repair.cut(segment, damage.byte, damage)

    def _damaged(self, damage: control.Damage) -> None:
        self.report.damaged += 1
        self.report.repaired += damage.repaired
        if len(self.report.damages) < MOST_DAMAGES:
            self.report.damages.append(damage)
