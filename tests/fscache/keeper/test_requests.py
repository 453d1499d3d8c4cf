"""What the kernel asks through /dev/cachefiles, asked by tests: all is answered, and no image spoils another one."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, FormatError, KernelError
from nydus_erofs.erofs.rafs import Compression, DigestAlgo
from nydus_erofs.fscache.keeper.engine import objects
from nydus_erofs.fscache.keeper.engine.cachefiles_images import ServedImages
from nydus_erofs.fscache.keeper.engine.names import Names
from nydus_erofs.fscache.keeper.engine.requests import Arrival, Requests
from nydus_erofs.fscache.keeper.images.bootstraps import Opened
from nydus_erofs.fscache.keeper.images.origin import Origin
from nydus_erofs.fscache.keeper.stores.news import News
from nydus_erofs.fscache.keeper.stores.table import StoreTable
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import cachefiles as proto
from nydus_erofs.fscache.proto import verifier, worker
from nydus_erofs.fscache.state.plan import CHUNK, MAGIC, SEGMENT, PlanHeader
from tests.kit.ticking import Ticking

BLOCK = 4096
BLOB, ANOTHER = "ab" * 32, "cd" * 32
PATIENCE = 20  # seconds
Contents = list[bytes | None]
Play = Callable[[Callable[["World"], Awaitable[None]]], None]


class Kernel:
    """Asks through a device, and notes the answers."""

    def __init__(self, names: Callable[[], Names]) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._queue: deque[proto.Message | OSError] = deque()
        self._numbers, self._names = count(1), names
        self.answers: dict[int, int] = {}
        self.completed: list[int] = []
        self.forgotten: list[int] = []

    def read(self) -> proto.Message | None:
        if self._queue:
            message = self._queue.popleft()
            if isinstance(message, OSError):
                raise message
            return message
        os.eventfd_read(self.fd)
        return None

    def command(self, command: bytes) -> None:
        number, size = command.removeprefix(b"copen ").split(b",")
        self.answers[int(number)] = int(size)
        if int(size) not in {cached.size for cached in self._names()._cached.entries.values()}:
            self.forgotten.append(int(size))  # if the machine crashed now

    def fails(self, number: int) -> None:
        """The next read of the device does."""
        self._ask(OSError(number, os.strerror(number)))

    def _ask(self, message: proto.Message | OSError) -> None:
        self._queue.append(message)
        os.eventfd_write(self.fd, 1)

    def asked(self, volume: str, cookie: str) -> int:
        """Ask for an object; its number."""
        number = next(self._numbers)
        self._ask(proto.Open(number, number, volume, cookie, os.memfd_create("object", os.MFD_CLOEXEC)))
        return number

    async def answered(self, number: int) -> int:
        async with asyncio.timeout(PATIENCE):
            while number not in self.answers:
                await asyncio.sleep(0.005)
        return self.answers[number]

    async def open(self, volume: str, cookie: str) -> int:
        return await self.answered(self.asked(volume, cookie))

    def close(self, number: int) -> None:
        self._ask(proto.Close(next(self._numbers), number))

    def wants(self, number: int, offset: int = 0, length: int = BLOCK) -> int:
        message = next(self._numbers)
        self._ask(proto.Read(message, number, offset, length))
        return message


class Images:
    """Prepares at once, or when it is let; ``says[image]`` is blob -> plan, or an error."""

    def __init__(self) -> None:
        self.says: dict[str, Any] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.files: dict[int, str] = {}  # inode -> image

    def id_of(self, file: Fd) -> str:
        return self.files[os.fstat(file.fd).st_ino]

    async def get(self, name: str, bootstrap: Fd, provide: object, *, anew: bool = False) -> SimpleNamespace:
        if gate := self.gates.get(name):
            await gate.wait()
        if isinstance(self.says[name], Exception):
            raise self.says[name]
        return SimpleNamespace(stores=[SimpleNamespace(blob_id=b, key=key) for b, key in self.says[name].items()])


class World:
    """The engine's parts with a kernel, a worker that only listens, and images by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, Images()
        self.sent: list[worker.ToWorker] = []
        self.opened: dict[str, Opened] = {}

        def names() -> Names:
            return Names(f"{folder}/names", f"{folder}/objects", lambda key: f"{folder}/{key}/plan")

        self.kernel = Kernel(names)
        self.table = StoreTable(
            self._send, self._show, lambda *_: None, lambda *_: None, lambda _: None, Ticking(), 60
        )
        self.news = News(self.table)
        self.objects = objects.ObjectTable(self.table)
        state: Any = SimpleNamespace(store_of=lambda key: f"{folder}/{key}")
        bootstraps: Any = SimpleNamespace(provider=lambda places: None)
        self.known = names()
        images: Any = self.images
        self.served = ServedImages(state, self.table, self.objects, self.known, bootstraps, images)
        self.requests = Requests(cast("Any", self.kernel), self.objects, self.served, self.arrive)
        self.requests.start()

    def _show(self, message: verifier.ToVerifier, fds: Sequence[Fd] = ()) -> None:
        """The verifier looks at once, and finds nothing."""
        channel.close(fds)
        if isinstance(message, verifier.OpenObject):
            present = verifier.Present(message.store, "0")
            asyncio.get_running_loop().call_soon(self.news.on_present, present)

    def _send(self, message: worker.ToWorker, fds: Sequence[Fd] = ()) -> None:
        self.sent.append(message)
        channel.close(fds)

    def image(
        self,
        name: str,
        contents: Contents,
        *,
        another: Contents | None = None,
        size: int = 3 * BLOCK,
        blobs: dict[str, int] | None = None,
    ) -> None:
        """There is an image; ``contents`` are of its two chunks of BLOB, None for one that it does not use; the same
        of ANOTHER blob, if it has that."""
        file = Fd(os.memfd_create(name, os.MFD_CLOEXEC))
        self.images.files[os.fstat(file.fd).st_ino] = name
        self.images.says[name] = {BLOB: self._plan(BLOB, contents)}
        if another is not None:
            self.images.says[name][ANOTHER] = self._plan(ANOTHER, another)
        sizes = dict.fromkeys(self.images.says[name], 2 * BLOCK)
        self.opened[name] = Opened("", file, None, size, sizes if blobs is None else blobs)

    def _plan(self, blob: str, contents: Contents) -> str:
        plan = make_plan(blob, contents)
        key = hashlib.sha256(plan).hexdigest()
        (self.folder / key).mkdir(exist_ok=True)
        (self.folder / key / "plan").write_bytes(plan)
        return key

    def hold(self, name: str) -> asyncio.Event:
        """It cannot be prepared until the event is set."""
        self.images.gates[name] = asyncio.Event()
        return self.images.gates[name]

    async def arrive(self, volume: str, fsid: str) -> Arrival:
        if fsid not in self.opened:
            raise BlobNotFoundError(f"no image {fsid}")
        return Arrival(Origin(fsid, [str(self.folder)]), self.opened[fsid], False)

    def an_object(self, cookie: str) -> objects.CacheObject:
        found = self.objects.find("d", cookie)
        assert found is not None
        return found

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)


