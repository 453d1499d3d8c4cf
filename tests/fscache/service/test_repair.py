"""``cache verify --repair``: where the kernel remembers what was wrong, whoever dies meanwhile, whatever is in the
place of segments."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fscache.service.test_verify import WRONG, damage, report, used, verify
from tests.kit.command import CLI
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built, build, build_apart
from tests.kit.reading import compare, read, reader
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SEGMENTS = 4


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


@pytest.fixture
def image(tmp_path: Path) -> Built:
    """Each file is a segment."""
    return build_apart(tmp_path, SEGMENTS)


@pytest.fixture
def target(service: Service, image: Built) -> Path:
    """Where it is mounted, all of it here, and read."""
    target = service.mount(image.bootstrap, image.blob.parent, prefetch=True)
    service.complete(target)
    assert same(image, target) == [True] * SEGMENTS
    return target


def segments(service: Service) -> list[Path]:
    return [path for path in sorted(service.cache()) if path.stat().st_size]


def spoil(service: Service, image: Built, target: Path) -> None:
    """All segments are wrong, and the kernel has read them so."""
    for path in segments(service):
        damage(path, 5000)
    forget(target)
    assert same(image, target) == [False] * SEGMENTS


def forget(target: Path) -> None:
    for number in range(SEGMENTS):
        with open(target / f"{number}", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(image: Built, target: Path) -> list[bool]:
    """Of each file, whether it is right as the kernel has it; in children, for whom nobody may have an answer."""
    commands = [["cmp", "-s", str(image.tree / f"{number}"), str(target / f"{number}")] for number in range(SEGMENTS)]
    return [not subprocess.run(command, timeout=20, check=False).returncode for command in commands]


@contextlib.contextmanager
def covered(path: Path) -> Iterator[None]:
    """Something is mounted there."""
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


# --- what the kernel remembers ---


def test_below_another_mount(service: Service, tmp_path: Path) -> None:
    (tmp_path / "tree/folder").mkdir(parents=True)
    (tmp_path / "tree/folder/file").write_bytes(os.urandom(1 << 20))
    built = build(tmp_path / "tree", tmp_path / "image")
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    damage(segments(service)[0])
    with pytest.raises(AssertionError):
        compare(built.tree, target)
    with covered(target / "folder"):
        assert report(service, "--repair", target)["repaired"] == 1
    compare(built.tree, target)


@pytest.mark.parametrize("how", ["looked again", "killed"])
def test_what_could_not_be_forgotten_is_known(how: str, service: Service, image: Built, target: Path) -> None:
    """Also by the next service. Nothing says that all is right before it is."""
    spoil(service, image, target)
    with covered(target):
        answer = report(service, "--repair", "--all")
        assert (answer["damaged"], answer["repaired"]) == (SEGMENTS, 0)
        done = verify(service, "--all")
        assert done.returncode == WRONG, done
        assert "something else is mounted over" in done.stdout
        if how == "killed":
            service.kill_all()
    if how == "killed":
        service.start()
        wait_for("it is forgotten", lambda: all(same(image, target)))
    else:
        assert report(service, "--all")["damaged"] == 0
        assert all(same(image, target))


def test_what_a_process_has_mapped(service: Service, image: Built, target: Path) -> None:
    """It is wrong for others too, as long as it is: nobody says that it was repaired."""
    spoil(service, image, target)
    ready = service.work / "ready"
    holder = reader("map", target / "1", ready)
    try:
        wait_for("it is mapped", ready.exists)
        done = verify(service, "--repair", "--all")
        assert done.returncode == WRONG, done
        assert f"{target}/1 is wrong in memory" in done.stdout
        assert same(image, target) == [True, False, True, True]
        assert verify(service, target).returncode == WRONG
    finally:
        holder.kill()
        holder.communicate()
    assert verify(service, target).returncode == 0
    assert all(same(image, target))


def test_what_is_right_and_mapped(service: Service, image: Built, target: Path) -> None:
    ready = service.work / "ready"
    holder = reader("map", target / "1", ready)
    try:
        wait_for("it is mapped", ready.exists)
        damage(segments(service)[0], 5000)
        assert report(service, "--repair", target)["repaired"] == 1
        assert verify(service, target).returncode == 0
    finally:
        holder.kill()
        holder.communicate()


def test_what_was_unmounted_when_it_was_repaired(service: Service, image: Built, target: Path) -> None:
    """Its readers are seen again with the next mount, though the kernel knew its segments for complete ones."""
    spoil(service, image, target)
    service.umount(target)
    assert report(service, "--all", "--repair")["repaired"] == SEGMENTS
    service.mount(image.bootstrap, image.blob.parent, target=target)
    compare(image.tree, target)


def test_devices_of_an_image_are_left_alone(service: Service, tmp_path: Path) -> None:
    """Some do things when they are opened, and pipes wait. Names may be of any bytes, and folders deep."""
    tree = tmp_path / "tree"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "terminal", 0o600 | stat.S_IFCHR, os.makedev(5, 0))
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff\n")).write_bytes(os.urandom(1 << 20))
    built = build(tree, tmp_path / "image")
    target = service.mount_image(built.bootstrap, prefetch=True, options=["dev"])
    service.complete(target)
    damage(segments(service)[0])
    name = Path(os.fsdecode(os.fsencode(target) + b"/\xff\n"))
    right = (tree / name.name).read_bytes()
    subprocess.run(["rm", "-rf", str(tree)], check=True)  # nobody else removes what is so deep
    assert name.read_bytes() != right
    assert report(service, "--repair", target)["repaired"] == 1
    assert name.read_bytes() == right


# --- what is in the place of segments ---


def _removed(path: Path) -> None:
    path.unlink()


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("plan")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _given(path: Path) -> None:
    os.chown(path, 0, 0)


@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("do", [_removed, _linked, _pipe, _given])
def test_one_file_that_is_not_ours(
    do: Callable[[Path], None], mounted: bool, service: Service, image: Built, target: Path
) -> None:
    """All others are looked at and repaired. What nobody uses is made anew; what is mounted has to be unmounted.

    Of a store whose first one is another user's nothing counts until it is used.
    """
    if not mounted:
        service.umount(target)
    _, second, *_, last = segments(service)
    damage(last, 5000)
    do(second)
    assert report(service, "--all")["damaged"]
    answer = report(service, "--all", "--repair")
    if mounted:
        assert (answer["damaged"], answer["repaired"]) == (2, 1)
        first, _, *others = same(image, target)
        assert [first, *others] == [True] * (SEGMENTS - 1)
        service.umount(target)
        assert verify(service, "--all", "--repair").returncode == 0
    else:
        assert answer["damaged"] == answer["repaired"]
    compare(image.tree, service.mount(image.bootstrap, image.blob.parent, target=target))


def test_a_segment_that_somebody_has_cut(service: Service, image: Built, target: Path) -> None:
    """Nothing in it is wrong, but its readers get EIO: nobody asks the service for what it knows to be there."""
    os.truncate(segments(service)[1], 8192)
    assert read(target / "1") == {"error": "EIO"}
    assert verify(service, target).returncode == WRONG
    assert report(service, "--repair", target)["repaired"] == 1
    compare(image.tree, target)


def test_a_segment_that_somebody_has_replaced(service: Service, image: Built, target: Path) -> None:
    """The kernel reads the one that it has open, and nobody else can."""
    spoil(service, image, target)
    path = segments(service)[0]
    good = (image.tree / "0").read_bytes()
    new = path.with_name("new")
    new.write_bytes(good)
    os.chown(new, path.stat().st_uid, path.stat().st_gid)
    new.rename(path)
    done = verify(service, "--repair", target)
    assert done.returncode == WRONG
    assert "another file is in its place" in done.stdout
    service.umount(target)
    service.mount(image.bootstrap, image.blob.parent, target=target)
    assert verify(service, target).returncode == 0
    compare(image.tree, target)


def test_what_is_no_store(service: Service, target: Path) -> None:
    root = service.state / "store"
    (root / "lost+found").mkdir()
    (root / "a note").write_text("of an administrator")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).touch()
    answer = report(service, "--all")
    assert (answer["stores"], answer["damaged"]) == (1, 0)


def test_a_store_that_cannot_be_written_to(service: Service, built: Built) -> None:
    """Nobody looks at it, and that is said."""
    service.mount(built.bootstrap)
    service.kill_all()
    (store,) = (service.state / "store").iterdir()
    (store / "epoch").unlink()
    subprocess.run(["chattr", "+i", str(store)], check=True)
    try:
        service.start()
        done = verify(service, "--all")
        assert done.returncode == WRONG
        assert "it cannot be looked at" in done.stdout
    finally:
        subprocess.run(["chattr", "-i", str(store)], check=True)


# --- who asks ---


def test_each_client_hears_of_his_own_run(service: Service, image: Built, target: Path, built: Built) -> None:
    """However late he asks; and of one that came to no end, that."""
    other = service.mount(built.bootstrap, prefetch=True)
    service.complete(other)
    damage(first_of(service), 5000)
    first = service.request("scrub", image=str(target))["run"]
    wait_for("it is done", lambda: not service.request("scrubbing", run=first)["running"])
    second = service.request("scrub", image=str(other), rate=1 << 20)["run"]
    answer = service.request("scrubbing", run=first, stop=True)
    assert (answer["damaged"], answer["finished"]) == (1, True)
    assert service.request("scrubbing", run=second)["running"], "it was ended by who began another one"
    service.request("scrubbing", run=second, stop=True)
    wait_for("it ends", lambda: not service.request("scrubbing", run=second)["running"])
    assert not service.request("scrubbing", run=second)["finished"]


def first_of(service: Service) -> Path:
    """The first segment of an image of ``build_apart`` among others."""
    stores = {path.parent for path in segments(service)}
    return next(files[0] for store in stores if len(files := sorted(store.glob("[0-9]*"))) == SEGMENTS)


@pytest.mark.parametrize("how", ["stopped", "started again"])
def test_what_was_not_looked_at_is_not_right(how: str, service: Service, built: Built) -> None:
    service.complete(service.mount(built.bootstrap, prefetch=True))
    for path in used(service):
        damage(path)
    command = [*CLI, "cache", "verify", "--all", "--rate", "2", "--run-dir", str(service.run)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for("it has begun", lambda: service.request("scrubbing")["bytes"])
        if how == "stopped":
            service.request("scrubbing", stop=True)
        else:
            client.send_signal(signal.SIGSTOP)  # it does not notice that there was no service for a moment
            service.kill_all()
            service.start()
            client.send_signal(signal.SIGCONT)
        client.communicate(timeout=60)
    finally:
        client.kill()
    assert client.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_client_ends_the_run(number: signal.Signals, service: Service, built: Built) -> None:
    service.complete(service.mount(built.bootstrap, prefetch=True))
    damage(used(service)[0])
    command = [*CLI, "cache", "verify", "--all", "--rate", "1", "--run-dir", str(service.run)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for("what is wrong is told at once", lambda: service.request("scrubbing")["damaged"])
        client.send_signal(number)
        client.communicate(timeout=60)
    finally:
        client.kill()
    assert client.returncode == 128 + number
    wait_for("it ends", lambda: not service.request("scrubbing")["running"])
    assert not service.request("scrubbing")["finished"]


def test_a_verifier_that_does_nothing(service: Service, built: Built) -> None:
    """Is replaced, though no reader waits for it."""
    service.complete(service.mount(built.bootstrap, prefetch=True))
    service.request("scrub", rate=8 << 20)
    wait_for("it has begun", lambda: service.request("scrubbing")["bytes"])
    os.kill(service.verifier, signal.SIGSTOP)
    wait_for("it is done", lambda: not service.request("scrubbing")["running"])
    answer = service.request("scrubbing")
    assert answer["finished"]
    assert answer["bytes"] == service.held()


def test_one_at_a_time(service: Service, target: Path) -> None:
    service.request("scrub", rate=1 << 20, image=str(target))
    with pytest.raises(RefusedError, match="being verified") as refused:
        service.request("scrub")
    assert "cache stop" not in str(refused.value.hint), "there is no such command"
    assert service.stop() == 0
