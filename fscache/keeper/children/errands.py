"""Children of the keeper, for whatever may wait: files of others, fsync, hashing, mounting, removing.

The keeper has one thread, in which every reader of every image would wait. A child is a fork of it that does one
errand, holds none of its descriptors (so that it keeps nothing of the kernel's alive), and may hang for ever: the
keeper does not. It is not waited for when it has said that it is done: its memory takes a moment to be taken down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import socket
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn, Protocol, Self

import msgspec

from ....erofs.errors import KernelError, NydusErofsError
from ...kernel import channel
from ...kernel.fd import Fd
from ...kernel.process import close_all_but, die_with_parent
from ...processes import TOOL
from ...proto.fault import Fault
from ..log import logger
from ..signals import CHANGED
from ..trouble import refusal

PATIENCE = 30.0  # seconds for what should take a moment
_LOOK = 0.05  # seconds between looks whether a child has ended
_MAX_PACKET = 128 << 10  # bytes
_SAID, _FAILED, _DONE = b".", b"!", b"="
_FAULT = msgspec.json.Decoder(Fault)

Say = Callable[[bytes, Sequence[Fd]], None]


class Do(Protocol):
    """How an errand is done: ``said_by``, or that of ``Errands``."""

    async def __call__(self, call: partial[None], what: str, patience: float = ...) -> list[Packet]: ...


class Packet(NamedTuple):
    """One thing that a child said, with descriptors that it opened."""

    data: bytes
    fds: list[Fd]


async def errand(
    call: Callable[[Say], None], what: str, patience: float = PATIENCE, using: Sequence[Fd] = ()
) -> AsyncGenerator[Packet, None]:
    """Run ``call`` in a child, and give what it says as it comes. Close the iterator in any case (``aclosing``).

    Args:
        what: it does, for messages.
        patience: seconds that it may take, for each thing it says; then it is killed, and not waited for.
        using: the keeper's descriptors that it needs; all others are closed there.

    Raises:
        NydusErofsError: what ``call`` raised; KernelError with its errno for an OSError, and when it took too long.
    """
    child = _Child(partial(_do, call, what), what, using)
    try:
        async with contextlib.aclosing(child.hear(what, patience)) as said:
            async for packet in said:
                yield packet
    finally:
        child.end()


async def in_child(call: Callable[[], None], what: str, patience: float = PATIENCE) -> None:
    """Run ``call`` in a child that has nothing to say; errors as of ``errand``."""
    await said_by(lambda _: call(), what, patience)


async def said_by(
    call: Callable[[Say], None], what: str, patience: float = PATIENCE, using: Sequence[Fd] = ()
) -> list[Packet]:
    """All that ``call`` says in a child; errors as of ``errand``."""
    return await _all_of(errand(call, what, patience, using))


async def _all_of(said: AsyncGenerator[Packet, None]) -> list[Packet]:
    packets: list[Packet] = []
    try:
        async with contextlib.aclosing(said):
            async for packet in said:
                packets.append(packet)  # noqa: PERF401 - what came before an error is closed
    except BaseException:
        for packet in packets:
            channel.close(packet.fds)
        raise
    return packets


class Errands:
    """Errands that follow one another, by one child: to fork it takes longer than most of them."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    async def said_by(self, call: partial[None], what: str, patience: float = PATIENCE) -> list[Packet]:
        """As ``said_by``. The child may be older than ``call``, which it is told: a function of a module with
        arguments that can be pickled. Whatever goes wrong, the next errand has another child."""
        order = pickle.dumps((call, what))
        child, self._child = self._child or _Child(_hear_orders, what), None
        try:
            child.tell(order, what)
            packets = await _all_of(child.hear(what, patience))
        except BaseException:
            child.end()
            raise
        self.close()
        self._child = child
        return packets

    def close(self) -> None:
        """Let the child go. The next errand has another one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """A fork of the keeper, and our end of a socket to it."""

    def __init__(self, work: Callable[[socket.socket], None], what: str, using: Sequence[Fd] = ()) -> None:
        """KernelError when there is no room for one."""
        try:
            self._sock, theirs = channel.pair()
            parent = os.getpid()
            with theirs:
                try:
                    self._pid = os.fork()
                except OSError:
                    self._sock.close()
                    raise
                if not self._pid:
                    _run_and_exit(work, theirs, using, parent)
        except OSError as error:
            raise refusal(error, f"{what}: no process for it") from None
        self._sock.setblocking(False)

    def tell(self, order: bytes, what: str) -> None:
        """Have one that hears orders do something. It waits for that, so that there is room for the message."""
        try:
            with Fd(os.memfd_create("order", os.MFD_CLOEXEC)) as file:  # it may be longer than a packet
                os.write(file.fd, order)
                channel.send(self._sock, _SAID, [file])
        except OSError as error:
            raise refusal(error, f"{what}: no process for it") from None

    async def hear(self, what: str, patience: float) -> AsyncGenerator[Packet, None]:
        """What it says until it is done; errors as of ``errand``."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._sock.fileno(), readable.set)
        try:
            while True:
                try:
                    packet, fds = channel.receive(self._sock, _MAX_PACKET, channel.MOST_FDS)
                except BlockingIOError:
                    readable.clear()
                    async with asyncio.timeout(patience):
                        await readable.wait()
                    continue
                if packet[:1] == _SAID:
                    yield Packet(packet[1:], fds)
                elif packet[:1] == _FAILED:
                    raise _FAULT.decode(packet[1:]).error()
                elif packet[:1] == _DONE:
                    return
                else:
                    raise KernelError(f"{what}: the process for it died", hint="see the log")
        except TimeoutError:
            raise KernelError(f"{what}: not done within {patience:.0f} s", hint="is a file server away?") from None
        except OSError as error:  # no room for its descriptors
            raise KernelError(f"{what}: {error}", hint="is a limit reached?") from None
        finally:
            loop.remove_reader(self._sock.fileno())

    def end(self) -> None:
        """Kill it, and reap it whenever it is gone: its memory takes a moment to be taken down, and it may hang where
        no signal reaches it."""
        if os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            os.kill(self._pid, signal.SIGKILL)
            _reap(self._pid)
        self._sock.close()  # now: it does not live to notice


