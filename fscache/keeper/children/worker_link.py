"""The keeper's hold on its worker, and the questions that it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ....erofs.errors import BackendError
from ...config.backend import Remote
from ...kernel.fd import Fd
from ...processes import WORKER
from ...proto import worker as proto
from ..log import logger
from ..stores.lies import LieError
from ..ticker import Ticker
from ..trouble import refusal
from .process_link import ProcessLink

_PATIENCE = 30.0  # seconds for the worker to look at a bootstrap
_MOST_WORKERS = 5  # that one question is put to


@dataclass(slots=True)
class _Asked:
    """A question that has no answer yet, and how many workers it was put to."""

    question: proto.AnyQuestion
    fd: Fd | None
    answer: asyncio.Future[Any]
    workers: int = 1


class WorkerLink(ProcessLink):
    """One worker at a time.

    Args:
        start: what each is started with; what more it must be able to reach is added to it.
        on_start, ticker: as of ``ProcessLink``.
    """

    def __init__(self, start: proto.Start, on_start: Callable[[], None], ticker: Ticker) -> None:
        super().__init__(WORKER, proto.decode_for_keeper, proto.Ping(), self._tell_all, lambda: None, ticker)
        self._start, self._introduce = start, on_start
        self._asked: dict[int, _Asked] = {}
        self._ticket = 0

    def started_with(self) -> str:
        return proto.encode_start(self._start)

    def works(self, said: object) -> bool:
        return isinstance(said, proto.Fetched | proto.Failed | proto.Postponed | proto.Answer)

    def waits(self) -> bool:
        return bool(self._asked)

    def _tell_all(self) -> None:
        """A new worker knows nothing. One that cannot be asked what others were is not for it."""
        self._introduce()
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
        self.ticker.wake()
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
        asked.answer.set_result(answer)

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
            logger().info("process replaced, to reach a backend", process="worker", backend=kind)
            self.kill()
