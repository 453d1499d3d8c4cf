"""Who uses a folder: found by each way of using it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nydus_erofs.fscache.kernel.holders import holders
from tests.kit.command import NAME, PYTHON

Hold = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    (path / "file").write_bytes(bytes(4096))
    return path


@pytest.fixture
def hold() -> Iterator[Hold]:
    """`hold(code, *arguments)`: a process that is past this code."""
    started: list[subprocess.Popen[bytes]] = []

    def hold(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        then = "print(flush=True); import time; time.sleep(600)"
        command = [*PYTHON, "-c", f"{code}\n{then}", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=cwd)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def test_nobody(folder: Path) -> None:
    assert holders(str(folder)) == []


def test_an_open_file(folder: Path, hold: Hold) -> None:
    process = hold("import sys; file = open(sys.argv[1])", folder / "file")
    assert holders(str(folder)) == [f"{NAME} (pid {process.pid}) {folder}/file"]


def test_a_working_directory(folder: Path, hold: Hold) -> None:
    process = hold("", cwd=folder / "sub")
    assert holders(str(folder)) == [f"{NAME} (pid {process.pid}) {folder}/sub"]


def test_the_folder_itself(folder: Path, hold: Hold) -> None:
    process = hold("", cwd=folder)
    assert holders(str(folder)) == [f"{NAME} (pid {process.pid}) {folder}"]


def test_a_mapped_file(folder: Path, hold: Hold) -> None:
    code = "import mmap, sys\nwith open(sys.argv[1]) as file: view = mmap.mmap(file.fileno(), 0, prot=1)"
    process = hold(code, folder / "file")
    assert holders(str(folder)) == [f"{NAME} (pid {process.pid}) {folder}/file"]


def test_a_running_program(folder: Path) -> None:
    shutil.copy("/bin/sleep", folder / "program")
    process = subprocess.Popen([folder / "program", "600"])
    try:
        assert holders(str(folder)) == [f"program (pid {process.pid}) {folder}/program"]
    finally:
        process.kill()
        process.wait(20)


@pytest.mark.root
def test_mounts_come_first(folder: Path, hold: Hold) -> None:
    process = hold("", cwd=folder)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "sub"], check=True, timeout=20)
    try:
        assert holders(str(folder)) == [f"a mount on {folder}/sub", f"{NAME} (pid {process.pid}) {folder}"]
    finally:
        subprocess.run(["umount", folder / "sub"], check=True, timeout=20)


def test_who_is_beside_it_is_not_named(folder: Path, hold: Hold) -> None:
    beside = folder.with_name("folder2")
    beside.mkdir()
    hold("", cwd=beside)
    assert holders(str(folder)) == []


def test_a_few_are_enough(folder: Path, hold: Hold) -> None:
    for _ in range(6):
        hold("", cwd=folder)
    found = holders(str(folder))
    assert len(found) == 5
    assert found[-1] == "and others"


def test_names_that_are_no_text(folder: Path, hold: Hold) -> None:
    """They come as they are; who sends them on to a person sees to it (``Fault``)."""
    odd = os.fsencode(folder) + b"/\xff\n"
    os.mkdir(odd)
    process = hold("open('/proc/self/comm', 'w').write('a(b) c')", cwd=Path(os.fsdecode(odd)))
    assert holders(str(folder)) == [f"a(b) c (pid {process.pid}) {folder}/\udcff\n"]
