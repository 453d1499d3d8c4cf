"""Boot a prepared kernel in QEMU and run one command in it.

The guest's root is the host's / over virtiofs, read-only below a tmpfs overlay: checkout, venv and
interpreter have the paths they have on the host. Two small shell scripts (init.sh, guest.sh) are
all the userspace of our own.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from . import disk
from .host import virtiofsd
from .initramfs import Cpio
from .ports import NO_STATUS, TIMED_OUT, Outcome, Ports
from .prepare import Prepared, cache_dir
from .process import VmError

_HERE = Path(__file__).resolve().parent
_ACCELERATORS = {"tcg": "tcg,thread=single", "mttcg": "tcg,thread=multi", "kvm": "kvm"}
"""By VM_ACCEL. KVM must be asked for: some hosts start a guest with it that never runs.

With a thread for each processor (QEMU 7.2) one boot in a hundred dies of "Oops: int3" while the
kernel patches its own code: emulation's fault, and no test could tell it from a real one.
"""
_CMDLINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable audit=0"
    " apparmor=0 random.trust_cpu=on"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """How to boot. Sizes are MiB, times seconds of wall clock.

    ``disk`` None is a scratch disk of ``disk_size``, thrown away afterwards; a file is kept, and made
    with that size if it does not exist. ``reset_after`` pulls the plug so long after the command
    started. ``stock`` leaves the rebuilt modules out. ``console`` keeps the kernel's log.
    """

    kernel: str
    prepared: Prepared
    memory: int = 1536
    cpus: int = 2
    timeout: float | None = 600
    disk: Path | None = None
    disk_size: int = 2048
    disk_fs: str = "ext4"
    share: Path | None = None
    reset_after: float | None = None
    stock: bool = False
    console: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def run(machine: Machine, command: Sequence[str] = ()) -> Outcome:
    """Boot, run ``command`` (none: a shell on this terminal), stop. Output is passed on as it comes.

    Raises VmError when the machine cannot be started at all.
    """
    if os.geteuid() != 0:
        raise VmError("a guest needs root on the host, whose / it shares", hint="use sudo")
    started = time.monotonic()
    with ExitStack() as stack:
        work = stack.enter_context(_work_dir())
        console = machine.console or work / "console.log"
        scratch, fs = disk.scratch(machine.disk, machine.disk_size, machine.disk_fs, work)
        first = (machine.prepared.directory / "initrd").read_bytes()
        (work / "initrd").write_bytes(first + _run_part(machine, command, fs))
        shares = {"host": Path("/"), **({"share": machine.share} if machine.share else {})}
        for tag, folder in shares.items():
            stack.callback(_stop, _start_virtiofsd(work / f"{tag}.sock", folder, work / f"{tag}.log"))
        ports = Ports(("status", "stdout", "stderr") if command else ("status",))
        words = [*_qemu(machine, work, scratch, shares, console), *ports.arguments()]
        if not command:  # the terminal is the guest's /dev/hvc0; Ctrl-A x ends QEMU
            words += ["-chardev", "stdio,id=tty,mux=on,signal=off", "-device", "virtconsole,chardev=tty"]
        with (work / "qemu.log").open("wb") as log:
            qemu = _spawn(words, log, inherit=ports.guest_ends(), terminal=not command)
        stack.callback(_stop, qemu)
        outcome = ports.pump(qemu, machine.timeout, machine.reset_after)
        if outcome.code in {TIMED_OUT, NO_STATUS}:
            _show(work / "qemu.log", console)
    outcome.seconds = time.monotonic() - started
    return outcome


def _qemu(machine: Machine, work: Path, scratch: Path, shares: Mapping[str, Path], console: Path) -> list[str]:
    wanted = os.environ.get("VM_ACCEL", "tcg")
    if wanted not in _ACCELERATORS:
        raise VmError(f"VM_ACCEL is {wanted!r}", hint=f"it may be {', '.join(_ACCELERATORS)}")
    accel = _ACCELERATORS[wanted]
    words = [
        "nice", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-accel", accel, "-cpu", "host" if accel == "kvm" else "max", "-smp", str(machine.cpus),
        "-m", f"{machine.memory}M", "-numa", "node,memdev=ram",
        "-object", f"memory-backend-memfd,id=ram,size={machine.memory}M,share=on",  # virtiofsd maps it
        "-kernel", str(machine.prepared.directory / "vmlinuz"), "-initrd", str(work / "initrd"),
        "-append", _CMDLINE, "-serial", f"file:{console}",
        # Flushes are ignored: what the guest has written is in the host's page cache, which outlives QEMU.
        "-drive", f"if=none,id=scratch,file={scratch},format=raw,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=scratch",
        "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
    ]  # fmt: skip
    for tag in shares:
        words += ["-chardev", f"socket,id={tag},path={work}/{tag}.sock"]
        words += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"]
    return words


def _run_part(machine: Machine, command: Sequence[str], fs: str) -> bytes:
    """What is particular to this run: a second initramfs behind the prepared one."""
    size = shutil.get_terminal_size()
    settings = {
        "KERNEL": machine.kernel,
        "PREPARED": str(machine.prepared.directory),
        "STOCK": "1" if machine.stock else "",
        "SHARE": "1" if machine.share else "",
        "DISK_FS": fs,
        "SHELL_MODE": "" if command else "1",
        "ROWS": str(size.lines),
        "COLUMNS": str(size.columns),
    }
    environment = {
        "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "LANG": "C.UTF-8",
        "TERM": "dumb" if command else os.environ.get("TERM", "dumb"),
        "TMPDIR": "/scratch/tmp",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NYDUS_EROFS_VM": machine.kernel,
        "NYDUS_EROFS_CACHE": str(cache_dir().parent),
        **machine.environment,
    }
    words = shlex.join([*(f"{name}={value}" for name, value in environment.items()), *(command or ["bash"])])
    script = f"cd {shlex.quote(os.getcwd())} 2>/dev/null || cd /\nexec /usr/bin/env -i {words}\n"
    archive = Cpio()
    archive.file("init", (_HERE / "init.sh").read_bytes(), 0o755)
    archive.file("guest.sh", (_HERE / "guest.sh").read_bytes())
    archive.file("run.env", "".join(f"{name}={shlex.quote(v)}\n" for name, v in settings.items()).encode())
    archive.file("command.sh", script.encode())
    return bytes(archive)


def _start_virtiofsd(socket: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    program = virtiofsd()
    if program is None:
        raise VmError("no virtiofsd on this machine", hint="install the package virtiofsd")
    # The guest's root does not change under it; what is shared does, in both directions.
    cache = "always" if folder == Path("/") else "auto"
    if program.parent.name == "qemu":  # the one in C that came with QEMU up to 7.2
        options = f"source={folder},cache={cache},sandbox=chroot"
        words = ["-o", options if cache == "always" else f"{options},xattr"]
    else:
        words = [f"--shared-dir={folder}", f"--cache={cache}", "--sandbox=chroot", "--no-announce-submounts"]
        words += [] if cache == "always" else ["--xattr"]
    with log.open("wb") as output:
        process = _spawn([str(program), f"--socket-path={socket}", *words], output)
    deadline = time.monotonic() + 10
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            _stop(process)
            raise VmError(f"virtiofsd does not start: {log.read_text(errors='replace').strip()[-300:]}")
        time.sleep(0.02)
    return process


def _spawn(
    words: Sequence[str], log: BinaryIO, inherit: Sequence[int] = (), *, terminal: bool = False
) -> subprocess.Popen[bytes]:
    """Start a program that ends when we do, however we end."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words],
        stdin=None if terminal else subprocess.DEVNULL,
        stdout=None if terminal else log,
        stderr=log,
        pass_fds=inherit,
        start_new_session=not terminal,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@contextmanager
def _work_dir() -> Iterator[Path]:
    """A folder for this run, locked while we live; those of runs that were killed are removed first."""
    runs = cache_dir() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for old in runs.iterdir():
        with suppress(OSError), _locked(old):
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=runs) as work, _locked(Path(work)):
        yield Path(work)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _show(*logs: Path) -> None:
    """The end of what QEMU and the guest's kernel said, for a run that went wrong."""
    for log in filter(Path.exists, logs):
        for line in log.read_text(errors="replace").splitlines()[-50:]:
            print(f"{log.stem}: {line}", file=sys.stderr)
