"""The keeper's hold on its worker: start it, talk to it, and start it again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from ...erofs.errors import BackendError
from ..kernel import channel
from ..proto import worker as proto
from .log import logger
from .spawn import exited, spawn
from .stores import StoreMessage

_QUICK = 1.0  # a worker that lived less than these seconds was not well
_BACKOFF_MAX = 2.0
_PATIENCE = 30.0  # seconds for the worker to look at a bootstrap
_MOST_WORKERS = 5  # that one question is put to
_GIVE_UP = 30.0  # seconds without a healthy worker until waiting readers get EIO


@dataclass(slots=True)
class _Asked:
    """A question that has no answer yet, and how many workers it was put to."""

    question: proto.Question
    fd: int | None
    answer: asyncio.Future[proto.Answer]
    workers: int = 1


class WorkerLink:
    """One worker process at a time.

    Args:
        limits: of each worker (``worker.Limits``).
        kinds: of the backends that it must be able to reach.
        on_message: called with each message of the worker.
        on_start: called when a new worker is there and knows nothing yet.
        on_hopeless: called when no worker has lived for long: readers should not wait any more.
    """

    def __init__(
        self,
        uid: int,
        limits: Sequence[int],
        kinds: Sequence[str],
        on_message: Callable[[StoreMessage | proto.Traffic], None],
        on_start: Callable[[], None],
        on_hopeless: Callable[[], None],
    ) -> None:
        self._arguments = (uid, *limits)
        self._kinds = list(kinds)
        self._on_message, self._on_start, self._on_hopeless = on_message, on_start, on_hopeless
        self._outbox: channel.Outbox | None = None
        self._sock_fd = -1
        self._stopping = False
        self._asked: dict[int, _Asked] = {}
        self._ticket = 0
        self.pid = 0
        self.restarts = -1

    def send(self, message: proto.ToWorker, fds: Sequence[int] = ()) -> None:
        """Send a message and give its descriptors away. Without a worker it is dropped: the next one is told all."""
        if self._outbox is None:
            for fd in fds:
                os.close(fd)
            return
        try:
            if not self._outbox.put(proto.encode(message), fds):
                asyncio.get_running_loop().add_writer(self._sock_fd, self._flush)
        except OSError:
            self._outbox.discard()  # it died; run() notices

    async def inspect(self, bootstrap_fd: int) -> list[tuple[str, int]]:
        """The blobs of a bootstrap: (id, bytes of its uncompressed address space); FormatError when it is none."""
        answer = await self.ask(proto.Inspect, bootstrap_fd, _PATIENCE)
        assert isinstance(answer, proto.Inspected)
        return answer.blobs

    async def ask(self, question: Callable[[int], proto.Question], fd: int | None, patience: float) -> proto.Answer:
        """Ask the worker, and the next one if it dies over it.

        Args:
            question: makes the message of a ticket.
            fd: goes with it, if there is one; stays the caller's.

        Raises:
            NydusErofsError: the worker says what is wrong, or nothing within ``patience`` seconds.
        """
        self._ticket += 1
        message = question(self._ticket)
        answer: asyncio.Future[proto.Answer] = asyncio.get_running_loop().create_future()
        self._asked[message.ticket] = _Asked(message, fd, answer)
        try:
            self.send(message, [] if fd is None else [os.dup(fd)])
            said = await asyncio.wait_for(answer, patience)
        except TimeoutError:
            raise BackendError(f"no answer within {patience:.0f} s", hint="see the log") from None
        finally:
            del self._asked[message.ticket]
        if isinstance(said, proto.NotDone):
            raise said.fault.error()
        return said

    def require(self, kind: str) -> None:
        """See to it that the worker can reach backends of this kind. It cannot load what is missing once it runs
        without privilege, so it makes room for another one, which its readers do not notice."""
        if kind in self._kinds:
            return
        self._kinds.append(kind)
        if self.pid:
            logger().info("worker replaced, to load a backend", backend=kind)
            with contextlib.suppress(ProcessLookupError):
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
        """Keep a worker running until ``stop``."""
        healthy = time.monotonic()
        backoff = 0.0
        while not self._stopping:
            started = time.monotonic()
            code = await self._live()
            lived = time.monotonic() - started
            if self._stopping:
                return
            killed = code == -signal.SIGKILL
            logger().warning("worker ended", code=code, lived=round(lived, 3), restarts=self.restarts + 1)
            if lived >= _QUICK or killed:
                healthy, backoff = time.monotonic(), 0.0
                continue
            backoff = min(_BACKOFF_MAX, backoff * 2 or 0.1)
            if time.monotonic() - healthy > _GIVE_UP:
                self._on_hopeless()
            await asyncio.sleep(backoff)

    async def _live(self) -> int:
        """One worker's life; its exit code."""
        loop = asyncio.get_running_loop()
        self.pid, sock = spawn("worker", *self._arguments, *self._kinds)
        self.restarts += 1
        sock.setblocking(False)
        self._sock_fd = sock.fileno()
        self._outbox = channel.Outbox(sock)
        loop.add_reader(sock.fileno(), self._receive, sock)
        try:
            self._on_start()
            for asked in self._asked.values():
                asked.workers += 1
                if asked.workers > _MOST_WORKERS and not asked.answer.done():
                    asked.answer.set_exception(BackendError("every worker died over this", hint="see the log"))
                else:
                    self.send(asked.question, [] if asked.fd is None else [os.dup(asked.fd)])
            return await exited(self.pid)
        finally:
            self.pid = 0
            loop.remove_reader(sock.fileno())
            loop.remove_writer(sock.fileno())
            self._receive(sock)  # what it said last
            self._outbox.discard()
            self._outbox = None
            sock.close()

    def _receive(self, sock: object) -> None:
        while True:
            try:
                packet, fds = channel.receive(sock, proto.MAX_MESSAGE)  # type: ignore[arg-type]
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            for fd in fds:
                os.close(fd)
            if not packet:
                asyncio.get_running_loop().remove_reader(self._sock_fd)
                return
            try:
                message = proto.decode_for_keeper(packet)
            except msgspec.DecodeError as error:
                logger().error("worker sent nonsense", error=str(error))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                return
            if not isinstance(message, proto.Answer):
                self._on_message(message)
            elif (asked := self._asked.get(message.ticket)) is not None and not asked.answer.done():
                asked.answer.set_result(message)

    def stop(self) -> None:
        """End the worker for good."""
        self._stopping = True
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
