"""Starting, stopping and everything that is refused: one clear line, a hint, and the service as it was before."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from tests.kit.command import cli
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built, build
from tests.kit.mounts import mounted, mounted_disk, unmount_all
from tests.kit.processes import alive, children
from tests.kit.reading import compare, read
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


@pytest.fixture(scope="module")
def one_for_all(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for all tests that it must survive unharmed."""
    service = Service(tmp_path_factory.mktemp("s"), FANOTIFY).start()
    try:
        yield service
        assert service.stop() == 0
        assert "Traceback" not in service.log_text(), service.log_text()[-4000:]
    finally:
        service.close()


@pytest.fixture
def shared(one_for_all: Service) -> Iterator[Service]:
    keeper = one_for_all.keeper.pid
    yield one_for_all
    status = one_for_all.status()
    for mount in status["mounts"]:
        one_for_all.umount(mount["target"])
    assert (status["pid"], status["worker"]["restarts"]) == (keeper, 0)


def refused(service: Service, bootstrap: Path | str, *blob_dirs: Path, **options: Any) -> RefusedError:
    """The error of a mount that must not happen; nothing of it stays."""
    before = mounted(service.work)
    with pytest.raises(RefusedError) as caught:
        service.mount(bootstrap, *blob_dirs, **options)
    error = caught.value
    assert "\n" not in error.error
    assert error.exit_code not in (0, None)
    assert mounted(service.work) == before
    assert not list((service.run / "mounts").iterdir())
    assert not list((service.state / "images").glob(".new*"))
    assert service.status()["mounts"] == []
    return error


def failed_start(service: Service, *arguments: object) -> tuple[list[str], int]:
    """What `serve` says when it does not start: one line and a hint; (them, its exit code)."""
    service.spawn(*arguments)
    code = service.keeper.wait(60)
    lines = service.log_text().splitlines()
    assert code != 0
    assert lines[0].startswith("nydus-erofs: ")
    assert len(lines) == 2, lines
    assert lines[1].startswith("  hint: ")
    return lines, code


# --- mountpoints --------------------------------------------------------------------------------------------


def test_mountpoint_missing(shared: Service, built: Built) -> None:
    error = refused(shared, built.bootstrap, target=shared.work / "nowhere")
    assert "nowhere does not exist" in error.error
    assert "mkdir" in error.hint


def test_mountpoint_is_a_file(shared: Service, built: Built) -> None:
    error = refused(shared, built.bootstrap, target=built.bootstrap)
    assert "not a directory" in error.error


def test_mountpoint_below_a_file(shared: Service, built: Built) -> None:
    error = refused(shared, built.bootstrap, target=built.bootstrap / "x")
    assert "Not a directory" in error.error


@pytest.mark.parametrize("spelling", ["{}/", "{}/.", "{}/../{name}", "{}.link"])
def test_mountpoint_under_another_name(spelling: str, shared: Service, built: Built) -> None:
    """Two images would get onto one mountpoint that is asked for under two names."""
    target = shared.target()
    target.with_name(f"{target.name}.link").symlink_to(target)
    with pytest.raises(RefusedError, match="another name of") as caught:
        shared.request("mount", image=str(built.bootstrap), target=spelling.format(target, name=target.name))
    assert caught.value.exit_code == 9
    assert not mounted(target)


def test_mountpoint_in_use(shared: Service, built: Built, nydus_images: Path) -> None:
    target = shared.mount(built.bootstrap)
    with pytest.raises(RefusedError, match=r"mounted on .* already") as caught:
        shared.mount(nydus_images / "plain" / "boot", nydus_images / "plain" / "blobs", target=target)
    assert caught.value.exit_code == 10
    compare(built.tree, target)


def test_one_mountpoint_wanted_by_many(shared: Service, built: Built) -> None:
    """One of them gets it."""
    target = shared.target()

    def mount(_: int) -> int:
        try:
            shared.mount(built.bootstrap, target=target)
        except RefusedError as error:
            assert error.exit_code == 10
            return 0
        return 1

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(mount, range(6))) == 1
    assert len([m for m in mounted(target) if m[1] == "erofs"]) == 1
    shared.umount(target)
    assert not mounted(target)


def test_the_same_new_image_wanted_by_many(shared: Service, built: Built, own: tuple[Path, Path]) -> None:
    """It is prepared once, and all get it."""
    targets, before = [shared.target() for _ in range(6)], len(list((shared.state / "images").iterdir()))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda target: shared.mount(own[0], target=target), targets))
    assert len(list((shared.state / "images").iterdir())) == before + 1
    for target in targets[:2]:
        compare(built.tree, target)