def make_plan(blob: str, contents: Contents) -> bytes:
    header = PlanHeader(MAGIC, blob.encode(), int(Compression.NONE), int(DigestAlgo.SHA256), 1, 2, BLOCK)
    chunks = []
    for index, data in enumerate(contents):
        digest = hashlib.sha256(data or b"").digest() if data else bytes(32)
        stored, at = BLOCK if data else 0, index * BLOCK
        chunks.append(CHUNK.pack(digest, at, at, stored, BLOCK, 0 if data else 4, stored, 0))
    return header.pack() + SEGMENT.pack(0, 2 * BLOCK, 0, 2) + b"".join(chunks)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """`play(story)`: run a coroutine in a world of its own."""

    def play(story: Callable[[World], Awaitable[None]]) -> None:
        async def run() -> None:
            world = World(tmp_path)
            monkeypatch.setattr(objects, "complete", lambda fd, number: world.kernel.completed.append(number))
            await story(world)
            world.requests.close()
            assert not any(size > 0 for size in world.kernel.forgotten)

        asyncio.run(run())

    return play


def test_an_image_from_its_mount_to_its_end(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", b"B"])
        assert await world.kernel.open("d", "one") == 3 * BLOCK
        boot, blob = world.an_object("one"), world.kernel.asked("d", BLOB)
        assert await world.kernel.answered(blob) == 2 * BLOCK
        read = world.kernel.wants(blob)
        await world.until(lambda: len(world.sent) == 4)
        assert [type(message) for message in world.sent] == [
            worker.OpenBootstrap, worker.Prefetch, worker.OpenStore, worker.Fill
        ]  # fmt: skip
        store = world.an_object(BLOB).stores[world.images.says["one"][BLOB]]
        world.news.on_progress(verifier.Progress(store.number, 0, 2 * BLOCK, True, worker.FillReason.DEMAND))
        assert world.kernel.completed == [read]
        image = world.served.find("d", "one")
        assert image is not None
        assert image.cache_object is boot
        for number in (blob, 1):
            world.kernel.close(number)
        await world.until(lambda: boot.closed)
        assert world.served.find("d", "one") is None
        assert world.table.opened(store.key) is None

    play(story)


def test_names_that_mean_nothing_are_refused(play: Play) -> None:
    async def story(world: World) -> None:
        assert await world.kernel.open("d", "nobody") == -errno.ENOENT
        assert await world.kernel.open("d", "x" * 64) == -errno.EINVAL
        assert await world.kernel.open("d", BLOB) < 0

    play(story)


@pytest.mark.parametrize("early", [False, True])
def test_an_image_that_disagrees_is_refused_and_harms_nobody(play: Play, early: bool) -> None:
    """Also while nothing is known yet of the one that was there first, and before its blob is opened."""

    async def story(world: World) -> None:
        world.image("right", [b"A", None])
        world.image("wrong", [b"X", b"Y"])
        world.image("more", [b"A", b"B"])
        gate = world.hold("right")
        assert await world.kernel.open("d", "right") > 0
        if not early:
            assert await world.kernel.open("d", BLOB) > 0
        wrong, more = world.kernel.asked("d", "wrong"), world.kernel.asked("d", "more")
        await asyncio.sleep(0.1)
        if early:
            assert await world.kernel.open("d", BLOB) > 0
        assert wrong not in world.kernel.answers
        gate.set()
        assert await world.kernel.answered(wrong) == -errno.EIO
        assert await world.kernel.answered(more) > 0
        await world.until(lambda: world.an_object(BLOB).ready)
        keys = {world.images.says[name][BLOB] for name in ("right", "more")}
        assert set(world.an_object(BLOB).stores) == keys
        assert not world.an_object(BLOB).hopeless
        assert await world.kernel.open("elsewhere", "wrong") > 0

    play(story)


def test_of_two_that_come_at_once_and_disagree_one_is_refused(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None])
        world.image("other", [b"X", None])
        both = [world.kernel.asked("d", name) for name in ("one", "other")]
        assert sorted([await world.kernel.answered(number) > 0 for number in both]) == [False, True]

    play(story)


