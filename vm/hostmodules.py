"""``scripts/kernel-modules``: make the running kernel of a Debian machine ready for the cachefiles engine.

Rebuilds erofs.ko and cachefiles.ko with on-demand mode (``modules``), puts them under updates/ of
the kernel's module folder, which depmod prefers to the ones Debian ships, and loads them. Debian's
own files stay where they are, so undoing is removing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import modules
from .archive import Archive
from .process import VmError, output

IN_USE = 3
"""Exit code: all is in place, but a module in use could not be exchanged yet."""

_OURS = "updates/nydus-erofs"
_MODULES = Path("/lib/modules")
_AT_BOOT = Path("/etc/modules-load.d/nydus-erofs.conf")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/kernel-modules",
        description="Rebuild erofs.ko and cachefiles.ko with on-demand mode for the running Debian kernel.",
        epilog="Exit code: 0 done, 1 refused or failed (nothing changed), 3 done but a module is in use. "
        "Run it again after a kernel upgrade.",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    parser.add_argument("--undo", action="store_true", help="go back to Debian's own modules, for every kernel")
    parser.add_argument("--from", type=Path, metavar="DIR", dest="source", help="take the two modules built before")
    parser.add_argument("--build", type=Path, metavar="DIR", help="only build them, into DIR (for --from elsewhere)")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (VmError, OSError) as error:
        print(f"kernel-modules: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if os.geteuid() != 0 and not options.dry_run:
        raise VmError("this needs root", hint="use sudo, or --dry-run to see what it would do")
    if options.undo:
        return undo(dry=options.dry_run)
    release, version = running_kernel()
    print(f"kernel {release}, Debian's version {version}", flush=True)
    if all(f"{option}=y" in _configuration(release) for option in modules.OPTIONS):
        print("it has on-demand mode already: nothing to do")
        return 0
    if options.dry_run:
        return explain(release, version, options.source)
    with tempfile.TemporaryDirectory(prefix="nydus-erofs-modules.", dir="/var/tmp") as work:
        built = _from(options.source, release) if options.source else _build(release, version, Path(work))
        if options.build:
            options.build.mkdir(parents=True, exist_ok=True)
            for path in built.values():
                print(f"built {shutil.copy(path, options.build)}")
            return 0
        install(release, built)
    return load()


def running_kernel() -> tuple[str, str]:
    """Release and Debian's version of the running kernel; raises VmError if it cannot be made ready."""
    release = os.uname().release
    match = re.search(r"\bDebian (\S+)", os.uname().version)
    if not match:
        raise VmError(
            f"{release} is not one of Debian's kernels",
            hint=f"enable {' and '.join(modules.OPTIONS)} in its own configuration and build it again",
        )
    modules.refuse_gone(match[1])
    builtin = _read(_MODULES / release / "modules.builtin")
    if fixed := [name for name in modules.NAMES if f"/{name}.ko" in builtin]:
        raise VmError(f"{' and '.join(fixed)} are built into {release}", hint="only modules can be exchanged")
    lockdown = _read(Path("/sys/kernel/security/lockdown"))
    if "CONFIG_MODULE_SIG_FORCE=y" in _configuration(release) or (lockdown and "[none]" not in lockdown):
        raise VmError(
            f"{release} takes signed modules only (lockdown: {lockdown.strip() or 'off'})",
            hint="switch Secure Boot off, or sign the two modules with a key of your own: --build DIR",
        )
    return release, match[1]


def explain(release: str, version: str, source: Path | None) -> int:
    """Tell what would be done."""
    if source:
        _from(source, release)
        print(f"would take the modules in {source}")
    else:
        needed, compiler = modules.packages(Archive(), release, version)
        print(f"would download and unpack privately: {', '.join(map(str, needed))}")
        print(f"would install, if missing: {', '.join(modules.tools(compiler))}")
    for name in modules.NAMES:
        print(f"would write {_MODULES / release / _OURS / name}.ko")
    print(f"would write {_AT_BOOT}, run depmod and load {' and '.join(modules.NAMES)}")
    return 0


