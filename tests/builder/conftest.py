"""What the builder's tests share: building with options, the reader and the kernel as judges, and trees."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.builder import BuildOptions, BuildResult, build
from nydus_erofs.erofs.check import check
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.inode import Inode
from nydus_erofs.erofs.source import BufferSource

COMPARE = Path(__file__).parents[2] / "scripts" / "compare_trees.py"

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY = 1


class _NoProgress:
    def update(self, **_: object) -> None:
        pass


@pytest.fixture(scope="session")
def build_image() -> Callable[..., BuildResult]:
    """`build_image(source, out, **options)`: build into the folder `out`, in this process unless told otherwise."""

    def build_image(source: Path, out: Path, **options: Any) -> BuildResult:
        out.mkdir(exist_ok=True)
        options.setdefault("workers", 1)
        return build(BuildOptions(source=source, output_dir=out, **options), _NoProgress())

    return build_image


def _open_image(result: BuildResult) -> Image:
    blobs = {result.blob_id: result.blob}
    return Image(
        Bootstrap(BufferSource(result.bootstrap.read_bytes())), lambda name: BufferSource(blobs[name].read_bytes())
    )


@pytest.fixture(scope="session")
def open_image() -> Callable[[BuildResult], Image]:
    return _open_image


# --- judges ---------------------------------------------------------------------------------------------


def _content(image: Image, inode: Inode) -> bytes:
    return b"".join(map(bytes, image.stream(inode.nid)))


def _facts(st: os.stat_result, root: bool) -> tuple[int, ...]:
    mtime = (0, 0) if root else (st.st_mtime_ns // 10**9, st.st_mtime_ns % 10**9)
    size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
    return st.st_mode, st.st_uid, st.st_gid, size, *mtime


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """`assert_same(image, source)`: the reader finds every name, attribute and byte of the source, and no other.

    Link counts are those of the names in the tree: only regular files are linked.
    """

    def assert_same(image: Image, source: Path, left_out: frozenset[bytes] = frozenset()) -> None:
        root = os.fsencode(source)
        expected = {b"/"}
        for folder, dirs, files in os.walk(root):
            dirs[:] = [name for name in dirs if name not in left_out]
            expected |= {os.path.join(folder, name)[len(root) :] for name in dirs + files if name not in left_out}
        names: dict[tuple[int, int], set[bytes]] = {}
        nids: dict[bytes, int] = {}
        found = {}
        for path, inode in image.bootstrap.walk():
            assert path not in found
            found[path] = inode
            real = root + path
            st = os.lstat(real)
            assert _facts(st, path == b"/") == (
                inode.mode, inode.uid, inode.gid, 0 if inode.is_dir else inode.size, inode.mtime, inode.mtime_nsec
            ), path  # fmt: skip
            xattrs = {os.fsencode(n): os.getxattr(real, n, follow_symlinks=False) for n in _listxattr(real)}
            assert image.bootstrap.xattrs(inode.nid) == xattrs, path
            if inode.is_symlink:
                assert image.bootstrap.readlink(inode.nid) == os.readlink(real)
            if inode.is_regular:
                names.setdefault((st.st_dev, st.st_ino), set()).add(path)
                nids[path] = inode.nid
                assert _content(image, inode) == Path(os.fsdecode(real)).read_bytes(), path
            elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                minor = os.minor(st.st_rdev)
                assert inode.rdev == minor & 0xFF | os.major(st.st_rdev) << 8 | minor >> 8 << 20
        assert set(found) == expected
        for linked in names.values():
            assert len({nids[path] for path in linked}) == 1
            assert {found[path].nlink for path in linked} == {len(linked)}

    return assert_same


def _listxattr(path: bytes) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


@pytest.fixture(scope="session")
def assert_sound() -> Callable[[BuildResult], None]:
    """Our own checker finds nothing in bootstrap and blob."""

    def assert_sound(result: BuildResult) -> None:
        blob = BufferSource(result.blob.read_bytes()) if result.blob else None
        assert check(BufferSource(result.bootstrap.read_bytes()), lambda _: blob) == []

    return assert_sound


@pytest.fixture(scope="session")
def write_device() -> Callable[[BuildResult, Path], None]:
    """`write_device(result, path)`: the uncompressed address space of the image's blob, as the kernel wants it."""

    def write_device(result: BuildResult, path: Path) -> None:
        reader = _open_image(result).reader(0)
        with path.open("wb") as file:
            file.truncate(reader.entry.uncompressed_size)
            for index, info in enumerate(reader.chunks.rows()):
                file.seek(info.uncompressed_offset)
                file.write(reader.read(index))

    return write_device


@pytest.fixture
def kernel_mount(write_device: Callable[[BuildResult, Path], None], tmp_path: Path) -> Callable[..., Any]:
    """`with kernel_mount(result) as path`: the image mounted by the kernel straight from its bootstrap."""
    numbers = itertools.count()

    @contextmanager
    def mounted(result: BuildResult) -> Iterator[Path]:
        folder = tmp_path / f"mount{next(numbers)}"
        mountpoint, device = folder / "mnt", folder / "device"
        mountpoint.mkdir(parents=True)
        options = b""
        if result.blob:
            write_device(result, device)
            options = b"device=" + os.fsencode(device)
        # mount(8) would put a loop device before the file.
        if _libc.mount(os.fsencode(result.bootstrap), os.fsencode(mountpoint), b"erofs", _MS_RDONLY, options):
            code = ctypes.get_errno()
            raise OSError(code, f"mount: {os.strerror(code)}")
        try:
            yield mountpoint
        finally:
            assert _libc.umount2(os.fsencode(mountpoint), 0) == 0
            device.unlink(missing_ok=True)

    return mounted


