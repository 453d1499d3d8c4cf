"""The filesystem of the state folder: what is on it for good.

The kernel tells of a write that failed once, to whoever had the filesystem open before and syncs it (syncfs(2),
Linux 5.8), and then drops what it could not write. So it is opened before anything is written to it, for the
service's life, and each sync is done through this one descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from ...erofs.errors import NydusErofsError
from ..kernel.fd import Fd
from ..kernel.mount import sync_filesystem
from .children.errands import Say, errand
from .stores import epoch
from .tasks import background
from .trouble import report

_PATIENCE = 3600.0  # seconds for one sync: all that the machine has not written yet may be on its way
_PAUSE, _AGAIN = 0.02, 5.0  # seconds
LATER = 15.0  # seconds
LOOK = 30.0  # seconds between looks whether it has lost anything, while anything is written
LOST = "the disk has lost what was written"

WhenWritten = Callable[[bool], None]  # told whether it is on the disk, and nothing of this era is lost


class Disk:
    """Writes it out, as often as somebody asks; one sync for all who have asked before it.

    Args:
        on_lost: called when an era has ended.
    """

    def __init__(self, root: str, on_lost: Callable[[], None] = lambda: None) -> None:
        self._on_lost = on_lost
        self._fd = Fd(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._asked: list[WhenWritten] = []
        self._deferred: list[WhenWritten] = []
        self._busy = False

    def write_out(self, done: WhenWritten) -> None:
        """Have all that was written until now written to the disk."""
        self._asked.append(done)
        if not self._busy:
            self._busy = True
            background(self._write_out(), "nothing is written to the disk")

    def write_out_later(self, done: WhenWritten) -> None:
        """The same for what is in no hurry."""
        self._deferred.append(done)
        if len(self._deferred) == 1:
            asyncio.get_running_loop().call_later(LATER, self._now)

    def _now(self) -> None:
        deferred, self._deferred = self._deferred, []
        for done in deferred:
            self.write_out(done)

    async def _write_out(self) -> None:
        try:
            while asked := self._asked:
                self._asked = []
                written = await self._sync()
                if written is None:
                    self._asked = [*asked, *self._asked]
                    await asyncio.sleep(_AGAIN)
                    continue
                for done in asked:
                    done(written)
        finally:
            self._busy = False

    async def _sync(self) -> bool | None:
        """Whether nothing was lost; None when it could not be tried."""
        fd, tried = self._fd, False

        def call(say: Say) -> None:
            say(b"", [])
            sync_filesystem(fd.fd)

        what = "writing the state folder to the disk"
        try:
            async with contextlib.aclosing(errand(call, what, _PATIENCE, [fd])) as said:
                async for _ in said:
                    tried = True
        except NydusErofsError as error:
            if not tried:
                report("nothing is written to the disk", error)
                return None
            epoch.new_era()  # the next sync says nothing of what this one did not write
            report(LOST, error)
            self._on_lost()
            return False
        return True

    async def look(self, written: Callable[[], int]) -> None:
        """For ever: while anything is written, see now and then whether the disk takes it.

        Args:
            written: tells how much was, in any unit.
        """
        before = 0
        while True:
            await asyncio.sleep(LOOK)
            if (now := written()) != before:
                self.write_out(lambda _: None)
            before = now

    async def drained(self) -> None:
        """Wait until all that somebody wants written out is."""
        self._now()
        while self._busy:
            await asyncio.sleep(_PAUSE)
