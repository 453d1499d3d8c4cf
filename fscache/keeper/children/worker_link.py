"""The keeper's hold on its worker: start it, talk to it, and start it again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ....erofs.errors import BackendError
from ...config.backend import Remote
from ...kernel import channel
from ...kernel.fd import Fd
from ...processes import WORKER
from ...proto import worker as proto
from ..log import logger
from ..stores.lies import LieError
from ..ticker import Ticker
from ..trouble import refusal, report
from .dispatch import Handler, handle
from .hearing import Hearing, Verdict
from .spawn import ended, spawn

_LONG = 5.0  # seconds after which a worker that does nothing right is well all the same
_AT_ONCE = 3  # workers in a row that did nothing right, and are replaced without a pause
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds
_PATIENCE = 30.0  # seconds for the worker to look at a bootstrap
_MOST_WORKERS = 5  # that one question is put to
_NEWS = (proto.Progress, proto.Failed, proto.Postponed)
_BATCH = 64  # packets taken before other work gets its turn


@dataclass(slots=True)
class _Asked:
    """A question that has no answer yet, and how many workers it was put to."""

    question: proto.AnyQuestion
    fd: Fd | None
    answer: asyncio.Future[Any]
    workers: int = 1


class WorkerLink:
    """One worker process at a time. One that ends is replaced, and one that does not hear while anybody waits.

    Args:
        start: what each is started with; what more it must be able to reach is added to it.
        on_start: called when a new worker is there and knows nothing yet.
        ticker: runs while somebody waits for the worker.
    """

    def __init__(self, start: proto.Start, on_start: Callable[[], None], ticker: Ticker) -> None:
        self._start, self._on_start, self._ticker = start, on_start, ticker
        ticker.add(self._tick)
        self._handlers: Mapping[type, Handler] = {}
        self._outbox: channel.Outbox | None = None
        self._sock_fd = -1
        self._stopping = False
        self._well = False  # this worker did something right
        self._hearing = Hearing(0.0)
        self._asked: dict[int, _Asked] = {}
        self._ticket = 0
        self.pid = 0
        self.restarts = -1

    def listen(self, handlers: Mapping[type, Handler]) -> None:
        """What is done with each kind of message (``dispatch.table``)."""
        self._handlers = handlers

    def send(self, message: proto.ToWorker, fds: Sequence[Fd] = ()) -> None:
        """Send a message and give its descriptors away. Without a worker it is dropped: the next one is told all."""
        if self._outbox is None:
            channel.close(fds)
            return
        try:
            if not self._outbox.put(proto.encode(message), fds):
                asyncio.get_running_loop().add_writer(self._sock_fd, self._flush)
        except OSError:
            self._lose()

    async def inspect(self, bootstrap: Fd) -> list[tuple[str, int]]:
        """The blobs of a bootstrap: (id, bytes of its uncompressed address space); FormatError when it is none."""
        return (await self.ask(proto.Inspect(0), bootstrap, _PATIENCE)).blobs

    async def ask(self, question: proto.Question[proto.A], fd: Fd | None, patience: float) -> proto.A:
        """Ask the worker, and the next one if it dies over it.

        Args:
            question: with any ticket.
            fd: goes with it, if there is one; stays the caller's.

        Raises:
            NydusErofsError: the worker says what is wrong, or nothing within ``patience`` seconds.
        """
        self._ticket += 1
        asked = msgspec.structs.replace(question, ticket=self._ticket)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[self._ticket] = _Asked(asked, fd, answer)  # type: ignore[arg-type]
        self._ticker.wake()
        try:
            self._put(asked, fd)  # type: ignore[arg-type]
            said = await asyncio.wait_for(answer, patience)
        except TimeoutError:
            raise BackendError(f"no answer within {patience:.0f} s", hint="see the log") from None
        finally:
            del self._asked[asked.ticket]
        if isinstance(said, proto.NotDone):
            raise said.fault.error()
        return said  # type: ignore[no-any-return]  # on_answer looked at its type

    def _put(self, question: proto.AnyQuestion, fd: Fd | None) -> None:
        self.send(question, [] if fd is None else [fd.dup()])

    def on_answer(self, answer: proto.Answer) -> None:
        """An answer, to a question that may have been given up; LieError unless it is one to that question."""
        if answer.ticket > self._ticket:
            raise LieError(f"an answer to question {answer.ticket}, which nobody asked")
        asked = self._asked.get(answer.ticket)
        if asked is None or asked.answer.done():
            return
        if not isinstance(answer, (type(asked.question).ANSWER, proto.NotDone)):
            raise LieError(f"{type(answer).__name__} for an answer to {type(asked.question).__name__}")
        self._well = True
        asked.answer.set_result(answer)

    def _tick(self, now: float) -> bool:
        """Somebody waits: does the worker hear? Whether a question of ours is among that."""
        if self._outbox is not None:
            match self._hearing.look(now):
                case Verdict.ASK:
                    self.send(proto.Ping())
                case Verdict.REPLACE:
                    logger().error("worker replaced: it does not answer", pid=self.pid)
                    self._kill()
        return bool(self._asked)

    def on_stall(self, patience: float) -> None:
        """Readers waited for something in vain. If it is the worker that does not work, another one does better."""
        if self.pid and self._hearing.idle(self._ticker.now()) >= patience:
            logger().error("worker replaced: it brings nothing", pid=self.pid)
            self._kill()

    def require(self, remote: Remote) -> None:
        """See to it that the worker can reach this backend. It can load no module and read no certificate that is
        missing once it runs without privilege, so it makes room for another one, which its readers do not notice."""
        kind = str(remote.__struct_config__.tag)
        certificates = [path for path in remote.ca_cert_files if path not in self._start.certificates]
        if kind in self._start.kinds and not certificates:
            return
        if kind not in self._start.kinds:
            self._start.kinds.append(kind)
        self._start.certificates += certificates
        if self.pid:
            logger().info("worker replaced, to reach a backend", backend=kind)
            self._kill()

    def _kill(self) -> None:
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

    def _lose(self) -> None:
        """A worker that cannot be told something ends, if it has not; the next one is told all."""
        assert self._outbox is not None
        self._outbox.discard()
        self._kill()

    async def run(self) -> None:
        """Keep a worker running until ``stop``."""
        failures = 0
        while not self._stopping:
            started = time.monotonic()
            try:
                code = await self._live()
                lived = time.monotonic() - started
                if not self._stopping:
                    logger().warning("worker ended", code=code, lived=round(lived, 3), restarts=self.restarts + 1)
            except OSError as error:
                report("no worker can be started", error)
                lived = 0.0
            if self._stopping:
                return
            if self._well or lived >= _LONG:
                failures = 0
                continue
            failures += 1
            if failures > _AT_ONCE:
                await asyncio.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - _AT_ONCE - 1, 10)))

    async def _live(self) -> int:
        """One worker's life; its exit code."""
        loop = asyncio.get_running_loop()
        self._well = False
        self.pid, sock = spawn(WORKER, proto.encode_start(self._start))
        self.restarts += 1
        self._hearing = Hearing(self._ticker.now())
        sock.setblocking(False)
        self._sock_fd = sock.fileno()
        self._outbox = channel.Outbox(sock)
        loop.add_reader(sock.fileno(), self._receive, sock)
        try:
            self._tell_all()
            return await ended(WORKER, self.pid)
        finally:
            self.pid = 0
            loop.remove_reader(sock.fileno())
            loop.remove_writer(sock.fileno())
            while self._receive(sock):  # what it said last
                pass
            self._outbox.discard()
            self._outbox = None
            sock.close()

    def _tell_all(self) -> None:
        """A new worker knows nothing. One that cannot be asked what others were is not for it."""
        self._on_start()
        for asked in self._asked.values():
            asked.workers += 1
            if asked.answer.done():
                continue
            if asked.workers > _MOST_WORKERS:
                asked.answer.set_exception(BackendError("every worker died over this", hint="see the log"))
                continue
            try:
                self._put(asked.question, asked.fd)
            except OSError as error:
                asked.answer.set_exception(refusal(error, "asking the worker"))

    def _receive(self, sock: socket.socket) -> bool:
        """Do what the worker says; whether there may be more of it."""
        for _ in range(_BATCH):
            try:
                packet, fds = channel.receive(sock, proto.MAX_MESSAGE)
            except BlockingIOError:
                return False
            except channel.CutOffError as error:
                self._liar(error)
                break
            except OSError:
                break
            if not packet and not fds:
                break
            self._hearing.heard(self._ticker.now())
            try:
                said = handle(self._handlers, packet, fds)
            except LieError as error:
                self._liar(error)
                break
            finally:
                channel.close(fds)
            if isinstance(said, _NEWS):
                self._hearing.worked(self._ticker.now())
            self._well |= isinstance(said, proto.Progress) and said.have > 0
        else:
            return True
        asyncio.get_running_loop().remove_reader(sock.fileno())
        self._kill()  # it is not heard any more: nobody may wait for it
        return False

    def _liar(self, error: Exception) -> None:
        logger().error("worker ended for what it said", pid=self.pid, said=str(error)[:200])

    def stop(self) -> None:
        """End the worker for good."""
        self._stopping = True
        self._kill()
