"""The kernels we test on. Adding one is one line."""

from __future__ import annotations

from dataclasses import dataclass

from .process import VmError


@dataclass(frozen=True, slots=True)
class Kernel:
    """Debian's newest cloud kernel of one series.

    ``engine`` is the engine that must work on it; batteries for the other one are skipped.
    ``rebuild`` says that erofs.ko and cachefiles.ko are built again with on-demand mode enabled
    (Debian leaves both options off); without it the kernel is booted as Debian ships it.
    ``config`` names a fragment in this folder: the whole kernel is built from Debian's source with
    it; such rows are left out unless they are asked for by name.
    """

    name: str
    series: str
    """Upstream version the release must start with: ``6.1`` takes 6.1.x, not 6.12.x."""
    suite: str
    """The suite of Debian's archive that carries the series today (see ``newest`` in archive.py)."""
    engine: str
    rebuild: bool = False
    config: str = ""


KERNELS: dict[str, Kernel] = {
    row.name: row
    for row in (
        Kernel("6.1", "6.1", "bookworm-security", "cachefiles", rebuild=True),
        Kernel("6.12", "6.12", "bookworm-security", "cachefiles", rebuild=True),
        Kernel("7.3", "7.3", "trixie-backports", "fanotify"),
        Kernel("custom-6.12", "6.12", "bookworm-security", "cachefiles", config="custom.config"),
    )
}


def kernel(name: str) -> Kernel:
    """The row ``name``; raises VmError that lists them all."""
    if name not in KERNELS:
        raise VmError(f"no kernel {name!r}", hint=f"there are: {', '.join(KERNELS)}")
    return KERNELS[name]


def usual() -> list[str]:
    """Names of the kernels that are meant when none is named."""
    return [name for name, row in KERNELS.items() if not row.config]
