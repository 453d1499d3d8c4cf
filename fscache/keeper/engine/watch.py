"""The kernel side of the fanotify engine: one group for the service, a private bind mount with a mark for each image.

EROFS opens its devices (the segment files) through its image's bind mount, so each of its reads raises an event. A
reader is let go once its bytes are in the segment file; a complete segment is ignored from then on, for every image
that has it, and read at native speed. When nobody answers any more the kernel allows everything, and EROFS gives EIO
for what is beyond the end of a segment file: wrong bytes are not possible.

One group, because the host has 128 of them (fs.fanotify.max_user_groups). Answers need not be in order, so a slow
image does not hold up another one. Order: bind, mark, mount; and the other way round at the end, the group last.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence

from ....erofs.errors import KernelError
from ...kernel import statx
from ...kernel.fanotify import Group
from ...kernel.mount import bind_private, unmount
from ...proto import fanotify as proto
from ...state.layout import segment_name
from ..log import logger
from ..stores.kept_store import KeptStore, Waiter
from ..stores.table import StoreTable
from ..trouble import report
from .counters import EventCounters

_BATCH = 64  # events read at once
_BROKEN = (errno.EBADF, errno.EFAULT, errno.EINVAL)  # not for want of something, and not for one event


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


class Watcher:
    """Owns the group, reads its events, and answers them."""

    def __init__(self, table: StoreTable, budget: EventBudget) -> None:
        self.table = table
        self._budget = budget
        self._group = Group()
        self._images: dict[int, WatchedImage] = {}  # by the id of their bind mount
        self._listen()

    def attach(self, store_root: str, through: str, stores: Sequence[KeptStore], *, bound: bool) -> WatchedImage:
        """Watch an image: bind (unless ``bound`` already) and mark; KernelError when the kernel will not.

        Args:
            through: empty folder that becomes the bind mount of all stores (or is it already, after a restart).
            stores: the image's stores, in device table order.
        """
        try:
            if not bound:
                bind_private(store_root, through)
            try:
                self._group.mark_mount(through)
                image = WatchedImage(self, through, statx.mount_id(through), stores)
            except BaseException:
                if not bound:
                    unmount(through, lazy=True)
                raise
        except OSError as error:
            raise KernelError(
                f"cannot watch the cache: {error.strerror}", hint="'nydus-erofs doctor' tells what is missing"
            ) from None
        self._images[image.mount_id] = image
        return image

    def detach(self, image: WatchedImage) -> None:
        """Its bind mount is gone, and its mark with it."""
        self._images.pop(image.mount_id, None)

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._group.fd, self._events)

    def _events(self) -> None:
        if self._budget.wait(self._listen):
            asyncio.get_running_loop().remove_reader(self._group.fd)
            return
        try:
            events = self._group.read(_BATCH * proto.EVENT_SIZE)
        except OSError as error:
            if error.errno in _BROKEN:
                raise KernelError(f"the kernel gives no events any more: {error.strerror}") from None
            report("a reader is not served", error)  # the kernel has denied it
            return
        for event in proto.parse(events):
            self._budget.take()
            try:
                status = statx.of_fd(event.fd)
            except OSError as error:  # its disk is gone
                report("a reader is not served", error)
                self.answer(event.fd, False)
                continue
            image = self._images.get(status.mount_id)
            if image is None:
                self.answer(event.fd, True)  # nothing of ours: nothing to wait for
            else:
                image.serve(event, status)

    def ignore(self, path: str) -> None:
        """No more events for a complete segment. Speed only: failing costs an event at each cache miss."""
        try:
            self._group.ignore(path)
        except OSError as error:
            logger().debug("ignore mark failed", error=str(error))

    def unignore(self, path: str) -> None:
        """Events for a segment again, by whatever path, also for images that are mounted later; OSError."""
        self._group.unignore(path)

    def ignore_nothing(self) -> None:
        """What was complete may be so no more."""
        self._group.ignore_nothing()

    def answer(self, fd: int, allow: bool, number: int = errno.EIO) -> None:
        """Answer the event that came with ``fd``, which is closed; ``number``: what a denied reader is told."""
        self._group.answer(proto.response(fd, allow, number))
        os.close(fd)
        self._budget.give()

    def close(self) -> None:
        """Close the group. Only when no image is mounted any more, or all are to give EIO."""
        asyncio.get_running_loop().remove_reader(self._group.fd)
        self._group.close()


class WatchedImage:
    """One mounted image's events, and the readers that wait."""

    def __init__(self, watcher: Watcher, through: str, mount_id: int, stores: Sequence[KeptStore]) -> None:
        self.through, self.mount_id = through, mount_id
        self.counters = EventCounters()
        self._watcher, self._table = watcher, watcher.table
        self._stores = list(stores)
        self._readers: dict[int, _Reader] = {}

    def serve(self, event: proto.PreContentEvent, status: statx.Status) -> None:
        """Let a reader go on, now or once its bytes are there."""
        self.counters.events += 1
        found = self._segment(status.inode)
        if found is None:
            self._watcher.answer(event.fd, True)  # not a segment of this image: nothing to wait for
            return
        store, segment = found
        size, have = store.size(segment), store.counting(segment, status.size)
        if store.suspect:
            self.counters.denied += 1
            self._watcher.answer(event.fd, False)
        elif have >= size:
            self.ignore(store, segment)
            self._table.touch(store, segment)
            self._watcher.answer(event.fd, True)
        elif event.offset is None:
            self._watcher.answer(event.fd, False)
        elif have >= (end := min(size, event.offset + event.length)):
            self._watcher.answer(event.fd, True)
        else:
            self.counters.waited += 1
            reader = self._readers[event.fd] = _Reader(self, event.fd, event.pid)
            self._table.wait(store, segment, end, reader)

    def _segment(self, inode: int) -> tuple[KeptStore, int] | None:
        for store in self._stores:
            assert store.folder is not None
            if (segment := store.folder.inodes.get(inode)) is not None:
                return store, segment
        return None

    def ignore(self, store: KeptStore, segment: int) -> None:
        """A segment is complete."""
        self._watcher.ignore(os.path.join(self.through, store.key, segment_name(segment)))

    def answer(self, fd: int, allow: bool, number: int = errno.EIO) -> None:
        """Answer a reader that waited."""
        self._readers.pop(fd, None)
        self._watcher.answer(fd, allow, number)

    def try_unbind(self) -> bool:
        """Take the bind mount away; False while somebody uses the image: EROFS then holds its segments open."""
        for reader in list(self._readers.values()):
            if reader.gone():
                self._table.forget(reader)
                self.answer(reader.fd, False)
        try:
            unmount(self.through)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
        for reader in list(self._readers.values()):  # nobody can wait any more
            self._table.forget(reader)
            self.answer(reader.fd, False)
        self._watcher.detach(self)
        return True


class _Reader(Waiter):
    """One unanswered event."""

    __slots__ = ("_image", "_pid", "fd")

    def __init__(self, image: WatchedImage, fd: int, pid: int) -> None:
        self._image, self.fd, self._pid = image, fd, pid

    def answer(self, allow: bool, waited: float, number: int = errno.EIO) -> None:
        counters = self._image.counters
        counters.stall_total += waited
        counters.stall_max = max(counters.stall_max, waited)
        counters.denied += not allow
        self._image.answer(self.fd, allow, number)

    def completed(self, store: KeptStore, segment: int) -> None:
        self._image.ignore(store, segment)

    def gone(self) -> bool:
        """Whether the process that waited has ended (an event outlives its reader until it is answered)."""
        return self._pid > 0 and not os.path.exists(f"/proc/{self._pid}")
