"""What the host must have: finding its packages and installing those that are missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .process import VmError, output, say

_MACHINE = ("qemu-system-x86", "busybox-static", "e2fsprogs", "kmod")
_VIRTIOFSD = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"))


def virtiofsd() -> Path | None:
    """The daemon that shares folders with a guest: a package of its own since Debian 13, part of QEMU before."""
    return next((path for path in _VIRTIOFSD if path.exists()), None)


def require_machine_tools() -> None:
    """Everything needed to prepare and boot a guest; no kernel among it."""
    require(_MACHINE)
    if virtiofsd() is None:
        require(["virtiofsd"])


def require(packages: Iterable[str]) -> None:
    """Install the packages that are missing with apt-get, refreshing its lists once if that is needed.

    Raises VmError when that fails or we are not root.
    """
    missing = [package for package in packages if not _installed(package)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise VmError(f"missing on this machine: {' '.join(missing)}", hint="install that, or run this as root")
    say(f"installing {' '.join(missing)}")
    command = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        output([*command, *missing], env=env)
    except VmError:
        output(["apt-get", "-q", "update"])
        output([*command, *missing], env=env)


def _installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    try:
        return subprocess.run(query, check=False, capture_output=True, text=True).stdout == "installed"
    except FileNotFoundError:
        raise VmError("this machine has no dpkg", hint="Debian is needed, or one of its derivatives") from None