def install(release: str, built: dict[str, Path]) -> None:
    """Put the modules where depmod prefers them; takes them away again if it does not."""
    folder = _MODULES / release / _OURS
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for path in built.values():
            shutil.copy(path, folder / f"{path.name}.new")
            (folder / f"{path.name}.new").rename(folder / path.name)
        output(["depmod", release])
        _check_preferred(release, folder)
    except (VmError, OSError):
        _remove(folder)
        raise
    for name in modules.NAMES:
        print(f"installed {folder}/{name}.ko")
    _AT_BOOT.parent.mkdir(exist_ok=True)
    _AT_BOOT.write_text("# nydus-erofs: the cachefiles engine opens /dev/cachefiles\ncachefiles\n")
    print(f"wrote {_AT_BOOT}; ran depmod {release}")


def _check_preferred(release: str, folder: Path) -> None:
    for name in modules.NAMES:
        found = Path(output(["modinfo", "-k", release, "-F", "filename", name]).strip())
        if not found.samefile(folder / f"{name}.ko"):
            raise VmError(f"depmod prefers {found}", hint="see /etc/depmod.d: 'updates' must come first")


def load() -> int:
    """Exchange the modules that are loaded, load ours."""
    code = 0
    for name in reversed(modules.NAMES):
        if _loaded(name) == "ours":
            print(f"{name} is loaded in its rebuilt form already")
        elif _loaded(name) and not _try(["modprobe", "-r", name]):
            print(f"{name} is in use: reboot, or unmount what uses it, then: modprobe -r {name}; modprobe {name}")
            code = IN_USE
    for name in modules.NAMES:
        if not _loaded(name):
            output(["modprobe", name])
            print(f"loaded {name} (the kernel counts itself tainted: built out of tree, not signed)")
    print("undo all this with: scripts/kernel-modules --undo")
    return code


def undo(*, dry: bool) -> int:
    """Remove what any run of this put anywhere, and unload it."""
    removed, ran, unloaded = ("would remove", "run", "would unload") if dry else ("removed", "ran", "unloaded")
    folders = sorted(_MODULES.glob(f"*/{_OURS}"))
    for folder in folders:
        if not dry:
            _remove(folder)
        print(f"{removed} {folder} and {ran} depmod {folder.parent.parent.name}")
    if _AT_BOOT.exists():
        if not dry:
            _AT_BOOT.unlink()
        print(f"{removed} {_AT_BOOT}")
    if not folders:
        print("no rebuilt modules are installed")
    code = 0
    for name in reversed(modules.NAMES):
        if _loaded(name) == "ours":
            if not dry and not _try(["modprobe", "-r", name]):
                print(f"{name} is in use: its rebuilt form stays loaded until a reboot, or modprobe -r {name}")
                code = IN_USE
            else:
                print(f"{unloaded} {name}")
    if folders:
        print("packages that were installed for the build (compiler, make) stay; remove them with apt if unwanted")
    return code


def _build(release: str, version: str, work: Path) -> dict[str, Path]:
    try:
        modules.packages(Archive(), release, version)
    except VmError:  # the lists may be old, or there may be none yet
        output(["apt-get", "-q", "update"])
    return modules.build(Archive(), release, version, work)


def _configuration(release: str) -> list[str]:
    return _read(Path(f"/boot/config-{release}")).splitlines()


def _from(folder: Path, release: str) -> dict[str, Path]:
    """Modules built before; raises VmError unless they are for this very kernel."""
    found = {name: folder / f"{name}.ko" for name in modules.NAMES}
    for path in found.values():
        made_for = output(["modinfo", "-F", "vermagic", str(path)]).split(" ")[0]
        if made_for != release:
            raise VmError(f"{path} was built for {made_for}, not for {release}")
    return found


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    output(["depmod", folder.parent.parent.name])


def _loaded(name: str) -> str:
    """ "" not loaded, "stock" Debian's, "ours" built out of tree."""
    if not Path(f"/sys/module/{name}").exists():
        return ""
    return "ours" if "O" in _read(Path(f"/sys/module/{name}/taint")) else "stock"


def _try(command: Sequence[str]) -> bool:
    try:
        output(command)
    except VmError:
        return False
    return True


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
