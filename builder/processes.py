"""Worker processes, forked while this process is still small: they share its code and its memory, not its GIL.

Pipes carry numbers only, one byte each. All workers read from the same pipe, so the next number goes to
the first that has time; and as a pipe holds more bytes than there are numbers, nobody ever waits to write.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from ..erofs.errors import NydusErofsError

MAX_NUMBERS = 255

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Processes:
    """``count`` processes that call ``run(number)`` for every number given to ``start``.

    ``run`` must not raise. The workers end when this process does, whatever ends it.
    """

    def __init__(self, count: int, run: Callable[[int], None]) -> None:
        todo, self._todo = os.pipe()
        self._done, done = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._done, select.POLLIN)
        self._pids: dict[int, int] = {}  # pidfd -> pid
        # A signal between fork and the worker's own settings would unwind this process's stack in the worker.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for _ in range(count):
                pid = os.fork()
                if not pid:
                    _be_worker(todo, done, (self._todo, self._done), run)
                pidfd = os.pidfd_open(pid)
                self._pids[pidfd] = pid
                self._poll.register(pidfd, select.POLLIN)
        except BaseException:
            self.close(kill=True)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(todo)
            os.close(done)

    def start(self, number: int) -> None:
        os.write(self._todo, bytes((number,)))

    def finished(self, wait: bool) -> bytes:
        """The numbers done since the last call, one byte each; at least one if ``wait``.

        NydusErofsError when a worker has died.
        """
        events = self._poll.poll(None if wait else 0)
        for fd, _ in events:
            if fd in self._pids:
                raise self._death(fd)
        return os.read(self._done, MAX_NUMBERS) if events else b""

    def close(self, kill: bool) -> None:
        """End the workers, at once if ``kill``, and wait for them."""
        os.close(self._todo)
        os.close(self._done)
        for pidfd, pid in self._pids.items():
            if kill:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            os.waitpid(pid, 0)
        self._pids.clear()

    def _death(self, pidfd: int) -> NydusErofsError:
        pid = self._pids.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return NydusErofsError(f"worker process {pid} {how}", hint="if memory ran out, try fewer --workers")


def _be_worker(todo: int, done: int, parents: tuple[int, ...], run: Callable[[int], None]) -> None:
    """The life of a worker; never returns. The end of ``todo`` is the end of the parent, or of the work."""
    try:
        for number in _SIGNALS:
            # Ctrl-C on a terminal reaches all processes: the parent decides what becomes of it.
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for fd in parents:
            os.close(fd)
        while message := os.read(todo, 1):
            run(message[0])
            os.write(done, message)
        os._exit(0)
    finally:
        os._exit(70)