def test_one_that_comes_while_another_is_judged(play: Play) -> None:
    """It is there by the time the other one is found to agree about everything it was asked about first."""

    async def story(world: World) -> None:
        world.image("before", [None, b"B"], another=[b"C", None])
        world.image("slow", [b"A", None], another=[b"C", None])
        world.image("quick", [b"X", None])
        assert await world.kernel.open("d", "before") > 0
        world.kernel.close(1)
        await world.until(lambda: world.served.find("d", "before") is None)
        cached = world.known.cached("d", ANOTHER)
        await world.known.agree(cached, "d", ANOTHER, world.images.says["before"][ANOTHER])
        gate = world.hold("slow")
        slow = world.kernel.asked("d", "slow")  # has nobody to agree with about BLOB, and waits for ANOTHER
        await asyncio.sleep(0.1)
        assert await world.kernel.open("d", "quick") > 0
        gate.set()
        assert await world.kernel.answered(slow) < 0

    play(story)


def test_images_that_disagree_about_a_size(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None])
        world.image("other", [b"A", None], blobs={BLOB: 9 * BLOCK})
        assert await world.kernel.open("d", "one") > 0
        assert await world.kernel.open("d", "other") < 0

    play(story)


@pytest.mark.parametrize("size", [0, 1 << 50])
def test_a_bootstrap_of_no_possible_size(play: Play, size: int) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None], size=size)
        assert await world.kernel.open("d", "one") == -errno.EIO

    play(story)


@pytest.mark.parametrize("says", [{}, FormatError("damaged"), {BLOB: "f" * 64}])
def test_a_blob_that_nobody_knows_how_to_fill(play: Play, says: object) -> None:
    """The image is mounted by then: readers of its data get EIO."""

    async def story(world: World) -> None:
        world.image("one", [b"A", None])
        world.images.says["one"] = says
        assert await world.kernel.open("d", "one") > 0
        blob = world.kernel.asked("d", BLOB)
        assert await world.kernel.answered(blob) > 0
        await world.until(lambda: world.an_object(BLOB).hopeless)
        read = world.kernel.wants(blob)
        await world.until(lambda: world.kernel.completed == [read])

    play(story)