@pytest.fixture(scope="session")
def compare_trees() -> Callable[..., None]:
    """`compare_trees(a, b)`: both are equal in every name, attribute and byte that images carry."""

    def compare_trees(a: Path, b: Path, *options: str) -> None:
        done = subprocess.run(
            [sys.executable, COMPARE, a, b, "--time-limit", "250", *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    return compare_trees


# --- trees ----------------------------------------------------------------------------------------------


def _text(rng: random.Random, size: int) -> bytes:
    words = [rng.randbytes(rng.randint(2, 9)).hex().encode() for _ in range(200)]
    return b" ".join(rng.choices(words, k=size // 3 + 1))[:size]


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL in the form of its xattr: version 2, then (tag, permissions, id)."""
    return b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + number.to_bytes(4, "little")
        for tag, perm, number in entries
    )


_ACL = _acl((1, 6, 2**32 - 1), (2, 7, 1234), (4, 4, 2**32 - 1), (16, 7, 2**32 - 1), (32, 4, 2**32 - 1))


@pytest.fixture(scope="session")
def make_rich_tree() -> Callable[[Path], Path]:
    """`make_rich_tree(path, acls=True)`: a tree with every kind of file and attribute there is. As root."""
    return _rich_tree


def _rich_tree(root: Path, acls: bool = True) -> Path:
    rng = random.Random(20)
    root.mkdir()
    sizes = (0, 1, 4095, 4096, 4097, 0xFFFFF, 0x100000, 0x100001, 3 << 20, (5 << 20) + 7)
    files = root / "files"
    files.mkdir()
    for size in sizes:
        (files / f"text{size}").write_bytes(_text(rng, size))
        (files / f"noise{size}").write_bytes(rng.randbytes(size))
    (files / "same").write_bytes((files / "text4097").read_bytes())
    (files / "zeros").write_bytes(bytes(3 << 20))
    for name, mode in (("suid", 0o4755), ("sgid", 0o2755), ("sticky", 0o1777), ("none", 0)):
        path = files / name
        path.write_bytes(name.encode())
        os.chown(path, 70000, 2**32 - 2)
        path.chmod(mode)
    os.utime(files / "none", ns=(1, -1_500_000_001))  # before 1970
    os.utime(files / "sgid", ns=(1, 4_102_444_800_123_456_789))
    _links(root / "links", files / "same")
    _sparse(root / "sparse")
    _names(root / "names")
    _xattrs(root / "xattrs", acls)
    deep = root / "deep"
    for level in range(80):
        deep /= f"level {level}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("here")
    (root / "empty").mkdir()
    os.utime(root / "empty", ns=(1, 987_654_321_012_345_678))
    return root


def _links(folder: Path, target: Path) -> None:
    folder.mkdir()
    for number in range(3):
        os.link(target, folder / f"hard{number}")
    for length in (1, 59, 4031, 4032, 4033, 4094, 4095):
        os.symlink("x" * length, folder / f"soft{length}")
    os.link(folder / "soft59", folder / "soft59 again", follow_symlinks=False)
    os.mkfifo(folder / "fifo", 0o640)
    os.link(folder / "fifo", folder / "fifo again")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{os.open(folder, os.O_PATH)}/socket")
    for name, kind, major, minor in (
        ("null", stat.S_IFCHR, 1, 3), ("disk", stat.S_IFBLK, 8, 1), ("large", stat.S_IFCHR, 4095, 0xFFFFF)
    ):  # fmt: skip
        os.mknod(folder / name, kind | 0o600, os.makedev(major, minor))


def _sparse(folder: Path) -> None:
    folder.mkdir()
    for name, size, places in (
        ("only hole", 5 << 20, ()),
        ("hole then data", 5 << 20, ((4 << 20) + 5,)),
        ("data then hole", (5 << 20) + 1, (0,)),
        ("islands", 64 << 20, (7 << 20, (30 << 20) - 1, 63 << 20)),
    ):
        with (folder / name).open("wb") as file:
            file.truncate(size)
            for place in places:
                file.seek(place)
                file.write(f"{name} at {place}".encode())


def _names(folder: Path) -> None:
    """Names that sort around "." and "..", that are no UTF-8, that are as long as can be; a large directory."""
    folder.mkdir()
    base = os.fsencode(folder) + b"/"
    for name in (b"!x", b"-x", b" x", b"\x01", b".-", b"..-", b"...", b".hidden", b"\xff\xfe", b"\n", b"%s",
                 b"caf\xc3\xa9", b"n" * 255, b"\xff" * 255):  # fmt: skip
        with open(base + name, "wb") as file:
            file.write(name)
    many = folder / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"{number * 7919 % 3000:08d}").touch()


def _xattrs(folder: Path, acls: bool) -> None:
    folder.mkdir()
    for number, size in enumerate((0, 1, 64, 700, 3000)):
        path = folder / f"user{number}"
        path.write_bytes(b"abc" * number)
        os.setxattr(path, f"user.{'a' * (number + 1)}", bytes([number]) * size)
    plain = folder / "all"
    plain.write_bytes(b"all kinds")
    for name, value in (
        ("user.x", b"1"),
        ("trusted.x", b"2"),
        ("trusted.overlay.opaque", b"y"),
        ("security.x", b"3"),
    ):
        os.setxattr(plain, name, value)
    os.setxattr(plain, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    inner = folder / "folder"
    inner.mkdir()
    if acls:
        os.setxattr(plain, "system.posix_acl_access", _ACL)
        os.setxattr(inner, "system.posix_acl_default", _ACL)
    os.setxattr(inner, "user.long", b"v" * 3500)
    for number in range(40):
        (inner / f"{number}").touch()
    os.symlink("x" * 900, folder / "link")
    os.setxattr(folder / "link", "trusted.on a link", b"w" * 3200, follow_symlinks=False)