def test_umount_of_something_else(shared: Service, built: Built) -> None:
    shared.mount(built.bootstrap)
    for target in ("/proc", "/nowhere", "/"):
        with pytest.raises(RefusedError, match="nothing of this service is mounted") as caught:
            shared.umount(target)
        assert "status" in caught.value.hint


# --- images -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(built: Built, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the image that may be spoiled: (bootstrap, blob)"""
    folder = tmp_path / "image"
    shutil.copytree(built.bootstrap.parent, folder)
    return folder / built.bootstrap.name, folder / built.blob.name


def then_it_works(shared: Service, built: Built, own: tuple[Path, Path]) -> None:
    """The same request with the image as it should be."""
    for path, right in zip(own, (built.bootstrap, built.blob), strict=True):
        shutil.copy(right, path)
    target = shared.mount(own[0])
    compare(built.tree, target)


def test_bootstrap_missing(shared: Service) -> None:
    error = refused(shared, shared.work / "no.meta")
    assert "no.meta: No such file" in error.error


def test_bootstrap_is_a_folder(shared: Service, built: Built) -> None:
    error = refused(shared, built.tree)
    assert "not a file" in error.error
    assert ".meta" in error.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/dev/null", "is not a file"),
        ("/dev/zero", "is not a file"),
        ("/bin/cat", "not a RAFS v6 bootstrap"),
        ("/etc/hostname", "is no bootstrap"),
    ],
)
def test_bootstrap_is_something_else(name: str, said: str, shared: Service) -> None:
    error = refused(shared, name)
    assert error.exit_code == 3
    assert said in error.error


def test_an_empty_bootstrap(shared: Service) -> None:
    (shared.work / "empty.meta").touch()
    assert "empty" in refused(shared, shared.work / "empty.meta").error


@pytest.mark.parametrize("size", [1, 1023, 1100, 4095, 4096, 8192, 10000])
def test_a_truncated_bootstrap(size: int, shared: Service, built: Built, own: tuple[Path, Path]) -> None:
    os.truncate(own[0], size)
    assert refused(shared, own[0]).exit_code == 3
    then_it_works(shared, built, own)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (1024, b"\0\0\0\0"),  # magic number
        (1024 + 80, b"\xff\xff\xff\xff"),  # incompatible features
        (1152 + 8, b"\xff" * 8),  # place of the blob table
        (1152 + 20, b"\x01\0\0\0"),  # chunk size
        (1152 + 24, b"\xff" * 8),  # place of the chunk table
        (4096, b"../../../../etc/passwd\0"),  # the blob's id
        (4096 + 76, b"\x09"),  # its compression
        (4096 + 84, b"\xff\xff\xff\x7f"),  # its features
    ],
    ids=["magic", "features", "blob table", "chunk size", "chunk table", "blob id", "compression", "blob features"],
)
def test_a_corrupt_bootstrap(at: int, data: bytes, shared: Service, built: Built, own: tuple[Path, Path]) -> None:
    (table,) = (int.from_bytes(own[0].read_bytes()[1160:1168], "little"),)
    if at >= 4096:
        at += table - 4096
    with open(own[0], "r+b") as file:
        file.seek(at)
        file.write(data)
    assert refused(shared, own[0]).exit_code in (3, 4)
    then_it_works(shared, built, own)


@pytest.mark.parametrize("name", ["tarfs", "encrypt", "zran"])
def test_an_image_of_a_kind_that_is_not_supported(name: str, shared: Service, nydus_images: Path) -> None:
    folder = nydus_images / name
    error = refused(shared, folder / "boot", folder / "blobs")
    assert "not supported" in error.error


@pytest.mark.parametrize("how", ["missing", "empty", "a folder"])
def test_blob_missing(how: str, shared: Service, built: Built, own: tuple[Path, Path]) -> None:
    own[1].unlink()
    if how == "empty":
        own[1].touch()
    elif how == "a folder":
        own[1].mkdir()
    error = refused(shared, own[0])
    assert built.blob.name in error.error
    assert "--blob-dir" in error.hint
    assert error.exit_code == 6
    if how == "a folder":
        own[1].rmdir()
    then_it_works(shared, built, own)


