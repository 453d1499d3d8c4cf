"""The fall-back: a small kernel of our own, built from Debian's source.

For what Debian's kernels cannot show (error injection in cachefiles, a debugging option, a series
whose modules no longer build apart). It takes minutes of two processors, so it is only made when
it is asked for by name.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .archive import Archive, newest
from .host import require
from .process import VmError, output, pipeline, say

_TOOLS = ("gcc", "make", "xz-utils", "binutils", "bc", "bison", "flex", "libelf-dev", "libssl-dev")


def build(archive: Archive, series: str, fragment: Path, new: Path, work: Path) -> tuple[str, str]:
    """Put vmlinuz and config into ``new``; returns the kernel's release and Debian's version of the source.

    ``fragment`` is laid over tinyconfig. Raises VmError when the kernel's configuration drops one of
    its lines (a dependency is missing) or the build fails.
    """
    require(_TOOLS)
    name = f"linux-source-{series}"
    source = newest(archive.versions(name))
    if source is None:
        raise VmError(f"the archive does not hold {name}")
    say(f"downloading and unpacking {source}")
    (deb,) = archive.download([source], work / "debs")
    pipeline(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "-xO", f"./usr/src/{name}.tar.xz"],
        ["nice", "tar", "-xJ", "-C", str(work)],
    )
    tree = work / name
    make = ["nice", "make", "-C", str(tree), f"-j{os.cpu_count() or 1}", "LOCALVERSION=-custom"]
    output([*make, "tinyconfig"])
    output(["scripts/kconfig/merge_config.sh", "-m", ".config", str(fragment)], cwd=tree)
    output([*make, "olddefconfig"])
    asked = re.findall(r"^CONFIG_\w+=.*$", fragment.read_text(), re.MULTILINE)
    configured = set((tree / ".config").read_text().splitlines())
    if dropped := [line for line in asked if line not in configured]:
        raise VmError(f"{series} does not take {', '.join(dropped)}", hint=f"correct {fragment.name}")
    say(f"building {source}: some minutes")
    output([*make, "bzImage"])
    shutil.copy(tree / "arch/x86/boot/bzImage", new / "vmlinuz")
    shutil.copy(tree / ".config", new / "config")
    return output([*make, "-s", "kernelrelease"]).strip(), source.version
