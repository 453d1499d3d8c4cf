"""Children of the keeper: what they say arrives, what they hold is little, and none is waited for or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nydus_erofs.erofs.errors import (
    BackendError,
    BusyError,
    ConfigError,
    FormatError,
    KernelError,
    NydusErofsError,
)
from nydus_erofs.fscache.keeper.children.errands import Errands, Say, errand, in_child, said_by
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from tests.kit.command import PYTHON
from tests.kit.processes import alive, descriptors, look_at, run_to_the_end
from tests.kit.processes import children as children_of
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.timeout(60)
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """To its end, and no descriptor is left."""
    before = len(descriptors())
    try:
        return run_to_the_end(work)
    finally:
        assert len(descriptors()) == before


def hang() -> None:
    time.sleep(600)


# --- what it says ---------------------------------------------------------------------------------------


def test_it_says_as_much_as_it_likes() -> None:
    def call(say: Say) -> None:
        for number in range(300):
            say(b"%d" % number, [])

    assert [packet.data for packet in run(said_by(call, "counting"))] == [b"%d" % number for number in range(300)]


def test_it_says_nothing() -> None:
    run(in_child(lambda: None, "nothing"))


def test_descriptors_that_it_opened(tmp_path: Path) -> None:
    def call(say: Say) -> None:
        for number in range(5):
            path = tmp_path / f"{number}"
            path.write_text(f"content {number}")
            with Fd(os.open(path, os.O_RDONLY)) as fd:
                say(path.name.encode(), [fd])

    async def work() -> None:
        for number, (name, fds) in enumerate(await said_by(call, "opening")):
            assert name == b"%d" % number
            (fd,) = fds
            with fd:
                assert os.read(fd.fd, 100) == b"content %d" % number
                assert not os.get_inheritable(fd.fd)

    run(work())


def test_descriptors_of_one_that_fails_are_closed() -> None:
    """``run`` counts them."""

    def call(say: Say) -> None:
        with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
            say(b"", [fd, fd])
        raise FormatError("no more")

    with pytest.raises(FormatError, match="no more"):
        run(said_by(call, "opening"))


# --- how it fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [FormatError("bytes", hint="others"), ConfigError("key"), BusyError("in use", hint="wait"),
     BackendError("away", retryable=True), BackendError("gone", retryable=False),
     KernelError("mount", hint="newer", number=errno.EPERM)],
)  # fmt: skip
def test_an_error_is_the_same_here(error: NydusErofsError) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run(in_child(call, "failing"))
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "writing: No space left on device"),
     (OSError(errno.EROFS, os.strerror(errno.EROFS), "/state/epoch"), "Read-only file system: /state/epoch"),
     (OSError(errno.EACCES, os.strerror(errno.EACCES), b"/a\xff"), r"Permission denied: /a\udcff"),
     (OSError(errno.EBUSY, f"umount /mnt: {os.strerror(errno.EBUSY)}"), "umount /mnt: Device or resource busy"),
     (OSError("odd"), "odd")],
)  # fmt: skip
def test_an_error_of_the_system_names_where(error: OSError, message: str) -> None:
    def call() -> None:
        raise error

    with pytest.raises(KernelError) as caught:
        run(in_child(call, "writing"))
    assert caught.value.message == message
    assert caught.value.number == (error.errno or errno.EIO)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGINT])
def test_it_is_killed(number: int) -> None:
    with pytest.raises(KernelError, match="working: the process for it died"):
        run(in_child(lambda: os.kill(os.getpid(), number), "working"))


BUG = """
import asyncio
from nydus_erofs.erofs.errors import KernelError
from nydus_erofs.fscache.keeper.children.errands import in_child
try:
    asyncio.run(in_child(lambda: [][1], "working"))
except KernelError as error:
    print(error)
"""


def test_a_bug_in_it() -> None:
    """It is one error as any other, and the log has more."""
    done = subprocess.run([*PYTHON, "-c", BUG], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "working: the process for it died (see the log)\n"
    assert "IndexError" in done.stderr


@pytest.mark.parametrize("function", ["os.fork", "nydus_erofs.fscache.kernel.channel.pair"])
def test_none_can_be_started(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory, processes or descriptors: an error as any other."""

    def fail() -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(function, fail)
    with pytest.raises(KernelError, match="working: no process for it: Resource temporarily unavailable"):
        run(in_child(lambda: None, "working"))


def test_no_room_for_its_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MOST_FDS", 1)  # as if the limit of descriptors cut the packet off

    def call(say: Say) -> None:
        with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
            say(b"", [fd] * 4)

    with pytest.raises(KernelError, match="opening: a packet was cut off"):
        run(said_by(call, "opening"))


# --- one that hangs -------------------------------------------------------------------------------------


def test_it_is_killed_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(KernelError, match="not done within 0 s") as caught:
        run(in_child(hang, "hanging", 0.2))
    assert time.monotonic() - began < 10
    assert caught.value.hint == "is a file server away?"


def test_it_has_its_time_for_each_thing() -> None:
    def call(say: Say) -> None:
        for _ in range(5):
            time.sleep(0.3)
            say(b"", [])

    assert len(run(said_by(call, "taking its time", 1.0))) == 5


def test_one_that_ignores_signals_is_killed() -> None:
    def call() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_IGN)
        hang()

    with pytest.raises(KernelError, match="not done"):
        run(in_child(call, "hanging", 0.2))


