"""What the keeper takes over from `prepare`, which has parsed untrusted bytes: here it does its worst.

A child plays it, over the real socket and in the real folder; each time the answer is one clear error, and nothing
outside the image's own folder is touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BlobNotFoundError, CorruptError, FormatError, NydusErofsError
from nydus_erofs.erofs.ids import BlobId
from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.keeper.disk import Disk
from nydus_erofs.fscache.keeper.images import prepared as preparing
from nydus_erofs.fscache.keeper.paths import StatePaths
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.processes import PREPARE, Process
from nydus_erofs.fscache.proto import prepare as proto
from nydus_erofs.fscache.proto.fault import Fault
from nydus_erofs.fscache.state.image import ImageRecord
from nydus_erofs.fscache.state.plan import CHUNK, MAGIC, SEGMENT, PlanHeader

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]
UIDS = Config().uids
UID = UIDS.prepare
BLOB = "cd" * 32


def plan(segments: int = 2, blob: str = BLOB, digest: bytes = bytes(32)) -> bytes:
    """That of a blob, with one chunk of a block in each segment."""
    header = PlanHeader(MAGIC, blob.encode(), 1, 0, segments, segments, 4096)
    rows = [SEGMENT.pack(4096 * number, 4096, number, 1) for number in range(segments)]
    chunks = [CHUNK.pack(digest, 0, 4096 * number, 100, 4096, 0, 4096, 0) for number in range(segments)]
    return header.pack() + b"".join([*rows, *chunks])


PLAN = plan()
KEY = hashlib.sha256(PLAN).hexdigest()


Act = Callable[[socket], object]  # None: it says that it is done
Ask = Callable[..., ImageRecord]
Provide = Callable[[BlobId, int, int], Awaitable[tuple[Fd, int]]]


async def nothing_known(blob: BlobId, offset: int, length: int) -> tuple[Fd, int]:
    pytest.fail(f"asked for {blob}")


def leave(
    folder: Path | str = ".", *, key: str = KEY, plan: bytes = PLAN, boot: bytes = b"boot", **claims: Any
) -> None:
    """What an honest one leaves in its working directory, if it claims nothing else."""
    Path(folder, "boot").write_bytes(boot)
    store = {"key": key, "blob_id": BLOB, "segments": 2, "size": 8192, **claims}
    Path(folder, "image.json").write_text(json.dumps({"stores": [store], "boot_size": len(boot)}))
    Path(folder, "stores", key).mkdir()
    Path(folder, "stores", key, "plan").write_bytes(plan)


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    tmp_path.chmod(0o755)
    return StatePaths(str(tmp_path / "state"))


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], None]:
    """`play(act)`: from now on `prepare` is a child that runs `act(socket)` in its folder."""

    def play(act: Act) -> None:
        def spawn(module: Process, uid: int) -> tuple[int, socket]:
            assert (module, uid) == (PREPARE, UID)
            ours, theirs = channel.pair()
            pid = os.fork()
            if pid:
                theirs.close()
                return pid, ours
            try:
                ours.close()
                _, (_, folder) = channel.receive(theirs, proto.MAX_MESSAGE)
                os.fchdir(folder.fd)
                os.setresgid(UID, UID, UID)
                os.setresuid(UID, UID, UID)
                if act(theirs) is None:
                    channel.send(theirs, proto.encode(proto.Prepared()))
                signal.pause()
            finally:
                os._exit(1)

        monkeypatch.setattr(preparing, "spawn", spawn)

    return play


def images_of(state: StatePaths) -> preparing.Images:
    return preparing.Images(state, Disk(state.root), 1 << 20, UIDS, localize=True)


@pytest.fixture
def ask(state: StatePaths, play: Callable[[Act], None], tmp_path: Path) -> Ask:
    """`ask(act)`: one preparation by a child that runs `act(socket)` in its folder; the record."""

    def ask(act: Act, provide: Provide = nothing_known) -> ImageRecord:
        play(act)
        boot = Fd(os.open(tmp_path / "published", os.O_RDWR | os.O_CREAT))

        async def get() -> ImageRecord:
            return await images_of(state).get("0" * 32, boot, provide, anew=True)

        try:
            return asyncio.run(get())
        finally:
            boot.close()
            assert not list(Path(state.images).glob(".new*"))

    return ask


def test_an_honest_one(ask: Ask, state: StatePaths) -> None:
    record = ask(lambda sock: leave())
    assert record.stores[0].key == KEY
    store, image = Path(state.store_of(KEY)), Path(state.image("0" * 32))
    assert sorted(path.name for path in store.iterdir()) == ["00000", "00001", "plan"]
    assert sorted(path.name for path in image.iterdir()) == ["boot", "boot.sha256", "epoch", "image.json"]
    assert {path.name: path.stat().st_uid for path in store.iterdir()} == {
        "00000": UIDS.verifier,
        "00001": UIDS.verifier,
        "plan": 0,
    }
    assert (store.stat().st_uid, image.stat().st_uid) == (0, 0)


class Waiting:
    """A disk that writes out when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Callable[[bool], None]] = []
        self.write_out_later = self.asked.append


