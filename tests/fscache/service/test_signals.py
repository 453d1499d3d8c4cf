"""Signals: SIGHUP reads the configuration again, some stop the service cleanly, no other one harms it."""

from __future__ import annotations

import os
import pty
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.mounts import mounted
from tests.kit.processes import alive
from tests.kit.reading import read
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


def hang_up(service: Service, event: str) -> dict[str, Any]:
    """SIGHUP; what it says of it."""
    before = len(service.events(event))
    service.keeper.send_signal(signal.SIGHUP)
    wait_for(event, lambda: len(service.events(event)) > before)
    (record,) = service.events(event)[before:]
    return record


@pytest.fixture
def alone(built: Built, tmp_path: Path) -> Path:
    """The bootstrap of the image, in a folder without its blob."""
    path = tmp_path / "image.meta"
    path.write_bytes(built.bootstrap.read_bytes())
    return path


# --- SIGHUP ---------------------------------------------------------------------------------------------


@pytest.mark.failure("SIGHUP")
def test_folders_of_blobs_that_are_new(service: Service, built: Built, alone: Path) -> None:
    """They count for the next mount; readers of what is mounted notice nothing."""
    other = service.mount(built.bootstrap)
    with pytest.raises(RefusedError, match=built.blob.name):
        service.mount(alone)
    service.configure(blob_dirs=[str(built.blob.parent)])
    assert hang_up(service, "configuration reloaded")["needs_restart"] == []
    assert "error" not in read(service.mount(alone) / "small/1")
    assert "error" not in read(other / "large/0")


def test_a_backend_that_is_new(service: Service, built: Built, alone: Path) -> None:
    service.backend = {"type": "localfs", "dir": str(built.blob.parent)}
    service.configure()
    assert hang_up(service, "configuration reloaded")["needs_restart"] == []
    assert "error" not in read(service.mount(alone) / "small/1")


def test_prefetch_turned_off(service: Service, built: Built) -> None:
    service.configure(prefetch=False)
    hang_up(service, "configuration reloaded")
    target = service.target()
    service.request("mount", image=str(built.bootstrap), target=str(target))
    assert service.status(target)["prefetch"] is False


def test_what_needs_a_restart_is_named(service: Service) -> None:
    """And told again the next time: it still does not count."""
    service.configure(patience=7, threads=3)
    for _ in range(2):
        assert sorted(hang_up(service, "configuration reloaded")["needs_restart"]) == ["patience", "threads"]


@pytest.mark.parametrize("text", ['blob_dirs = ["/', "blob_dirs = 7", "unknown = 1", "\xff", None])
@pytest.mark.failure("SIGHUP")
def test_a_file_that_makes_no_sense(text: str | None, service: Service, built: Built, alone: Path) -> None:
    """One line, and everything stays as it was."""
    service.configure(blob_dirs=[str(built.blob.parent)])
    hang_up(service, "configuration reloaded")
    if text is None:
        service.config_file.unlink()
    else:
        service.config_file.write_bytes(text.encode("latin-1"))
    assert hang_up(service, "configuration not reloaded")["error"]
    assert "error" not in read(service.mount(alone) / "small/1")


def test_without_a_file_there_is_nothing_to_read(
    make_service: MakeService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    service = make_service(FANOTIFY, start=False, work=tmp_path_factory.mktemp("plain"))
    service.spawn_with("--state-dir", service.state, "--run-dir", service.run)
    wait_for("it answers", service.answers)
    wait_for("it told", lambda: service.events("ready"))
    service.keeper.send_signal(signal.SIGHUP)
    wait_for("it tells", lambda: "nothing to reload" in service.log_text())
    assert service.answers()


# --- all others -----------------------------------------------------------------------------------------

_HARMLESS = sorted(
    set(signal.valid_signals())
    - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
    # Faults of the process itself: nothing that a person sends.
    - {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP,
       signal.SIGXFSZ}
)  # fmt: skip


@pytest.mark.failure("any other signal, a closed terminal, a log that nobody reads")
def test_no_other_signal_harms(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    for number in _HARMLESS:
        service.keeper.send_signal(number)
        assert service.answers(), signal.strsignal(number)
    assert "error" not in read(target / "large/0")
    assert service.status()["worker"]["restarts"] == 0
    assert service.stop() == 0


def ignored(pid: int | str) -> int:
    """Signals that a process ignores, one bit each."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("SigIgn")), 16)


def test_what_the_keeper_ignores_its_worker_does_not(service: Service) -> None:
    """Not more than a Python process does (this one is another), and what the C library has posix_spawn(3) ignore."""
    usual = ignored("self") | 1 << 31 | 1 << 32
    assert ignored(service.keeper.pid) & ~usual != 0
    assert ignored(service.worker) & ~usual == 0


def test_quit_stops_it_cleanly(service: Service, built: Built) -> None:
    """Ctrl-\\ in the terminal: as SIGTERM, which other tests send."""
    service.mount(built.bootstrap)
    service.keeper.send_signal(signal.SIGQUIT)
    assert service.keeper.wait(60) == 0
    assert not mounted(service.work)


@pytest.mark.failure("any other signal, a closed terminal, a log that nobody reads")
def test_its_terminal_is_closed(make_service: MakeService, built: Built) -> None:
    """It goes on, though nobody can read its log any more."""
    service = make_service(FANOTIFY, start=False)
    ours, theirs = pty.openpty()
    service.spawn_on_terminal(theirs)
    os.close(theirs)
    wait_for("it answers", service.answers)
    target = service.mount(built.bootstrap)
    os.close(ours)  # the kernel sends SIGHUP to the session's leader
    pid = service.status()["pid"]
    for _ in range(3):  # each is a line in the log
        service.umount(service.mount(built.bootstrap))
    assert "error" not in read(target / "large/0")
    assert service.status()["pid"] == pid
    assert service.stop() == 0
    assert not alive(pid)
    assert not mounted(service.work)
