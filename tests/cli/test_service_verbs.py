"""The service's verbs as people type them: serve, mount, status, umount."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.command import CLI, AsNobody, cli
from tests.kit.engines import FANOTIFY
from tests.kit.mounts import mounted, unmount_all
from tests.kit.processes import alive
from tests.kit.reading import compare_expected, read
from tests.kit.service import MakeService, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def place(make_service: MakeService) -> Service:
    """Folders for a service that nobody has started yet."""
    return make_service(start=False)


@pytest.fixture
def started(place: Service) -> Iterator[Service]:
    """Whatever service a test makes ``mount`` start ends with the test."""
    yield place
    pid = None
    if place.socket.exists():
        try:
            pid = place.status()["pid"]
        except OSError:
            return
    if pid:
        unmount_all(place.work / "mnt")
        try:
            assert place.request("stop")["busy"] == []
            wait_for("the service ends", lambda: not alive(pid))
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def image(nydus_images: Path) -> tuple[Path, Path]:
    """Arguments of mount: an image."""
    return nydus_images / "plain" / "boot", nydus_images / "plain" / "blobs"


def mount(
    place: Service, bootstrap: Path, blobs: Path | None, target: Path, *more: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    arguments = ["mount", bootstrap, target, "--run-dir", place.run, "--state-dir", place.state]
    if blobs is not None:
        arguments += ["--blob-dir", blobs]
    return cli(*arguments, *more, **options)


def says(done: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """An error of one line, and a hint at most."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("nydus-erofs: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), lines
    for text in texts:
        assert text in done.stderr, done.stderr


def test_a_day(started: Service, image: tuple[Path, Path], nydus_images: Path) -> None:
    """mount starts a service and says so; status, a second mount, umount."""
    first, second = started.target(), started.target()
    done = mount(started, *image, first, "--no-prefetch")
    assert done.returncode == 0, done.stderr
    assert "started the service (pid " in done.stderr
    assert str(started.run / "serve.log") in done.stderr
    compare_expected(nydus_images / "expected.json", first)

    done = mount(started, *image, second)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    compare_expected(nydus_images / "expected.json", second)

    text = cli("status", "--run-dir", started.run, check=True).stdout
    assert "2 mounted" in text
    assert f"{first}  {image[0]}" in text
    assert "100 %" in text
    status = json.loads(cli("status", "--run-dir", started.run, "--json", check=True).stdout)
    assert [m["target"] for m in status["mounts"]] == [str(first), str(second)]
    assert [m["prefetch"] for m in status["mounts"]] == [False, True]

    cli("umount", first, "--run-dir", started.run, check=True)
    assert mounted(first) == []
    compare_expected(nydus_images / "expected.json", second)
    cli("umount", second, "--run-dir", started.run, check=True)
    assert "0 mounted" in cli("status", "--run-dir", started.run, check=True).stdout


def test_a_socket_that_nobody_listens_on(started: Service, image: tuple[Path, Path]) -> None:
    """The service before was killed: a new one is started."""
    target = started.target()
    assert mount(started, *image, target).returncode == 0
    os.kill(started.status()["pid"], signal.SIGKILL)
    unmount_all(target)
    done = mount(started, *image, target)
    assert done.returncode == 0, done.stderr
    assert "started the service" in done.stderr
    read(target / "links" / "h1")


def test_two_mounts_at_once_without_a_service(started: Service, image: tuple[Path, Path]) -> None:
    """As at boot: one service is started, and both get their mount."""
    targets = [started.target() for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda target: mount(started, *image, target), targets))
    assert [(d.returncode, d.stderr) for d in done if d.returncode] == []
    assert len(started.status()["mounts"]) == 2