def test_a_server_that_is_away_and_comes_back(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None])
        says, world.images.says["one"] = world.images.says["one"], BackendError("away")
        assert await world.kernel.open("d", "one") > 0
        blob = world.kernel.asked("d", BLOB)
        assert await world.kernel.answered(blob) > 0
        await world.until(lambda: world.an_object(BLOB).trouble)
        assert not world.an_object(BLOB).hopeless
        world.images.says["one"] = says
        await world.until(lambda: world.an_object(BLOB).ready)
        assert not world.an_object(BLOB).trouble

    play(story)


def test_a_mount_that_is_given_up_ends(play: Play) -> None:
    """Else its process could not even be killed."""

    async def story(world: World) -> None:
        world.image("first", [b"A", None])
        world.image("one", [b"A", None])
        world.hold("one")
        assert await world.kernel.open("d", "first") > 0
        arrival = await world.arrive("d", "one")
        with world.requests.expecting("d", "one", arrival):
            asked = world.kernel.asked("d", "one")
            await world.until(lambda: arrival.opening is not None)
            await asyncio.sleep(0.05)
            assert asked not in world.kernel.answers
        assert await world.kernel.answered(asked) == -errno.EIO
        assert world.served.find("d", "one") is None

    play(story)


def test_why_an_image_is_refused_is_known_to_who_mounts_it(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None], size=0)
        arrival = await world.arrive("d", "one")
        with world.requests.expecting("d", "one", arrival):
            assert await world.kernel.open("d", "one") < 0
        assert arrival.error is not None
        assert arrival.error.message == "one: a bootstrap of 0 bytes"

    play(story)


def test_opened_again_before_it_is_closed(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None])
        first, second = world.kernel.asked("d", "one"), world.kernel.asked("d", "one")
        assert await world.kernel.answered(first) == await world.kernel.answered(second)
        world.kernel.close(first)
        await asyncio.sleep(0.05)
        assert world.served.find("d", "one") is not None
        assert await world.kernel.open("d", BLOB) > 0
        world.kernel.close(second)
        await world.until(lambda: world.served.find("d", "one") is None)
        world.kernel.close(second)  # and once more, of which nobody knows

    play(story)


def test_closed_while_it_is_being_prepared(play: Play) -> None:
    async def story(world: World) -> None:
        world.image("one", [b"A", None])
        gate = world.hold("one")
        assert await world.kernel.open("d", "one") > 0
        blob = world.kernel.asked("d", BLOB)
        assert await world.kernel.answered(blob) > 0
        gone = world.an_object(BLOB)
        for number in (blob, 1):
            world.kernel.close(number)
        await world.until(lambda: gone.closed)
        gate.set()
        await asyncio.sleep(0.2)
        assert not gone.stores

    play(story)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_descriptor_for_what_the_kernel_asks(play: Play, number: int) -> None:
    """The kernel has failed that open; the next one may find one."""

    async def story(world: World) -> None:
        world.image("one", [b"A", b"B"])
        world.kernel.fails(number)
        assert await world.kernel.open("d", "one") > 0

    play(story)


def test_a_cache_that_the_kernel_has_given_up(play: Play) -> None:
    """The end of the service: the loop's handler is told, which ends it."""
    told: list[object] = []

    async def story(world: World) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        world.kernel.fails(errno.EIO)
        await world.until(lambda: told)

    play(story)
    (error,) = told
    assert isinstance(error, KernelError)
    assert "Input/output error" in error.message


def test_no_descriptors_to_serve_an_image(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readers get EIO instead of waiting; others are served."""

    async def story(world: World) -> None:
        world.image("one", [b"A", b"B"])
        world.image("two", [b"A", b"B"])

        def dup(_: Fd) -> Fd:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(Fd, "dup", dup)
            number = await world.kernel.answered(one := world.kernel.asked("d", "one"))
            assert number > 0
            await world.until(lambda: world.an_object("one").hopeless)
        read = world.kernel.wants(one)
        await world.until(lambda: read in world.kernel.completed)
        assert await world.kernel.open("d", "two") > 0
        await world.until(lambda: world.an_object("two").ready)

    play(story)
