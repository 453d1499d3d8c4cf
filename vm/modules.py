"""Rebuild erofs.ko and cachefiles.ko with on-demand mode, for one of Debian's kernels.

Debian builds both modules but leaves CONFIG_CACHEFILES_ONDEMAND and CONFIG_EROFS_FS_ONDEMAND off.
Only code inside the two folders tests these options (6.1 and 6.12 sources), so no structure shared
with the rest of the kernel changes: the two modules can be built alone, from Debian's source of
exactly the same version, against Debian's headers. netfs and fscache stay as they are. Nothing is
installed: the packages are unpacked into a working folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .archive import Archive, Package, newest
from .host import require
from .process import VmError, output, pipeline, say

NAMES = ("cachefiles", "erofs")
OPTIONS = ("CONFIG_CACHEFILES_ONDEMAND", "CONFIG_EROFS_FS_ONDEMAND")
_GONE = "it left Linux with 7.2; newer kernels serve with the fanotify engine and need no rebuilt modules"


def upstream(version: str) -> str:
    """The series in a Debian version: ``6.12`` of ``6.12.117-1~deb12u1``."""
    match = re.match(r"\d+\.\d+", version)
    if not match:
        raise VmError(f"{version} is no version of a kernel")
    return match[0]


def refuse_gone(version: str) -> None:
    """Raise VmError for a series known to lack EROFS over fscache; ``build`` looks at the source itself."""
    series = upstream(version)
    if tuple(map(int, series.split("."))) >= (7, 2):
        raise VmError(f"Linux {series} has no EROFS over fscache", hint=_GONE)


def tools(compiler: str) -> list[str]:
    """Packages the build needs on the host."""
    return ["make", "xz-utils", "binutils", compiler]


def packages(archive: Archive, release: str, version: str) -> tuple[list[Package], str]:
    """What the build needs for kernel ``release`` of Debian version ``version``.

    Returns the packages to unpack, source last, and the package of the compiler the kernel was
    built with (``gcc-12``). Raises VmError when the archive no longer holds that very version or
    the series cannot have the cachefiles engine.
    """
    refuse_gone(version)
    headers = Package(f"linux-headers-{release}", version)
    source = Package(f"linux-source-{upstream(version)}", version)
    held = archive.versions(headers.name, source.name)
    if missing := [str(package) for package in (headers, source) if package not in held]:
        raise VmError(
            f"the archive does not hold {' and '.join(missing)}",
            hint="old kernels leave the archive: upgrade to the newest kernel of the series and try again",
        )
    needed, compiler = [headers], "gcc"
    for name in archive.depends(headers):
        if name.startswith(("linux-headers-", "linux-kbuild-")):
            candidates = archive.versions(name)
            exact = Package(name, version)
            found = exact if exact in candidates else newest(candidates)
            if found is None:
                raise VmError(f"the archive does not hold {name}, which {headers.name} needs")
            needed.append(found)
        elif match := re.search(r"gcc-\d+", name):
            compiler = match[0]
    return [*needed, source], compiler


def build(archive: Archive, release: str, version: str, work: Path) -> dict[str, Path]:
    """Build both modules for one kernel in ``work``; returns module name -> file.

    Installs make and the compiler on the host if they are missing. Raises VmError when the source
    has no EROFS over fscache or anything fails.
    """
    needed, compiler = packages(archive, release, version)
    require(tools(compiler))
    say(f"downloading {', '.join(map(str, needed))}")
    debs = archive.download(needed, work / "debs")
    root = work / "root"
    for deb in debs:
        if not deb.name.startswith("linux-source-"):
            output(["dpkg-deb", "-x", str(deb), str(root)])
    tree = _unpack_source(next(deb for deb in debs if deb.name.startswith("linux-source-")), work)
    headers = root / "usr/src" / f"linux-headers-{release}"
    _relocate(headers / "Makefile", root)
    say(f"building {' and '.join(f'{name}.ko' for name in NAMES)} for {release} with {compiler}")
    settings = [
        *(f"CONFIG_{name.upper()}=m" for name in ("cachefiles", "erofs_fs")),
        *(f"{option}=y" for option in OPTIONS),  # for the Makefiles; the next for the preprocessor
        "KCFLAGS=" + " ".join(f"-D{option}=1" for option in OPTIONS),
        "CONFIG_DEBUG_INFO=",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",  # BTF would want pahole
        f"CC={compiler}",
    ]
    jobs = f"-j{os.cpu_count() or 1}"
    output(["nice", "make", "-C", str(headers), f"M={tree}", jobs, *settings, "modules"])
    built = {name: tree / name / f"{name}.ko" for name in NAMES}
    output(["strip", "-g", *map(str, built.values())])
    return built


def _unpack_source(deb: Path, work: Path) -> Path:
    """The two folders of the kernel's source, with a Kbuild above them."""
    source, tree = work / "source", work / "modules"
    source.mkdir()
    name = deb.name.split("_")[0]
    pipeline(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "-xO", f"./usr/src/{name}.tar.xz"],
        ["nice", "tar", "-xJ", "-C", str(source), "--strip-components=2", *(f"{name}/fs/{m}" for m in NAMES)],
    )
    if not (source / "erofs/fscache.c").exists() or not (source / "cachefiles/ondemand.c").exists():
        raise VmError(f"{name} has no EROFS over fscache", hint=_GONE)
    source.rename(tree)
    (tree / "Kbuild").write_text("".join(f"obj-m += {name}/\n" for name in NAMES))
    return tree


def _relocate(makefile: Path, root: Path) -> None:
    """Debian's per-flavour Makefile includes the common one by absolute path; ours is unpacked."""
    makefile.write_text(makefile.read_text().replace("include /usr/src/", f"include {root}/usr/src/"))