@pytest.mark.parametrize("how", ["truncated", "chunk-info", "header", "another blob"])
def test_a_blob_that_cannot_belong_to_it(
    how: str, shared: Service, built: Built, own: tuple[Path, Path], nydus_images: Path
) -> None:
    """What the mount needs of it is not there: no mount."""
    size = own[1].stat().st_size
    match how:
        case "truncated":
            os.truncate(own[1], size // 2)
        case "chunk-info":
            with open(own[1], "r+b") as file:
                file.seek(size - 9000)
                file.write(b"\xa5" * 4000)
        case "header":
            with open(own[1], "r+b") as file:
                file.seek(size - 5000)
                file.write(bytes(5000))
        case "another blob":
            (other,) = (nydus_images / "plain" / "blobs").iterdir()
            shutil.copy(other, own[1])
    assert refused(shared, own[0]).exit_code in (3, 6)
    then_it_works(shared, built, own)


def test_blobs_are_found_beside_the_bootstrap_and_where_named(
    make_service: MakeService, built: Built, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(built.bootstrap, away / "image.meta")
    configured = make_service(blob_dirs=[str(built.blob.parent)])
    read(configured.mount(away / "image.meta") / "small/1")
    plain = make_service()
    read(plain.mount(away / "image.meta", tmp_path / "nothing", built.blob.parent) / "small/1")


def test_a_bootstrap_written_anew_under_its_old_name(shared: Service, tmp_path: Path) -> None:
    """The next mount shows what is there now; a mount that is there stays what it was."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    (tree / "file").write_text("first")
    first = shared.mount(build(tree, out).bootstrap)
    (tree / "file").write_text("second!")
    for path in out.iterdir():
        path.unlink()
    second = shared.mount(build(tree, out).bootstrap)
    assert [read(mount / "file")["length"] for mount in (first, second)] == [5, 7]


# --- starting and stopping ----------------------------------------------------------------------------------


def test_a_second_service_on_the_same_state(
    service: Service, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = service.mount(built.bootstrap)
    second = make_service(FANOTIFY, start=False, work=tmp_path_factory.mktemp("second"))
    second.state = service.state
    lines, code = failed_start(second)
    assert "another service uses the state folder" in lines[0]
    assert "--state-dir" in lines[1]
    assert code == 9
    assert not mounted(second.work)
    compare(built.tree, target)


def test_a_second_service_on_the_same_run_folder(
    service: Service, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = service.mount(built.bootstrap)
    before = mounted(service.work)
    second = make_service(FANOTIFY, start=False, work=tmp_path_factory.mktemp("second"))
    second.run = service.run
    lines, code = failed_start(second)
    assert "another service" in lines[0]
    assert "--run-dir" in lines[1]
    assert code == 9
    assert mounted(service.work) == before
    compare(built.tree, target)
    service.umount(target)


def test_too_few_descriptors(service: Service) -> None:
    """Refused at the start, rather than ended by the first reader too many."""
    assert service.stop() == 0
    limited = ["prlimit", "--nofile=512:512", "setpriv", "--bounding-set=-sys_resource"]
    service.program = [*limited, *service.program]
    service.spawn()
    assert service.keeper.wait(60) == 9
    assert "may open 512 files" in service.log_text()


def test_a_cache_on_tmpfs(make_service: MakeService, tmp_path_factory: pytest.TempPathFactory) -> None:
    work = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", work], check=True, timeout=20)
    try:
        service = make_service(FANOTIFY, start=False, work=work)
        lines, code = failed_start(service)
        assert "ext4" in lines[1]
        assert code == 8
        assert len(mounted(work)) == 1
    finally:
        unmount_all(work)


@pytest.mark.failure("state folder read-only")
def test_a_cache_on_a_read_only_disk(make_service: MakeService, tmp_path_factory: pytest.TempPathFactory) -> None:
    work = tmp_path_factory.mktemp("ro")
    with mounted_disk(work, 8) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=20)
        service = make_service(FANOTIFY, start=False, work=work)
        service.state = disk / "state"
        lines, code = failed_start(service)
        assert code == 8
        assert "Read-only file system" in lines[0]
        assert "kernel's log" in lines[1]


@pytest.mark.parametrize(
    ("text", "named"),
    [("threads = 1", "threads"), ("nonsense = 1", "nonsense"), ("{", "neither TOML nor JSON")],
)
def test_a_wrong_configuration(
    text: str, named: str, make_service: MakeService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("config")
    path = work / "c"
    path.write_text(text)
    done = cli("serve", "--config", path)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") <= 2


def test_nydusd_configuration(
    make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """nydusd's JSON serves unchanged."""
    work = tmp_path_factory.mktemp("json")
    service = make_service(FANOTIFY, start=False, work=work)
    document = {
        "device": {
            "backend": {"type": "localfs", "config": {"dir": str(built.blob.parent)}},
            "cache": {"type": "blobcache", "config": {"work_dir": str(service.state)}},
        },
        "mode": "direct",
        "digest_validate": False,
        "iostats_files": False,
        "enable_xattr": True,
    }
    path = work / "nydusd.json"
    path.write_text(json.dumps(document))
    service.spawn_with("--config", path, "--run-dir", service.run)
    wait_for("it answers", service.answers)
    shutil.copy(built.bootstrap, work / "image.meta")
    target = service.mount(work / "image.meta")
    compare(built.tree, target)
    assert service.status()["state_dir"] == str(service.state)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_cleanly(number: Signals, service: Service, built: Built) -> None:
    service.mount(built.bootstrap, prefetch=True)
    worker = service.worker
    service.keeper.send_signal(number)
    assert service.keeper.wait(60) == 0
    assert not mounted(service.work)
    assert not alive(worker)
    assert not service.socket.exists()
    assert not list((service.run / "mounts").iterdir())
    assert service.events("stopped")


def preparing(service: Service) -> int:
    """Process id of `prepare`, which is stopped: it has just been started."""

    def find() -> int | None:
        for pid in children(service.keeper.pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"nydus_erofs.fscache.prepare" in file.read():
                    os.kill(pid, signal.SIGSTOP)
                    return pid
        return None

    return wait_for("an image is prepared", find, pause=0.001) or 0


@pytest.mark.failure("SIGTERM while an image is being mounted")
def test_stopped_while_an_image_is_prepared(service: Service, built: Built) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.mount, built.bootstrap)
        pid = preparing(service)
        assert service.stop() == 0
        with pytest.raises((OSError, RefusedError)):
            asked.result(60)
    wait_for("it ends as well", lambda: not alive(pid))
    assert not mounted(service.work)
    assert not list((service.run / "mounts").iterdir())
    service.start()
    compare(built.tree, service.mount(built.bootstrap))


def test_prepare_is_killed(shared: Service, built: Built, own: tuple[Path, Path]) -> None:
    """For want of memory, perhaps: one line, and the next try works."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(shared.mount, own[0])
        os.kill(preparing(shared), signal.SIGKILL)
        with pytest.raises(RefusedError, match="the process died"):
            asked.result(60)
    assert not list((shared.state / "images").glob(".new*"))
    then_it_works(shared, built, own)


def test_stop_by_request(service: Service, built: Built) -> None:
    service.mount(built.bootstrap)
    assert service.request("stop")["busy"] == []
    assert service.keeper.wait(60) == 0
    assert not mounted(service.work)


def test_readiness_is_told_once_it_serves(
    make_service: MakeService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As systemd expects it (sd_notify)."""
    work = tmp_path_factory.mktemp("notify")
    service = make_service(FANOTIFY, start=False, work=work)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(60)
        notify.bind(str(work / "notify"))
        service.spawn(NOTIFY_SOCKET=str(work / "notify"))
        assert notify.recv(100) == b"READY=1"
        # It answers from then on; nobody has to try again.
        assert service.status()["mounts"] == []


def test_the_log_is_json_where_programs_read_it(service: Service, built: Built) -> None:
    service.umount(service.mount(built.bootstrap))
    assert service.stop() == 0
    records = [json.loads(line) for line in service.log_text().splitlines()]
    assert [record["event"] for record in records] == ["ready", "mounted", "unmounted", "stopped"]
    assert all({"level", "timestamp"} <= record.keys() for record in records)


def test_nothing_of_its_environment_reaches_the_worker(
    make_service: MakeService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PYTHONPATH could add modules to a process of root."""
    work = tmp_path_factory.mktemp("env")
    service = make_service(FANOTIFY, start=False, work=work)
    service.spawn(PYTHONPATH="/evil", SECRET="secret")
    wait_for("it answers", service.answers)
    with open(f"/proc/{service.worker}/environ", "rb") as file:
        environment = file.read()
    assert b"evil" not in environment
    assert b"secret" not in environment
