"""What may wait is done by children: what they say, how they fail, and what they cost the keeper meanwhile."""

import asyncio
import os
import time

import pytest

from nydus_erofs.erofs.errors import BusyError, KernelError
from nydus_erofs.fscache.keeper.children.errands import Say, in_child, said_by
from nydus_erofs.fscache.kernel.fd import Fd

pytestmark = pytest.mark.timeout(60)


def test_what_it_says_and_opens() -> None:
    def call(say: Say) -> None:
        with Fd(os.open(__file__, os.O_RDONLY)) as fd:
            say(b"one", [fd])
        say(b"two", [])

    one, two = asyncio.run(said_by(call, "talking"))
    assert (one.data, two.data, two.fds) == (b"one", b"two", [])
    (fd,) = one.fds
    with fd:
        assert os.read(fd.fd, 100)


def test_errors_are_those_of_the_call() -> None:
    def busy() -> None:
        raise BusyError("in use", hint="wait")

    with pytest.raises(BusyError, match="in use") as caught:
        asyncio.run(in_child(busy, "trying"))
    assert caught.value.hint == "wait"
    with pytest.raises(KernelError, match="No such file or directory: /not/there") as missing:
        asyncio.run(in_child(lambda: os.rmdir("/not/there"), "trying"))
    assert missing.value.number == 2


def test_one_that_dies() -> None:
    with pytest.raises(KernelError, match="trying: the process for it died"):
        asyncio.run(in_child(lambda: os.kill(os.getpid(), 9), "trying"))


def test_one_that_hangs_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(KernelError, match="trying: not done within 0 s"):
        asyncio.run(in_child(lambda: time.sleep(30), "trying", 0.2))
    assert time.monotonic() - started < 10


def test_one_that_takes_long_to_end_costs_nothing() -> None:
    """It has said all, and its memory is still being taken down: the loop rests until it is gone."""

    def call() -> None:
        os.closerange(3, 1 << 10)
        time.sleep(1)

    before = time.process_time()
    asyncio.run(in_child(call, "ending"))
    assert time.process_time() - before < 0.1
