"""Machines: what the engine's tests rely on when they run in a guest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.kernels import KERNELS, usual
from vm.prepare import prepare

HOME = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(900),  # the first to need a kernel prepares it
    pytest.mark.root,  # guests share the host's /
]
ANY = "6.12"
LIMIT = ("--timeout", "120")
BIND = """
import os
os.makedirs("/scratch/cache", exist_ok=True)
device = os.open("/dev/cachefiles", os.O_RDWR)
for command in (b"dir /scratch/cache", b"tag test", b"bind ondemand"):
    os.write(device, command)
"""
# Nobody answers OPEN, so the mount waits and cannot be killed.
HANGING_MOUNT = f"""{BIND}
import subprocess, time
subprocess.Popen(["mount", "-t", "erofs", "-o", "fsid=hang", "none", "/mnt"], stderr=subprocess.DEVNULL)
while not os.read(device, 4096):
    time.sleep(0.1)
open("/run/hanging", "w").close()
time.sleep(1000)
"""


def guest(kernel: str, *command: str, options: tuple[str, ...] = LIMIT) -> subprocess.CompletedProcess[str]:
    words = [HOME / "vm/run", *options, kernel, "--", *command]
    return subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=600)


def environment() -> dict[str, str]:
    return {**os.environ, "NYDUS_EROFS_PYTHON": sys.executable}


def processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A persistent disk, whose name also finds the machine that uses it."""
    path = tmp_path / "scratch.img"
    yield path
    assert not processes_with(str(path))


@pytest.mark.parametrize("kernel", usual())
def test_command_runs_on_the_kernel_with_the_project(kernel: str) -> None:
    script = "uname -r; echo \"$1\"; echo trouble >&2; python -c 'import nydus_erofs, boto3, cffi'; exit 7"
    done = guest(kernel, "sh", "-c", script, "sh", "an 'argument' $HOME")
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (7, ["trouble"])
    release, argument = done.stdout.splitlines()
    assert release.startswith(f"{KERNELS[kernel].series}.")
    assert argument == "an 'argument' $HOME"


@pytest.mark.timeout(2100)
def test_matrix_runs_every_battery_on_every_kernel(tmp_path: Path) -> None:
    """The contract of the engines, on the kernels of the support matrix."""
    words = [HOME / "vm/matrix", "--output", tmp_path / "table"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=2000)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table").read_text()
    assert all(prepare(kernel).release in table for kernel in usual())
    assert "**no**" not in table


@pytest.mark.parametrize(
    ("kernel", "options", "said", "fix"),
    [
        ("6.12", ("--stock",), "on-demand|no mounts by fsid|not supported|bind", "scripts/kernel-modules|ONDEMAND"),
        ("7.3", (), "knows no mounts by fsid", "the fanotify engine is the one to use"),
    ],
)
def test_doctor_says_what_cachefiles_lacks(kernel: str, options: tuple[str, ...], said: str, fix: str) -> None:
    """Debian's own 6.12 has it switched off; 7.3 has it no more, and no module would help."""
    script = "modprobe -q cachefiles; nydus-erofs doctor --json"
    done = guest(kernel, "sh", "-c", script, options=(*LIMIT, *options))
    checks = json.loads(done.stdout)["engines"]["cachefiles"]["checks"]
    assert not checks[-1]["ok"]
    assert re.search(said, checks[-1]["detail"]), checks
    assert re.search(fix, checks[-1]["fix"]), checks
    assert "modprobe" not in checks[-1]["fix"]


def test_a_service_on_a_kernel_without_the_options_ends_in_one_line() -> None:
    script = "echo 'engine = \"cachefiles\"' >/tmp/c; modprobe -q cachefiles; nydus-erofs serve --config /tmp/c"
    done = guest("6.12", "sh", "-c", script, options=(*LIMIT, "--stock"))
    assert done.returncode == 8, done
    (line, hint) = done.stderr.splitlines()[-2:]
    assert line.startswith("nydus-erofs: ")
    assert "ONDEMAND" in hint