def test_the_service_does_not_start(place: Service, image: tuple[Path, Path]) -> None:
    """mount says why: the service's own reason and hint."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place.work], check=True, timeout=20)
    try:
        target = place.target()
        done = mount(place, *image, target)
        says(done, 9, "the service did not start", "Operation not supported", "doctor")
        assert len(mounted(place.work)) == 1
    finally:
        unmount_all(place.work)


def test_the_state_folder_is_in_use(service: Service, place: Service, image: tuple[Path, Path]) -> None:
    """By a service with another run folder: mount says so."""
    place.state = service.state
    says(mount(place, *image, place.target()), 9, "another service uses the state folder", "--state-dir")
    assert not mounted(place.work)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("s"), FANOTIFY).start()
    try:
        yield service
        assert service.stop() == 0
        assert "Traceback" not in service.log_text()
    finally:
        service.close()


def test_exit_codes(service: Service, image: tuple[Path, Path], tmp_path: Path) -> None:
    bootstrap, blobs = image
    shutil.copy(bootstrap, tmp_path / "image.meta")
    file = tmp_path / "file"
    file.write_text("not an image\n" * 1000)
    target = service.target()
    says(mount(service, bootstrap, blobs, tmp_path / "none"), 9, "none does not exist", "mkdir")
    says(mount(service, bootstrap, blobs, file), 9, "not a directory")
    says(mount(service, tmp_path / "no.meta", blobs, target), 3, "no.meta: No such file")
    says(mount(service, file, blobs, target), 3, "not a RAFS v6 bootstrap")
    says(mount(service, tmp_path / "image.meta", None, target), 6, "blob ", "--blob-dir")
    assert mount(service, bootstrap, blobs, target).returncode == 0
    says(mount(service, bootstrap, blobs, target), 10, "already")
    umount = ["umount", target, "--run-dir", service.run]
    holder = service.reader("hold", target / "links" / "h1", service.work / "ready")
    wait_for("it is open", (service.work / "ready").exists)
    says(cli(*umount), 10, f"{target} is in use", "hint")
    holder.kill()
    holder.communicate(timeout=20)
    assert cli(*umount).returncode == 0
    says(cli(*umount), 9, f"nothing of this service is mounted on {target}")


def test_without_a_service(place: Service) -> None:
    for verb in (["status"], ["status", "--json"], ["umount", "/mnt"]):
        says(cli(*verb, "--run-dir", place.run), 9, "no service", "nydus-erofs serve")


@pytest.mark.parametrize("verb", ["serve", "mount", "umount", "status", "doctor"])
def test_help(verb: str) -> None:
    done = cli(verb, "--help", check=True)
    assert len(done.stdout.splitlines()) > 3


# --- paths --------------------------------------------------------------------------------------------------


def test_relative_paths_and_symlinks(service: Service, image: tuple[Path, Path], tmp_path: Path) -> None:
    """The service runs elsewhere; paths mean what they mean to the caller."""
    target = service.target()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "blobs").symlink_to(image[1])
    (tmp_path / "image").symlink_to(image[0])
    run = os.path.relpath(service.run, tmp_path)
    arguments = ["mount", "./image", "link/", "--blob-dir", "blobs", "--run-dir", run]
    cli(*arguments, cwd=tmp_path, check=True)
    assert service.status(target)["target"] == str(target)
    assert "error" not in read(target / "links" / "h1")
    cli("umount", "link/.", "--run-dir", run, cwd=tmp_path, check=True)
    assert not mounted(target)


NAMES = ["with blank", "new\nline", "tab\t", "back\\slash", "octal\\040", "hash#", "'quo\"te", "ünï", "-dash"]


@pytest.mark.parametrize("name", [*NAMES, "a" * 200])
def test_names_of_every_kind(name: str, service: Service, image: tuple[Path, Path]) -> None:
    """Blanks and worse are escaped in mountinfo; the mount is known all the same."""
    target = service.work / name
    target.mkdir()
    folder = service.work / f"{name} image"
    folder.mkdir(exist_ok=True)
    shutil.copy(image[0], folder / "boot")
    done = cli("mount", folder / "boot", target, "--blob-dir", image[1], "--run-dir", service.run)
    assert done.returncode == 0, done.stderr
    assert "error" not in read(target / "links" / "h1")
    assert service.status(target)["detached"] is False
    done = cli("umount", target, "--run-dir", service.run)
    assert done.returncode == 0, done.stderr
    assert service.status()["mounts"] == []


def test_a_name_that_is_no_utf8(service: Service, image: tuple[Path, Path]) -> None:
    """Mounted, or refused in one line; never half."""
    target = os.fsencode(service.work) + b"/\xff\xfe"
    os.mkdir(target)
    words: list[str | bytes | Path] = ["mount", image[0], target, "--blob-dir", image[1], "--run-dir", service.run]
    command = [os.fsencode(word) for word in (*CLI, *words)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr
    mounted = service.status()["mounts"]
    if done.returncode:
        assert done.stderr.startswith(b"nydus-erofs: ")
        assert len(done.stderr.splitlines()) <= 2
        assert mounted == []
    else:
        cli("umount", os.fsdecode(target), "--run-dir", service.run, check=True)


# --- not root -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["serve"], ["mount", "x", "/mnt"], ["umount", "/mnt"]], ids=" ".join)
def test_needs_root(arguments: list[str], service: Service, as_nobody: AsNobody) -> None:
    says(as_nobody(*arguments, "--run-dir", service.run), 9, "needs root", "sudo")


def test_status_of_somebody_elses_service(service: Service, as_nobody: AsNobody) -> None:
    """Its folder is root's."""
    says(as_nobody("status", "--run-dir", service.run), 9, "permission denied", "root")
    assert stat.S_IMODE(service.run.stat().st_mode) == 0o700


# --- what serve and status print ----------------------------------------------------------------------------


def test_status_tells_of_failures(service: Service, nydus_images: Path, tmp_path: Path) -> None:
    shutil.copytree(nydus_images / "lz4" / "blobs", tmp_path / "blobs")
    (blob,) = (tmp_path / "blobs").iterdir()
    target = service.mount(nydus_images / "lz4" / "boot", tmp_path / "blobs")
    os.truncate(blob, 10)
    result = read(target / "sizes" / "f1M")
    text = cli("status", "--run-dir", service.run, check=True).stdout
    assert result == {"error": "EIO"}
    assert "failures" in text
    assert "reads got EIO" in text
    assert blob.name in text
    service.umount(target)


def test_serve_takes_folders_from_the_command_line(place: Service) -> None:
    """They go before the configuration's."""
    other = place.work / "other"
    place.spawn("--state-dir", other)
    wait_for("it answers", place.answers)
    assert place.status()["state_dir"] == str(other)
    assert place.stop() == 0


def test_log_level(place: Service) -> None:
    place.spawn("--log-level", "error")
    wait_for("it answers", place.answers)
    assert place.stop() == 0
    assert place.log_text() == ""


@pytest.mark.parametrize("verb", [("status",), ("cache", "verify", "--all")])
@pytest.mark.parametrize("answer", [b'{"ok":true}\n', b'{"ok":true,"worker":7,"running":false,"mounts":[{}]}\n'])
def test_a_service_of_another_version(verb: tuple[str, ...], answer: bytes, tmp_path: Path) -> None:
    """One line, whatever its answer lacks."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()
        process = subprocess.Popen(
            [*CLI, *verb, "--run-dir", str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        server.settimeout(60)
        with server.accept()[0] as client:
            assert client.recv(1 << 16)
            client.sendall(answer)
        server.close()
        out, error = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 9), error
    assert error.splitlines()[0] == "nydus-erofs: the service's answer is not understood"