def _reap(pid: int) -> None:
    """No task, which the loop would miss at its end, and no descriptor, for want of which it may have to end."""
    if os.waitpid(pid, os.WNOHANG) == (0, 0):
        asyncio.get_running_loop().call_later(_LOOK, _reap, pid)


def _run_and_exit(
    work: Callable[[socket.socket], None], sock: socket.socket, using: Sequence[Fd], parent: int
) -> NoReturn:
    status = 1
    try:
        gc.disable()  # objects of the keeper's would close descriptors that are others' here
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(parent)
        close_all_but(0, 1, 2, sock.fileno(), *(fd.fd for fd in using))
        work(sock)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _hear_orders(sock: socket.socket) -> None:
    """Do what the keeper says, until it lets go."""
    while fds := channel.receive(sock, 1, 1)[1]:
        with fds[0] as file:
            call, what = pickle.loads(os.pread(file.fd, os.fstat(file.fd).st_size, 0))  # noqa: S301 - the keeper's
        _do(call, what, sock)


def _do(call: Callable[[Say], None], what: str, sock: socket.socket) -> None:
    """Do one errand, and say how that went."""
    try:
        call(lambda data, fds: channel.send(sock, _SAID + data, fds))
    except NydusErofsError as error:
        outcome = _FAILED + msgspec.json.encode(Fault.of(error))
    except OSError as error:
        outcome = _FAILED + msgspec.json.encode(Fault.of(refusal(error, what)))
    else:
        outcome = _DONE
    channel.send(sock, outcome)


async def remove(folders: Sequence[str]) -> None:
    """Remove folders and all in them, whatever that is (rm(1) does it); a failure is logged."""
    if not folders:
        return
    command = ("rm", "-rf", "--one-file-system", "--", *folders)
    try:
        given = {"PATH": os.defpath} | TOOL.variables(os.environ)
        pid = os.posix_spawnp(command[0], command, given, setsigmask=(), setsigdef=CHANGED)
    except OSError as error:
        logger().warning("a program cannot be run", program=command[0], error=error.strerror)
        return
    code = await exited(pid)
    if code:
        logger().warning("a program failed", program=command[0], code=code)


async def exited(pid: int) -> int:
    """Wait for a child without blocking; its exit code, negative for a signal."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = Fd(os.pidfd_open(pid))
    except OSError:  # no descriptor for it: look now and then
        while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            await asyncio.sleep(_LOOK)
        return os.waitstatus_to_exitcode(found[1])
    with pidfd:
        done = asyncio.Event()
        loop.add_reader(pidfd.fd, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(pidfd.fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
