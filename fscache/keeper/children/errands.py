"""Children of the keeper, for whatever may wait: files of others, fsync, hashing, mounting, removing.

The keeper has one thread, in which every reader of every image would wait. A child is a fork of it that does one
errand, holds none of its descriptors (so that it keeps nothing of the kernel's alive), and may hang for ever: the
keeper does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, NoReturn

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
_SAID, _FAILED = b".", b"!"
_FAULT = msgspec.json.Decoder(Fault)

Say = Callable[[bytes, Sequence[Fd]], None]


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
    try:
        pid, sock = _fork(call, what, using)
    except OSError as error:
        raise refusal(error, f"{what}: no process for it") from None
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    with sock:
        loop.add_reader(sock.fileno(), readable.set)
        try:
            while True:
                try:
                    packet, fds = channel.receive(sock, _MAX_PACKET, channel.MOST_FDS)
                except BlockingIOError:
                    readable.clear()
                    async with asyncio.timeout(patience):
                        await readable.wait()
                    continue
                if packet[:1] == _SAID:
                    yield Packet(packet[1:], fds)
                elif packet[:1] == _FAILED:
                    raise _FAULT.decode(packet[1:]).error()
                else:
                    loop.remove_reader(sock.fileno())  # readable from now on: the loop would not rest
                    if await exited(pid):
                        raise KernelError(f"{what}: the process for it died", hint="see the log")
                    return
        except TimeoutError:
            raise KernelError(f"{what}: not done within {patience:.0f} s", hint="is a file server away?") from None
        except OSError as error:  # no room for its descriptors
            raise KernelError(f"{what}: {error}", hint="is a limit reached?") from None
        finally:
            loop.remove_reader(sock.fileno())
            _end(pid)


def _end(pid: int) -> None:
    """Kill a child that may be gone, and reap it whenever it is; it may hang where no signal reaches it."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            _reap(pid)


def _reap(pid: int) -> None:
    """No task, which the loop would miss at its end, and no descriptor, for want of which it may have to end."""
    if os.waitpid(pid, os.WNOHANG) == (0, 0):
        asyncio.get_running_loop().call_later(_LOOK, _reap, pid)


async def in_child(call: Callable[[], None], what: str, patience: float = PATIENCE) -> None:
    """Run ``call`` in a child that has nothing to say; errors as of ``errand``."""
    await said_by(lambda _: call(), what, patience)


async def said_by(
    call: Callable[[Say], None], what: str, patience: float = PATIENCE, using: Sequence[Fd] = ()
) -> list[Packet]:
    """All that ``call`` says in a child; errors as of ``errand``."""
    packets: list[Packet] = []
    try:
        async with contextlib.aclosing(errand(call, what, patience, using)) as said:
            async for packet in said:
                packets.append(packet)  # noqa: PERF401 - what came before an error is closed
    except BaseException:
        for packet in packets:
            channel.close(packet.fds)
        raise
    return packets


def _fork(call: Callable[[Say], None], what: str, using: Sequence[Fd]) -> tuple[int, socket.socket]:
    ours, theirs = channel.pair()
    parent = os.getpid()
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if not pid:
            _run_and_exit(call, what, theirs, using, parent)
    ours.setblocking(False)
    return pid, ours


def _run_and_exit(
    call: Callable[[Say], None], what: str, sock: socket.socket, using: Sequence[Fd], parent: int
) -> NoReturn:
    status = 1
    try:
        gc.disable()  # objects of the keeper's would close descriptors that are others' here
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(parent)
        close_all_but(0, 1, 2, sock.fileno(), *(fd.fd for fd in using))
        try:
            call(lambda data, fds: channel.send(sock, _SAID + data, fds))
        except NydusErofsError as error:
            channel.send(sock, _FAILED + msgspec.json.encode(Fault.of(error)))
        except OSError as error:
            channel.send(sock, _FAILED + msgspec.json.encode(Fault.of(refusal(error, what))))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


async def remove(folders: Sequence[str]) -> None:
    """Remove folders and all in them, whatever that is (rm(1) does it); a failure is logged."""
    if folders:
        await _tool("rm", "-rf", "--one-file-system", "--", *folders)


async def write_out(paths: Sequence[str]) -> bool:
    """Write files and folders to the disk, however long that takes (sync(1) does it); whether it was done."""
    return await _tool("sync", "--", *paths) == 0


async def _tool(*command: str) -> int:
    """Run a program of the system's; its exit code."""
    try:
        given = {"PATH": os.defpath} | TOOL.variables(os.environ)
        pid = os.posix_spawnp(command[0], command, given, setsigmask=(), setsigdef=CHANGED)
    except OSError as error:
        logger().warning("a program cannot be run", program=command[0], error=error.strerror)
        return -1
    code = await exited(pid)
    if code:
        logger().warning("a program failed", program=command[0], code=code)
    return code


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
