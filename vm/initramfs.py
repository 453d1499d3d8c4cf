"""The guest's first filesystem: busybox, the modules the way to the root needs, and ``init.sh``.

A cpio archive in the kernel's "newc" format (Documentation/driver-api/early-userspace/
buffer-format.rst). It is not compressed: unpacking costs more than reading it under emulation.
The kernel unpacks archives that follow one another, so ``prepare`` keeps the big one and each run
appends a small one of its own.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable
from pathlib import Path

from .process import VmError, output

BUSYBOX = Path("/bin/busybox")
BOOT_MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtiofs",
    "overlay",
)
"""What the way to the root filesystem and the command needs; built in or absent ones are skipped."""

_ALIGN = 4


class Cpio:
    """Collects entries; ``bytes()`` ends the archive."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def __bytes__(self) -> bytes:
        end = Cpio()
        end._entry("TRAILER!!!", 0)
        return bytes(self._data + end._data)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._count += 1
        path = name.encode() + b"\0"
        # magic, then 13 fields of 8 hex digits: ino mode uid gid nlink mtime size dev(2) rdev(2) namesize check
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        for part in (b"070701" + b"".join(b"%08x" % field for field in fields) + path, data):
            self._data += part
            self._data += bytes(-len(self._data) % _ALIGN)


def base(modules: Path, release: str, extra: Iterable[str] = ()) -> bytes:
    """The part that does not change between runs.

    ``modules`` is a folder that has lib/modules/RELEASE with depmod's indexes in it. ``/boot.order``
    lists the modules of the way to the root in the order to insert them, ``/extra.order`` those of
    ``extra`` and what they need beyond that.
    """
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "lower", "rw", "root", "m"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    seen: set[Path] = set()
    for order, wanted in (("boot.order", BOOT_MODULES), ("extra.order", tuple(extra))):
        names = []
        for path in _load_order(modules, release, wanted):
            if path not in seen:
                seen.add(path)
                name = path.name.split(".ko")[0] + ".ko"
                archive.file(f"m/{name}", _module_bytes(path))
                names.append(name)
        archive.file(order, "".join(f"{name}\n" for name in names).encode())
    return bytes(archive)


def _load_order(modules: Path, release: str, wanted: Iterable[str]) -> list[Path]:
    """Files to insert, dependencies first, each once."""
    files: dict[Path, None] = {}
    for name in wanted:
        command = ["/sbin/modprobe", "-d", str(modules), "-S", release, "--show-depends", name]
        try:
            lines = output(command).splitlines()
        except VmError:
            continue  # built in without an entry in modules.builtin, or not configured
        files.update((Path(line.split()[1]), None) for line in lines if line.startswith("insmod "))
    return list(files)


def _module_bytes(path: Path) -> bytes:
    """A module as busybox can insert it: Debian compresses modules with xz since 6.6."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
