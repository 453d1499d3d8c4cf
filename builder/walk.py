"""A directory of this host as a source: every name under it, with attributes, in the order of the image.

Mount points below the source are descended into, as Nydus does. Left out are whiteouts, what ``--exclude``
names, and the build's own outputs when they lie inside the source.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping

from ..erofs import xattr
from ..erofs.errors import ConfigError, SourceError, UnsupportedError
from ..erofs.ids import printable
from ..erofs.image import MAX_PATH
from .exclude import Excluded
from .paths import LONGEST_NAME, PATH_MAX, short_path, source_error
from .tree import Listing, Node, Stamp
from .whiteout import Whiteout

_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENOSYS)
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_BLOCK = 512  # bytes, the unit of st_blocks
_S_IFMT = 0o170000


def encode_rdev(rdev: int) -> int:
    """A device number as the kernel stores it in 32 bits (``new_encode_dev``, Linux include/linux/kdev_t.h)."""
    major, minor = os.major(rdev) & 0xFFF, os.minor(rdev) & 0xFFFFF  # Linux has no more of them
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


class DirectorySource:
    """One directory, read while it is iterated; ``left_out`` counts names that are not in the image,
    ``own_outputs_met`` lists paths of the build's own outputs, which are not either.

    SourceError, naming the path, when anything cannot be read or vanishes meanwhile.
    """

    def __init__(
        self,
        path: bytes,
        *,
        whiteout: Whiteout | None = None,
        excluded: Excluded | None = None,
        own_outputs: Mapping[tuple[int, int], bool],
        chunk_size: int,
    ) -> None:
        """``own_outputs``: (device, inode number) of files and directories to pass over -> whether to mention it."""
        self.path = path.rstrip(b"/") or b"/"
        self.left_out = 0
        self.own_outputs_met: list[bytes] = []
        self._whiteout = whiteout
        self._excluded = excluded
        self._own = own_outputs
        self._own_inos = {ino for _, ino in own_outputs}
        self._strip = len(self.path.rstrip(b"/")) + 1  # bytes of a path before what is relative to the source
        self._chunk_size = chunk_size

    def root(self) -> Node:
        """The source itself, without a name; its mtime is 0, so that copies of one tree give one image."""
        try:
            st = os.stat(self.path)
            if not stat.S_ISDIR(st.st_mode):
                raise ConfigError(f"{printable(self.path)} is not a directory")
            return Node(b"", st.st_mode, st.st_uid, st.st_gid, 0, 0, 0, _read_xattrs(self.path, self.path))
        except FileNotFoundError:
            raise ConfigError(f"{printable(self.path)} does not exist") from None
        except OSError as error:
            raise source_error(error, self.path) from None

    def listings(self) -> Iterator[Listing]:
        """The sorted children of each directory, in pre-order."""
        pending = [self.path]
        while pending:
            directory = pending.pop()
            listing, subdirectories = self._list(directory)
            yield listing
            pending.extend(reversed(subdirectories))

    def _list(self, directory: bytes) -> tuple[Listing, list[bytes]]:
        """Children of ``directory`` and the paths of those that are directories, both in the order of names."""
        prefix = directory.rstrip(b"/") + b"/"
        if len(prefix) - self._strip + LONGEST_NAME >= MAX_PATH:
            raise SourceError(f"paths longer than {MAX_PATH} bytes below {printable(prefix[:200])}...")
        try:
            if len(prefix) + LONGEST_NAME < PATH_MAX:
                return self._read(prefix, prefix)
            with short_path(directory) as base:
                return self._read(prefix, base + b"/")
        except OSError as error:
            raise source_error(error, directory) from None

    def _read(self, prefix: bytes, base: bytes) -> tuple[Listing, list[bytes]]:
        """List a directory reached as ``base`` and spoken of as ``prefix``."""
        listing: Listing = []
        subdirectories: list[bytes] = []
        whiteout, excluded, own = self._whiteout, self._excluded, self._own_inos
        lstat, listxattr, chunk_size = os.lstat, os.listxattr, self._chunk_size
        for name in sorted(os.listdir(base)):
            path, real = prefix + name, base + name
            try:
                st = lstat(real)
                mode, size, mtime, ino = st.st_mode, st.st_size, st.st_mtime_ns, st.st_ino
                kind = mode & _S_IFMT
                if ino in own and self._is_own(path, st):
                    continue
                if (whiteout and whiteout(name, mode, st.st_rdev)) or (
                    excluded and excluded(path[self._strip :], kind == stat.S_IFDIR)
                ):
                    self.left_out += 1
                    continue
                xattrs = b""
                try:
                    if listxattr(real, follow_symlinks=False):
                        xattrs = _read_xattrs(real, path)
                except OSError as error:
                    if error.errno not in _NO_XATTRS:
                        raise
                if kind == stat.S_IFREG:
                    dev = st.st_dev
                    stamp = Stamp(size, mtime, st.st_ctime_ns, ino, dev)
                    link = (dev, ino) if st.st_nlink > 1 else None
                    sparse = size > chunk_size and st.st_blocks * _BLOCK < size
                    listing.append(
                        Node(name, mode, st.st_uid, st.st_gid, mtime, size, 0, xattrs, b"", link, path, stamp, sparse)
                    )
                    continue
                target = os.readlink(real) if kind == stat.S_IFLNK else b""
            except OSError as error:
                raise source_error(error, path) from None
            rdev = encode_rdev(st.st_rdev) if kind in _DEVICES else 0
            listing.append(Node(name, mode, st.st_uid, st.st_gid, mtime, len(target), rdev, xattrs, target))
            if kind == stat.S_IFDIR:
                subdirectories.append(path)
        return listing, subdirectories

    def _is_own(self, path: bytes, st: os.stat_result) -> bool:
        mention = self._own.get((st.st_dev, st.st_ino))
        if mention:
            self.own_outputs_met.append(path)
        return mention is not None


def _read_xattrs(real: bytes, path: bytes) -> bytes:
    """The packed xattrs of a file, reached as ``real`` and spoken of as ``path``."""
    found = {}
    for name in os.listxattr(real, follow_symlinks=False):
        found[os.fsencode(name)] = os.getxattr(real, name, follow_symlinks=False)
    try:
        return xattr.pack(found)
    except UnsupportedError as error:
        raise SourceError(f"{printable(path)}: {error.message}", hint=error.hint) from None