def test_who_waits_for_it_is_cancelled() -> None:
    async def work() -> None:
        task = asyncio.create_task(in_child(hang, "hanging"))
        before = children_of(os.getpid())
        while children_of(os.getpid()) == before:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())


def test_others_go_on_meanwhile() -> None:
    async def work() -> None:
        hanging = asyncio.create_task(in_child(hang, "hanging", 1.0))
        for _ in range(5):
            await in_child(lambda: None, "something else", 1.0)
        assert not hanging.done()
        with pytest.raises(KernelError):
            await hanging

    run(work())


# --- what it holds --------------------------------------------------------------------------------------


def test_it_holds_nothing_of_the_keepers(tmp_path: Path) -> None:
    """Neither the kernel's (readers would wait for one who is gone) nor others': a socket, what it is lent."""
    (tmp_path / "lent").touch()

    def call(say: Say) -> None:
        say(b"%d" % os.getpid(), [])
        hang()

    async def work() -> dict[int, str]:
        with Fd(os.open(tmp_path / "lent", os.O_RDONLY)) as lent, Fd(os.open("/dev/null", os.O_RDONLY)) as kept:
            os.set_inheritable(kept.fd, True)
            async with contextlib.aclosing(errand(call, "hanging", using=[lent])) as said:
                pid = int((await anext(said)).data)
                return look_at(pid).descriptors

    held = {number: place for number, place in run(work()).items() if number > 2}
    assert sorted(place.partition("[")[0] for place in held.values()) == [str(tmp_path / "lent"), "socket:"]


KEEPER = """
import asyncio, os, time
from nydus_erofs.fscache.keeper.children.errands import in_child
def hang():
    print(os.getpid(), flush=True)
    time.sleep(600)
asyncio.run(in_child(hang, "hanging"))
"""


def test_it_dies_with_the_keeper() -> None:
    keeper = subprocess.Popen([*PYTHON, "-c", KEEPER], stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    pid = int(keeper.stdout.readline())
    keeper.kill()
    keeper.communicate(timeout=20)
    wait_for("its child dies", lambda: not alive(pid))


def test_one_that_is_done_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may take long to be taken down."""
    monkeypatch.setattr(os, "_exit", lambda status: hang())
    run(in_child(lambda: None, "ending"))


# --- several, one after the other -----------------------------------------------------------------------


def tell(say: Say) -> None:
    say(b"%d" % os.getpid(), [])


def give(path: str, say: Say) -> None:
    with Fd(os.open(path, os.O_RDONLY)) as fd:
        say(b"", [fd])


def refuse(error: Exception, _: Say) -> None:
    raise error


def wait(_: Say) -> None:
    hang()


async def pid_of(errands: Errands) -> int:
    (packet,) = await errands.said_by(partial(tell), "telling")
    return int(packet.data)


def test_one_child_does_them_all(tmp_path: Path) -> None:
    async def work() -> int:
        with Errands() as errands:
            pid = await pid_of(errands)
            for number in range(3):
                path = tmp_path / f"{number}"
                path.write_text(f"content {number}")
                (packet,) = await errands.said_by(partial(give, str(path)), "opening")
                with packet.fds[0] as fd:
                    assert os.read(fd.fd, 100) == b"content %d" % number
            assert await pid_of(errands) == pid
            assert [place[:7] for number, place in look_at(pid).descriptors.items() if number > 2] == ["socket:"]
            assert alive(pid)
        return pid

    assert not alive(run(work()))


def test_what_is_to_be_done_may_be_long() -> None:
    """Longer than a packet."""
    error = FormatError("x", hint="y" * (1 << 20))

    async def work() -> None:
        with Errands() as errands, pytest.raises(FormatError, match="x"):
            await errands.said_by(partial(refuse, error), "failing")

    run(work())


@pytest.mark.parametrize(
    ("call", "message"),
    [(partial(refuse, FormatError("bytes")), "bytes"), (partial(refuse, ValueError()), "the process for it died"),
     (partial(wait), "not done within")],
)  # fmt: skip
def test_another_child_does_what_follows_a_failure(call: partial[None], message: str) -> None:
    async def work() -> None:
        with Errands() as errands:
            pid = await pid_of(errands)
            with pytest.raises(NydusErofsError, match=message):
                await errands.said_by(call, "failing", 0.2)
            assert await pid_of(errands) not in (pid, os.getpid())

    run(work())


def test_a_child_that_was_killed_meanwhile() -> None:
    async def work() -> None:
        with Errands() as errands:
            pid = await pid_of(errands)
            os.kill(pid, signal.SIGKILL)
            while alive(pid):
                await asyncio.sleep(0.01)
            with pytest.raises(KernelError, match="telling: no process for it"):
                await pid_of(errands)
            assert await pid_of(errands) != pid

    run(work())


def test_a_child_is_let_go_between() -> None:
    async def work() -> None:
        with Errands() as errands:
            pid = await pid_of(errands)
            errands.close()
            assert await pid_of(errands) != pid

    run(work())


def test_no_descriptor_goes_with_what_is_to_be_done() -> None:
    """It would have two owners there."""

    async def work() -> None:
        with Errands() as errands, Fd(os.open("/dev/null", os.O_RDONLY)) as fd, pytest.raises(TypeError):
            await errands.said_by(partial(refuse, fd), "failing")  # type: ignore[arg-type]

    run(work())
