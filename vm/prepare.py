"""Make kernels bootable: download, rebuild modules where the table says so, cache the result.

One folder per kernel under ``cache_dir()``, put there by a rename when it is whole:

    vmlinuz  config  initrd     the kernel, its configuration, ``initramfs.base``
    stock/usr/lib/modules/      its modules as Debian ships them, with depmod's indexes
    rebuilt/usr/lib/modules/    the rebuilt modules under updates/, and indexes that prefer them
    kernel.json                 release, version, recipe
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import custom, initramfs, modules
from .archive import Archive, Package, newest
from .host import require_machine_tools
from .kernels import Kernel, kernel, usual
from .process import VmError, output, say

RECIPE = 1
"""Raise it when what is prepared changes: folders of another recipe are made anew."""
_HERE = Path(__file__).resolve().parent
_FLAVOUR = "-cloud-amd64"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel ready to boot. ``version`` is Debian's, ``release`` what ``uname -r`` says."""

    directory: Path
    release: str
    version: str


def cache_dir() -> Path:
    """Where prepared kernels live; NYDUS_EROFS_CACHE and XDG_CACHE_HOME move it."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("NYDUS_EROFS_CACHE") or Path(user) / "nydus-erofs").resolve() / "vm"


def prepare(name: str, *, refresh: bool = False) -> Prepared:
    """The kernel ``name`` of the table, prepared now unless it was before."""
    wanted = kernel(name)
    require_machine_tools()
    directory = cache_dir() / name
    if not refresh and (ready := _load(directory)):
        return ready
    with _lock(cache_dir() / f".{name}.lock"):
        if not refresh and (ready := _load(directory)):  # made while we waited
            return ready
        for stale in cache_dir().glob(f".{name}.*/"):  # of a run that was killed: only the lock's holder makes them
            shutil.rmtree(stale)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=cache_dir()) as work:
            new = Path(work) / "new"
            new.mkdir()
            _make(wanted, new, Path(work))
            if directory.exists():
                directory.rename(Path(work) / "old")
            new.rename(directory)
        ready = _load(directory)
        if ready is None:
            raise VmError(f"{directory} is not as it was just made", hint="remove it and try again")
        say(f"{name}: {ready.release} ({ready.version}) prepared in {time.monotonic() - started:.0f} s")
        return ready


def _make(of: Kernel, new: Path, work: Path) -> None:
    """Fill the empty folder ``new``; ``work`` is thrown away afterwards."""
    archive = Archive.of_suites(work / "apt", [of.suite])
    modules_of = new / "stock"
    if of.config:
        release, version = custom.build(archive, of.series, _HERE / of.config, new, work)
        (_modules_dir(new / "stock") / release).mkdir()
    else:
        image = _choose(archive, of)
        release, version = image.name.removeprefix("linux-image-"), image.version
        _unpack(archive, image, release, new, work)
    output(["depmod", "-b", str(new / "stock"), release])
    if of.rebuild:
        _rebuild(archive, release, version, new, work)
        modules_of = work / "merged"
    extra = modules.NAMES if of.rebuild else ()
    (new / "initrd").write_bytes(initramfs.base(modules_of, release, extra))
    facts = {"recipe": RECIPE, "release": release, "version": version}
    (new / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n")


def _unpack(archive: Archive, image: Package, release: str, new: Path, work: Path) -> None:
    """vmlinuz, config and stock modules out of Debian's packages."""
    # Since 7.3 the image package is empty; the parts it depends on carry the release in their names.
    parts = [Package(name, image.version) for name in archive.depends(image) if name.endswith(f"-{release}")]
    say(f"downloading {', '.join(map(str, (image, *parts)))}")
    for deb in archive.download([image, *parts], work / "debs"):
        output(["dpkg-deb", "-x", str(deb), str(work / "image")])
    stock = _modules_dir(new / "stock") / release
    shutil.move(next((work / "image").glob(f"**/lib/modules/{release}")), stock)
    for name in ("vmlinuz", "config"):
        inside = stock / name
        shutil.move(inside if inside.exists() else work / "image/boot" / f"{name}-{release}", new / name)


def _choose(archive: Archive, of: Kernel) -> Package:
    """The newest image of the series; with ``rebuild``, the newest whose very source is there too."""
    names = [name for name in archive.names(f"linux-image-{of.series}.") if name.endswith(_FLAVOUR)]
    images = archive.versions(*names)
    if of.rebuild:
        sources = {package.version for package in archive.versions(f"linux-source-{of.series}")}
        images = [image for image in images if image.version in sources]
    image = newest(images)
    if image is None:
        raise VmError(
            f"no cloud kernel of the series {of.series} in {of.suite}",
            hint="correct its line in vm/kernels.py",
        )
    return image


def _rebuild(archive: Archive, release: str, version: str, new: Path, work: Path) -> None:
    """Put the rebuilt modules and indexes that prefer them into ``new``/rebuilt."""
    built = modules.build(archive, release, version, work / "build")
    stock = _modules_dir(new / "stock") / release
    merged = _modules_dir(work / "merged") / release
    shutil.copytree(stock, merged, symlinks=True)
    (merged / "updates").mkdir()
    for path in built.values():
        shutil.copy(path, merged / "updates")
    output(["depmod", "-b", str(work / "merged"), release])
    rebuilt = _modules_dir(new / "rebuilt") / release
    rebuilt.mkdir()
    shutil.copytree(merged / "updates", rebuilt / "updates")
    for index in merged.glob("modules.*"):
        shutil.copy(index, rebuilt)


def _modules_dir(base: Path) -> Path:
    """The folder of all releases below ``base``, laid out for any kmod: some look in lib, some in usr/lib."""
    path = base / "usr/lib/modules"
    path.mkdir(parents=True, exist_ok=True)
    if not (base / "lib").is_symlink():
        (base / "lib").symlink_to("usr/lib")
    return path


def _load(directory: Path) -> Prepared | None:
    try:
        facts = json.loads((directory / "kernel.json").read_bytes())
    except FileNotFoundError:
        return None
    if facts["recipe"] != RECIPE:
        return None
    return Prepared(directory, facts["release"], facts["version"])


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vm/prepare", description="Make kernels ready to boot.")
    parser.add_argument("kernel", nargs="*", help=f"default: all of {', '.join(usual())}")
    parser.add_argument("--refresh", action="store_true", help="take the newest of each series again")
    options = parser.parse_args(arguments)
    try:
        for name in options.kernel or usual():
            ready = prepare(name, refresh=options.refresh)
            print(f"{name}: {ready.release} ({ready.version}) in {ready.directory}")
    except VmError as error:
        print(f"vm/prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