def test_fresh_images_are_settled_when_they_are_on_the_disk(
    play: Callable[[Act], None], state: StatePaths, tmp_path: Path
) -> None:
    """But not by the sync for one in whose place another has come since."""
    disk: Any = Waiting()
    images = preparing.Images(state, disk, 1 << 20, UIDS, localize=True)
    note = Path(state.image("0" * 32), "epoch")

    def make() -> None:
        play(lambda sock: leave())
        with Fd(os.open(tmp_path / "published", os.O_RDWR | os.O_CREAT)) as boot:
            asyncio.run(images.get("0" * 32, boot, nothing_known, anew=True))

    for written in (False, True):
        make()
        assert note.exists()
        disk.asked.pop()(written)
        assert note.exists() == (not written)
    make()
    make()
    first, second = disk.asked
    first(True)
    assert note.exists()
    second(True)
    assert not note.exists()


def test_a_second_time_keeps_what_was_fetched(ask: Ask, state: StatePaths) -> None:
    ask(lambda sock: leave())
    segment = Path(state.store_of(KEY), "00001")
    segment.write_bytes(b"fetched")
    ask(lambda sock: leave())
    assert segment.read_bytes() == b"fetched"
    assert os.listdir(state.store) == [KEY]


def refused(
    ask: Ask,
    act: Act,
    match: str,
    kind: type[FormatError] = FormatError,
    **options: Any,
) -> None:
    with pytest.raises(kind, match=match) as caught:
        ask(act, **options)
    assert "\n" not in caught.value.message


def test_it_dies(ask: Ask) -> None:
    refused(ask, lambda sock: os.kill(os.getpid(), signal.SIGKILL), "the process died")
    refused(ask, lambda sock: os._exit(0), "the process died")


@pytest.mark.parametrize("packet", [b"x", b"{}", b'{"op":"needbytes"}', b"\xff", b'{"x":' + b"[" * 60_000])
def test_it_sends_nonsense(packet: bytes, ask: Ask) -> None:
    refused(ask, lambda sock: sock.send(packet), "nonsense")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "", "ab" * 31, "AB" * 32, "/" + "a" * 63])
def test_it_asks_for_a_file_that_is_no_blob(name: str, ask: Ask) -> None:
    """That is nonsense; the folders of blobs are not even looked into."""

    def act(sock: socket) -> None:
        channel.send(sock, proto.encode(proto.NeedBytes(name, 0, 1)))
        signal.pause()

    refused(ask, act, "nonsense")


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, -1), (0, 1 << 31), (1 << 60, 1)])
def test_it_asks_for_bytes_that_cannot_be(offset: int, length: int, ask: Ask) -> None:
    def act(sock: socket) -> None:
        channel.send(sock, proto.encode(proto.NeedBytes("ab" * 32, offset, length)))
        signal.pause()

    refused(ask, act, "nonsense")


def test_what_it_says_becomes_the_error(ask: Ask) -> None:
    def say(kind: str) -> Act:
        def act(sock: socket) -> object:
            channel.send(sock, proto.encode(proto.NotPrepared(Fault(kind, "it is so", "do that"))))
            return True

        return act

    for name, kind in {"CorruptError": CorruptError, "BlobNotFoundError": BlobNotFoundError}.items():
        with pytest.raises(kind) as caught:
            ask(say(name))
        assert (caught.value.message, caught.value.hint) == ("it is so", "do that")
    for name in ("errno", "annotations", "Rule", "ClassVar", "", "SystemExit", "__builtins__"):
        with pytest.raises(NydusErofsError, match="it is so"):
            ask(say(name))


def link(target: str, path: str) -> Act:
    def act(sock: socket) -> None:
        leave()
        os.unlink(path)
        os.symlink(target, path)

    return act


@pytest.mark.parametrize("path", ["boot", "image.json", f"stores/{KEY}/plan"])
def test_links_lead_nowhere(path: str, ask: Ask) -> None:
    refused(ask, link("/etc/shadow", path), "it left|damaged")


