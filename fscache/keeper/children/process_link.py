"""The keeper's hold on a process that serves it: start it, talk to it, and start it again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ...kernel import channel
from ...kernel.fd import Fd
from ...processes import Process
from ..log import logger
from ..stores.table import LieError
from .dispatch import Handler, handle
from .spawn import ended, spawn

_LONG = 5.0  # seconds after which a process that does nothing right is well all the same
_AT_ONCE = 3  # processes in a row that did nothing right, and are replaced without a pause
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds
_GIVE_UP = 30.0  # seconds without a healthy process until waiting readers get EIO
_MAX_MESSAGE = 1 << 16  # bytes
_BATCH = 64  # packets taken before other work gets its turn


class ProcessLink:
    """One process at a time.

    Args:
        decode: what a packet of its says; msgspec.DecodeError for nonsense.
        on_start: called when a new one is there and knows nothing yet.
        on_end: called when one has ended.
        on_hopeless: called when none has lived for long: readers should not wait any more.
    """

    def __init__(
        self,
        process: Process,
        decode: Callable[[bytes], Any],
        on_start: Callable[[], None],
        on_end: Callable[[], None],
        on_hopeless: Callable[[], None],
    ) -> None:
        self._process, self._decode = process, decode
        self._on_start, self._on_end, self._on_hopeless = on_start, on_end, on_hopeless
        self._handlers: Mapping[type, Handler] = {}
        self._outbox: channel.Outbox | None = None
        self._sock_fd = -1
        self._stopping = False
        self._well = False  # this process did something right
        self.pid = 0
        self.restarts = -1

    def listen(self, handlers: Mapping[type, Handler]) -> None:
        """What is done with each kind of message (``dispatch``)."""
        self._handlers = handlers

    def started_with(self) -> str:
        """The argument of its command line."""
        raise NotImplementedError

    def does_right(self, said: object) -> bool:
        """Whether only a process that is well says this."""
        raise NotImplementedError

    def send(self, message: msgspec.Struct, fds: Sequence[Fd] = ()) -> None:
        """Send a message and give its descriptors away. Without a process it is dropped: the next one is told all."""
        if self._outbox is None:
            channel.close(fds)
            return
        try:
            if not self._outbox.put(msgspec.json.encode(message), fds):
                asyncio.get_running_loop().add_writer(self._sock_fd, self._flush)
        except OSError:
            self._outbox.discard()  # it died; run() notices

    def kill(self) -> None:
        """End it; another one takes its place."""
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)

    def _flush(self) -> None:
        assert self._outbox is not None
        try:
            if not self._outbox.flush():
                return
        except OSError:
            self._outbox.discard()
        asyncio.get_running_loop().remove_writer(self._sock_fd)

    async def run(self) -> None:
        """Keep one running until ``stop``."""
        healthy = time.monotonic()
        failures = 0
        while not self._stopping:
            started = time.monotonic()
            code = await self._live()
            if self._stopping:
                return
            lived = time.monotonic() - started
            name = self._process.name
            logger().warning(f"{name} ended", code=code, lived=round(lived, 3), restarts=self.restarts + 1)
            self._on_end()
            if self._well or lived >= _LONG:
                healthy, failures = time.monotonic(), 0
                continue
            failures += 1
            if time.monotonic() - healthy > _GIVE_UP:
                self._on_hopeless()
            if failures > _AT_ONCE:
                await asyncio.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - _AT_ONCE - 1, 10)))

    async def _live(self) -> int:
        """One process's life; its exit code."""
        loop = asyncio.get_running_loop()
        self.pid, sock = spawn(self._process, self.started_with())
        self.restarts += 1
        self._well = False
        sock.setblocking(False)
        self._sock_fd = sock.fileno()
        self._outbox = channel.Outbox(sock)
        loop.add_reader(sock.fileno(), self._receive, sock)
        try:
            self._on_start()
            return await ended(self._process, self.pid)
        finally:
            self.pid = 0
            loop.remove_reader(sock.fileno())
            loop.remove_writer(sock.fileno())
            while self._receive(sock):  # what it said last
                pass
            self._outbox.discard()
            self._outbox = None
            sock.close()

    def _receive(self, sock: socket.socket) -> bool:
        """Do what it says; whether there may be more of it."""
        for _ in range(_BATCH):
            try:
                packet, fds = channel.receive(sock, _MAX_MESSAGE)
                if not packet and not fds:
                    break
                try:
                    self._well |= self.does_right(handle(self._decode, self._handlers, packet, fds))
                finally:
                    channel.close(fds)
            except BlockingIOError:
                return False
            except (LieError, channel.CutOffError) as error:
                name = self._process.name
                logger().error(f"{name} ended for what it said", pid=self.pid, said=str(error)[:200])
                break
            except OSError:
                break
        else:
            return True
        asyncio.get_running_loop().remove_reader(sock.fileno())
        self.kill()  # it is not heard any more: nobody may wait for it
        return False

    def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        self.kill()
