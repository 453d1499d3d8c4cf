"""The kernel side of one image on the fanotify engine: a group, a private bind mount and its mount mark.

EROFS opens its devices (the segment files) through the bind mount, so each of its reads raises an event. A
reader is let go once its bytes are in the segment file; a complete segment is ignored from then on and read
at native speed. When nobody answers any more the kernel allows everything, and EROFS gives EIO for what is
beyond the end of a segment file: wrong bytes are not possible.

Order: bind, mark, mount; and the other way round at the end, the group last.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Sequence

from ....erofs.errors import KernelError
from ...kernel.fanotify import Group
from ...kernel.mount import bind_private, unmount
from ...proto import fanotify as proto
from ...state.layout import segment_name
from ..log import logger
from ..stores import KeptStore, StoreTable, Waiter
from .counters import EventCounters

_BATCH = 64  # events read at once


class EventBudget:
    """Each unanswered event holds a descriptor; running out of them would fail readers. So reading stops in time."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._resume: list[Callable[[], None]] = []

    def take(self) -> None:
        self._left -= 1

    def give(self) -> None:
        self._left += 1
        while self._resume and self._left >= 2 * _BATCH:
            self._resume.pop()()

    def wait(self, resume: Callable[[], None]) -> bool:
        """True, and ``resume`` is called later, when there is no room for another batch of events now."""
        if self._left >= _BATCH:
            return False
        self._resume.append(resume)
        return True


class Watch:
    """Watches one mounted image's reads and answers them.

    Args:
        through: empty folder that becomes the bind mount of all stores (or is it already, after a restart).
        stores: the image's stores, in device table order.
    """

    def __init__(self, through: str, stores: Sequence[KeptStore], table: StoreTable, budget: EventBudget) -> None:
        self.through = through
        self.counters = EventCounters()
        self._table = table
        self._budget = budget
        self._segments = {inode: (store, number) for store in stores for inode, number in store.inodes.items()}
        self._readers: dict[int, _Reader] = {}
        self._group = Group()

    def attach(self, store_root: str, *, bound: bool) -> None:
        """Bind (unless ``bound`` already), mark and start to serve; KernelError when the kernel will not."""
        try:
            if not bound:
                bind_private(store_root, self.through)
            self._group.mark_mount(self.through)
        except OSError as error:
            self.close()
            if not bound:
                with contextlib.suppress(OSError):
                    unmount(self.through, lazy=True)
            raise KernelError(
                f"cannot watch the cache: {error.strerror}", hint="'nydus-erofs doctor' tells what is missing"
            ) from None
        self._listen()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._group.fd, self._events)

    def _events(self) -> None:
        if self._budget.wait(self._listen):
            asyncio.get_running_loop().remove_reader(self._group.fd)
            return
        for event in proto.parse(self._group.read(_BATCH * proto.EVENT_SIZE)):
            self._budget.take()
            self.counters.events += 1
            self._serve(event)

    def _serve(self, event: proto.PreContentEvent) -> None:
        status = os.fstat(event.fd)
        found = self._segments.get(status.st_ino)
        if found is None:
            self.answer(event.fd, True)  # not a segment of this image: nothing to wait for
            return
        store, segment = found
        size = store.sizes[segment]
        have = store.present(segment, status.st_size)
        if have >= size:
            self.ignore(store, segment)
            self._table.touch(store, segment)
            self.answer(event.fd, True)
        elif event.offset is None:
            self.answer(event.fd, False)
        elif have >= (end := min(size, event.offset + event.length)):
            self.answer(event.fd, True)
        else:
            self.counters.waited += 1
            reader = self._readers[event.fd] = _Reader(self, event.fd, event.pid)
            self._table.wait(store, segment, end, reader)

    def ignore(self, store: KeptStore, segment: int) -> None:
        """No more events for a complete segment. Speed only: failing costs an event at each cache miss."""
        try:
            self._group.ignore(os.path.join(self.through, store.key, segment_name(segment)))
        except OSError as error:
            logger().debug("ignore mark failed", error=str(error))

    def answer(self, fd: int, allow: bool) -> None:
        """Answer the event that came with ``fd``, which is closed."""
        if self._group.fd >= 0:
            self._group.answer(proto.response(fd, allow))
        self._readers.pop(fd, None)
        os.close(fd)
        self._budget.give()

    def try_unbind(self) -> bool:
        """Take the bind mount away; False while somebody uses the image: EROFS then holds its segments open."""
        for reader in list(self._readers.values()):
            if reader.gone():
                self._table.forget(reader)
                self.answer(reader.fd, False)
        try:
            unmount(self.through)
        except OSError as error:
            return error.errno != errno.EBUSY
        return True

    def close(self) -> None:
        """Close the group. Only when the image is not mounted any more, or is to give EIO."""
        if self._group.fd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._group.fd)
            self._group.close()


class _Reader(Waiter):
    """One unanswered event."""

    __slots__ = ("_mount", "_pid", "fd")

    def __init__(self, mount: Watch, fd: int, pid: int) -> None:
        self._mount, self.fd, self._pid = mount, fd, pid

    def answer(self, allow: bool, waited: float) -> None:
        counters = self._mount.counters
        counters.stall_total += waited
        counters.stall_max = max(counters.stall_max, waited)
        counters.denied += not allow
        self._mount.answer(self.fd, allow)

    def completed(self, store: KeptStore, segment: int) -> None:
        self._mount.ignore(store, segment)

    def gone(self) -> bool:
        """Whether the process that waited has ended (an event outlives its reader until it is answered)."""
        return self._pid > 0 and not os.path.exists(f"/proc/{self._pid}")