def test_hard_links(ask: Ask) -> None:
    def act(sock: socket) -> None:
        leave()
        os.unlink("boot")
        os.link("image.json", "boot")

    refused(ask, act, "it left")


def test_a_trap_where_root_will_write(ask: Ask, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for folder in (".", f"stores/{KEY}"):

        def act(sock: socket, folder: str = folder) -> None:
            leave()
            os.symlink(victim, f"{folder}/epoch")

        refused(ask, act, "it left")
        assert victim.read_text() == "precious"


def test_a_folder_that_is_a_link(ask: Ask, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    leave_there = tmp_path / "there"
    for path in (elsewhere, leave_there / "stores"):
        path.mkdir(parents=True)
    for name in ("stores", f"stores/{KEY}"):

        def act(sock: socket, name: str = name) -> None:
            leave()
            os.rename(name, "was")
            os.symlink(elsewhere, name)

        refused(ask, act, "it left")
    assert (elsewhere.stat().st_uid, elsewhere.stat().st_mode & 0o777) == (0, 0o755)


def test_devices_and_fifos(ask: Ask) -> None:
    def act(sock: socket) -> None:
        leave()
        os.unlink("image.json")
        os.mkfifo("image.json")

    refused(ask, act, "it left")


def test_segments_of_its_own_making(ask: Ask) -> None:
    """What counts as fetched nobody but the worker has written."""

    def act(sock: socket) -> None:
        leave()
        Path("stores", KEY, "00000").write_bytes(b"bytes that nobody verified")

    refused(ask, act, "it left")


def test_more_names_than_anybody_reads(ask: Ask) -> None:
    def act(sock: socket) -> None:
        leave()
        for number in range(3000):
            Path(f"more{number}").touch()

    refused(ask, act, "it left 'more")


def test_folders_without_end(ask: Ask) -> None:
    def act(sock: socket) -> None:
        leave()
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")

    refused(ask, act, "it left 'd'")


def test_the_key_of_another_store(ask: Ask, state: StatePaths) -> None:
    """It cannot give what another image fetches other digests."""
    ask(lambda sock: leave())
    refused(ask, lambda sock: leave(plan=plan(digest=b"other" * 6 + b"s!")), "is another")
    assert Path(state.store_of(KEY), "plan").read_bytes() == PLAN


@pytest.mark.parametrize("claims", [{"segments": 1}, {"segments": 3}, {"blob_id": "ef" * 32}, {"size": 4096}])
def test_a_store_that_another_image_has_and_claims_that_do_not_fit_its_plan(
    claims: dict[str, Any], ask: Ask, state: StatePaths
) -> None:
    """What others have fetched stays, whoever knows their plan; and its blob is what the plan says."""
    ask(lambda sock: leave())
    store = Path(state.store_of(KEY))
    (store / "00001").write_bytes(b"fetched")
    refused(ask, lambda sock: leave(**claims), "the plan of store .* is another")
    assert (store / "00001").read_bytes() == b"fetched"
    assert sorted(path.name for path in store.iterdir()) == ["00000", "00001", "plan"]


def test_a_plan_that_is_none(ask: Ask) -> None:
    """It would be read by everybody who has to do with the store."""
    for nonsense in (b"nonsense", PLAN[:-1]):
        named = {"key": hashlib.sha256(nonsense).hexdigest(), "plan": nonsense}

        def act(sock: socket, named: dict[str, Any] = named) -> None:
            leave(**named)

        refused(ask, act, "(?i)plan")


@pytest.mark.parametrize("claims", [0, -1, 65536, 1 << 62])
def test_a_number_of_segments_that_cannot_be(claims: int, ask: Ask) -> None:
    refused(ask, lambda sock: leave(segments=claims), "damaged")


def test_modes_that_let_the_worker_in(ask: Ask, state: StatePaths) -> None:
    def act(sock: socket) -> None:
        leave()
        for path in (f"stores/{KEY}", "stores", "."):
            os.chmod(path, 0o777)

    ask(act)
    for path in (state.store_of(KEY), state.image("0" * 32)):
        assert os.stat(path).st_mode & 0o022 == 0


def test_a_record_without_end(ask: Ask) -> None:
    def act(sock: socket) -> None:
        leave()
        with open("image.json", "r+b") as file:
            file.truncate(1 << 40)

    refused(ask, act, "damaged")


def test_a_bootstrap_cut_off(ask: Ask) -> None:
    def act(sock: socket) -> None:
        leave()
        os.truncate("boot", 1)

    refused(ask, act, "damaged")
