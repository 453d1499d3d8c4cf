"""The keeper's hold on a process that serves it: start it, talk to it, and start it again whenever it ends, or does
not hear while anybody waits.
"""

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
from ..stores.lies import LieError
from ..ticker import Ticker
from ..trouble import report
from .dispatch import Handler, handle
from .hearing import Hearing, Verdict
from .spawn import ended, spawn

_LONG = 5.0  # seconds after which a process that does nothing right is well all the same
_AT_ONCE = 3  # processes in a row that did nothing right, and are replaced without a pause
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds
_MAX_MESSAGE = 1 << 16  # bytes
_BATCH = 64  # packets taken before other work gets its turn


class ProcessLink:
    """One process at a time.

    Args:
        decode: what a packet of its says; msgspec.DecodeError for nonsense.
        ping: what it is asked when it has said nothing for a while; any word is an answer.
        on_start: called when a new one is there and knows nothing yet.
        on_end: called when one has ended.
        ticker: runs while somebody waits.
    """

    def __init__(
        self,
        process: Process,
        decode: Callable[[bytes], Any],
        ping: msgspec.Struct,
        on_start: Callable[[], None],
        on_end: Callable[[], None],
        ticker: Ticker,
    ) -> None:
        self._process, self._decode, self._ping = process, decode, ping
        self._on_start, self._on_end, self.ticker = on_start, on_end, ticker
        ticker.add(self._tick)
        self._hearing = Hearing(0.0)
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

    def works(self, said: object) -> bool:
        """Whether this is news of its work."""
        raise NotImplementedError

    def waits(self) -> bool:
        """Whether somebody waits for it, besides readers."""
        return False

    def idle(self) -> float:
        """Seconds without news of its work."""
        return self._hearing.idle(self.ticker.now())

    def send(self, message: msgspec.Struct, fds: Sequence[Fd] = ()) -> None:
        """Send a message and give its descriptors away. Without a process it is dropped: the next one is told all."""
        if self._outbox is None:
            channel.close(fds)
            return
        try:
            if not self._outbox.put(msgspec.json.encode(message), fds):
                asyncio.get_running_loop().add_writer(self._sock_fd, self._flush)
        except OSError:
            self._lose()

    def _lose(self) -> None:
        """One that cannot be told something ends, if it has not; the next one is told all."""
        assert self._outbox is not None
        self._outbox.discard()
        self.kill()

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
            self._lose()
        asyncio.get_running_loop().remove_writer(self._sock_fd)

    def _tick(self, now: float) -> bool:
        """Somebody waits: does it hear? Whether there is somebody of its own among them."""
        if self._outbox is not None:
            match self._hearing.look(now):
                case Verdict.ASK:
                    self.send(self._ping)
                case Verdict.REPLACE:
                    logger().error("process replaced: it does not answer", process=self._process.name, pid=self.pid)
                    self.kill()
        return self.waits()

    async def run(self) -> None:
        """Keep one running until ``stop``."""
        failures, name = 0, self._process.name
        while not self._stopping:
            started = time.monotonic()
            try:
                code = await self._live()
                lived = time.monotonic() - started
                if not self._stopping:
                    lived_for, restarts = round(lived, 3), self.restarts + 1
                    logger().warning("process ended", process=name, code=code, lived=lived_for, restarts=restarts)
            except OSError as error:
                report("no process can be started", error, process=name)
                lived = 0.0
            if self._stopping:
                return
            self._on_end()
            if self._well or lived >= _LONG:
                failures = 0
                continue
            failures += 1
            if failures > _AT_ONCE:
                await asyncio.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - _AT_ONCE - 1, 10)))

    async def _live(self) -> int:
        """One process's life; its exit code."""
        loop = asyncio.get_running_loop()
        self._well = False
        self.pid, sock = spawn(self._process, self.started_with())
        self.restarts += 1
        self._hearing = Hearing(self.ticker.now())
        sock.setblocking(False)
        self._sock_fd = sock.fileno()
        self._outbox = channel.Outbox(sock)
        loop.add_reader(sock.fileno(), self._receive, sock)
        try:
            try:
                self._on_start()
            except OSError as error:  # it cannot be told what it needs: the next one can, perhaps
                report("no process can be started", error, process=self._process.name)
                self.kill()
            return await ended(self._process, self.pid)
        finally:
            self.pid = 0
            loop.remove_reader(sock.fileno())
            loop.remove_writer(sock.fileno())
            sock.shutdown(socket.SHUT_RD)  # it may have given the other end to others: they can say no more
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
            except BlockingIOError:
                return False
            except channel.CutOffError as error:
                self._liar(error)
                break
            except OSError:
                break
            if not packet and not fds:
                break
            self._hearing.heard(self.ticker.now())
            try:
                said = handle(self._decode, self._handlers, packet, fds)
            except LieError as error:
                self._liar(error)
                break
            finally:
                channel.close(fds)
            if self.works(said):
                self._well = True
                self._hearing.worked(self.ticker.now())
        else:
            return True
        asyncio.get_running_loop().remove_reader(sock.fileno())
        self.kill()  # it is not heard any more: nobody may wait for it
        return False

    def _liar(self, error: Exception) -> None:
        logger().error(
            "process ended for what it said", process=self._process.name, pid=self.pid, said=str(error)[:200]
        )

    def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        self.kill()