def test_output_comes_as_it_is_written() -> None:
    script = "echo first; sleep 5; echo last"
    words = [HOME / "vm/run", *LIMIT, ANY, "--", "sh", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        first = time.monotonic()
        assert process.stdout.readline() == "last\n"
        assert time.monotonic() - first > 2
    assert process.returncode == 0


def test_large_output_is_complete_though_something_keeps_the_pipe() -> None:
    done = guest(ANY, "sh", "-c", "sleep 1000 & seq 200000; exit 5")
    assert done.returncode == 5
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_time_limit_kills_a_hanging_guest(disk: Path) -> None:
    started = time.monotonic()
    done = guest(ANY, "sh", "-c", "echo up; sleep 1000", options=("--timeout", "40", "--disk", str(disk)))
    assert done.returncode == 124
    assert "time limit of 40 s" in done.stderr
    assert time.monotonic() - started < 60


def test_unkillable_mount_does_not_keep_the_machine_up(disk: Path) -> None:
    script = f"python -c '{HANGING_MOUNT}' & until [ -e /run/hanging ]; do sleep 0.2; done; exit 9"
    done = guest(ANY, "sh", "-c", script, options=(*LIMIT, "--disk", str(disk)))
    assert done.returncode == 9, done.stderr


def test_panic_is_told_with_the_kernels_last_words() -> None:
    done = guest(ANY, "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == 125
    assert "sysrq_handle_crash" in done.stderr
    assert "ended without an exit code" in done.stderr


def test_disk_survives_a_hard_reset(disk: Path) -> None:
    options = (*LIMIT, "--disk", str(disk), "--disk-size", "256")
    script = "cd /scratch; echo kept >synced; sync synced; echo lost >cached; echo b >/proc/sysrq-trigger"
    assert guest(ANY, "sh", "-c", script, options=options).returncode == 125
    script = "cd /scratch; echo more >>synced; sync synced; sleep 1000"
    assert guest(ANY, "sh", "-c", script, options=(*options, "--reset-after", "10")).returncode == 137
    done = guest(
        ANY,
        "sh",
        "-c",
        "cat /scratch/synced; ls /scratch; grep /var/lib/nydus-erofs /proc/mounts",
        options=options,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept\nmore\n")
    assert "cached" not in done.stdout


def test_share_goes_both_ways_and_the_hosts_files_stay(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    script = f"cat /share/in; echo from the guest >/share/out; echo changed >{kept}; cat {kept}"
    done = guest(ANY, "sh", "-c", script, options=(*LIMIT, "--share", str(tmp_path)))
    assert done.stdout == "from the host\nchanged\n"
    assert (tmp_path / "out").read_text() == "from the guest\n"
    assert kept.read_text() == "as it was"


def test_machine_ends_with_its_runner(disk: Path) -> None:
    words = [HOME / "vm/run", *LIMIT, "--disk", str(disk), ANY, "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert processes_with(str(disk))
        process.kill()
    deadline = time.monotonic() + 10
    while processes_with(str(disk)) and time.monotonic() < deadline:
        time.sleep(0.1)


def test_kernel_modules_readies_a_stock_kernel_and_undoes_it() -> None:
    ready = prepare("6.1")
    built = ready.directory / "rebuilt/usr/lib/modules" / ready.release / "updates"
    tool = HOME / "scripts/kernel-modules"
    script = f"""
    probe() {{ modprobe cachefiles; python -c '{BIND}' 2>/dev/null && echo binds || echo refuses; }}
    probe; {tool} --from {built} || exit 1; probe; {tool} --undo || exit 1; probe
    """
    done = guest("6.1", "sh", "-c", script, options=(*LIMIT, "--stock"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in {"binds", "refuses"}] == ["refuses", "binds", "refuses"]
    folder = f"/lib/modules/{ready.release}/updates/nydus-erofs"
    assert f"installed {folder}/erofs.ko" in lines
    assert f"removed {folder} and ran depmod {ready.release}" in lines


def test_unknown_kernel_is_one_clear_line() -> None:
    done = guest("2.4", "true")
    assert (done.returncode, done.stderr) == (
        125,
        f"vm/run: no kernel '2.4' (there are: {', '.join(KERNELS)})\n",
    )
