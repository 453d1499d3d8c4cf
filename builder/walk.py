"""A directory of this host as a source: every name under it, with attributes, in the order of the image.

Mount points below the source are descended into, as Nydus does. Left out are whiteouts, what ``--exclude``
names, and the build's own outputs when they lie inside the source.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing

from ..erofs import xattr
from ..erofs.errors import SourceError, UnsupportedError
from ..erofs.ids import printable
from ..erofs.image import MAX_PATH
from .descent import Descent, Identity, Root, identity
from .exclude import Excluded
from .paths import changed, source_error
from .tree import Listing, Node, Stamp
from .whiteout import Whiteout

_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENOSYS)
_BLOCK = 512  # bytes, the unit of st_blocks
_LONGEST_NAME = 255
_S_IFMT, _S_IFREG, _S_IFDIR, _S_IFLNK = 0o170000, 0o100000, 0o040000, 0o120000
_DEVICES = (0o020000, 0o060000)
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def encode_rdev(rdev: int) -> int:
    """A device number as the kernel stores it in 32 bits (``new_encode_dev``, Linux include/linux/kdev_t.h)."""
    major, minor = os.major(rdev) & 0xFFF, os.minor(rdev) & 0xFFFFF  # Linux has no more of them
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


# A directory that was seen and is to be listed: name, path, depth (1: right below the source), identity.
_Folder = tuple[bytes, bytes, int, Identity]


class DirectorySource:
    """One directory, read while it is iterated; ``left_out`` counts names that are not in the image,
    ``own_outputs_met`` lists paths of the build's own outputs, which are not either.

    SourceError, naming the path, when anything cannot be read, vanishes meanwhile, or is replaced by something else.
    """

    def __init__(
        self,
        root: Root,
        *,
        whiteout: Whiteout | None = None,
        excluded: Excluded | None = None,
        own_outputs: Mapping[tuple[int, int], bool],
        chunk_size: int,
        time_rule: Callable[[int], int] | None = None,
        links: bool = True,
    ) -> None:
        """``own_outputs``: (device, inode number) of files and directories to pass over -> whether to mention it.

        ``time_rule`` leads from the time of a file to its time in the image, in nanoseconds. Without ``links``
        names of one file are taken for files of their own.
        """
        self.left_out = 0
        self.own_outputs_met: list[bytes] = []
        self._root = root
        self._whiteout = whiteout
        self._excluded = excluded
        self._own = own_outputs
        self._own_inos = {ino for _, ino in own_outputs}
        self._strip = len(root.prefix)
        self._chunk_size = chunk_size
        self._time_rule = time_rule
        self._links = links

    def root(self) -> Node:
        """The source itself, without a name; its mtime counts as 0, so that copies of one tree give one image."""
        st = os.fstat(self._root.fd)
        rule = self._time_rule
        return Node(b"", st.st_mode, st.st_uid, st.st_gid, rule(0) if rule else 0, 0)

    def listings(self) -> Generator[Listing]:
        """What each directory holds, in pre-order."""
        with closing(Descent(self._root)) as place:
            listing, pending = self._list(place.fd, self._root.path, 1)
            yield listing
            pending.reverse()
            while pending:
                name, path, depth, seen = pending.pop()
                try:
                    place.back(depth - 1)
                    place.enter(name)
                except OSError as error:
                    raise source_error(error, path) from None
                if identity(os.fstat(place.fd)) != seen:
                    raise changed(path)
                listing, subdirectories = self._list(place.fd, path, depth + 1)
                yield listing
                pending.extend(reversed(subdirectories))

    def _list(self, fd: int, directory: bytes, depth: int) -> tuple[Listing, list[_Folder]]:
        """What an open directory holds, and those directories of it that are to be listed, both sorted by name.

        ``directory`` is its path for people, ``depth`` that of what it holds.
        """
        prefix = directory.rstrip(b"/") + b"/"
        base = b"%b%d/" % (self._root.descriptors, fd)
        if len(prefix) - self._strip + _LONGEST_NAME >= MAX_PATH:
            raise SourceError(f"paths longer than {MAX_PATH} bytes below {printable(prefix[:200])}...")
        try:
            names = sorted(os.listdir(base))
            own_xattrs = _read_xattrs(fd, directory)
        except OSError as error:
            raise source_error(error, directory) from None
        nodes: list[Node] = []
        subdirectories: list[_Folder] = []
        whiteout, excluded, own, time_rule = self._whiteout, self._excluded, self._own_inos, self._time_rule
        lstat, listxattr, chunk_size, links = os.lstat, os.listxattr, self._chunk_size, self._links
        for name in names:
            path = prefix + name
            try:
                st = lstat(name, dir_fd=fd)
                mode, size, mtime, ino = st.st_mode, st.st_size, st.st_mtime_ns, st.st_ino
                kind = mode & _S_IFMT
                if ino in own and self._is_own(path, st):
                    continue
                if (whiteout and whiteout(name, mode, st.st_rdev)) or (
                    excluded and excluded(path[self._strip :], kind == _S_IFDIR)
                ):
                    self.left_out += 1
                    continue
                time = time_rule(mtime) if time_rule else mtime
                if kind == _S_IFDIR:
                    nodes.append(Node(name, mode, st.st_uid, st.st_gid, time, 0))
                    subdirectories.append((name, path, depth, (st.st_dev, ino)))
                    continue
                xattrs = target = b""
                plain = kind == _S_IFREG and size
                if plain:
                    # Most have no xattrs. Should this name another file by now, reading the one listed will tell.
                    try:
                        plain = not listxattr(base + name, follow_symlinks=False)
                    except OSError as error:
                        if error.errno not in _NO_XATTRS:
                            raise
                if not plain:
                    xattrs, target = self._read_entry(fd, name, st, path)
            except OSError as error:
                raise source_error(error, path) from None
            if kind == _S_IFREG:
                dev = st.st_dev
                stamp = Stamp(size, mtime, st.st_ctime_ns, ino, dev)
                link = (dev, ino) if st.st_nlink > 1 and links else None
                sparse = size > chunk_size and st.st_blocks * _BLOCK < size
                nodes.append(
                    Node(name, mode, st.st_uid, st.st_gid, time, size, 0, xattrs, b"", link, path, stamp, sparse)
                )
            else:
                rdev = encode_rdev(st.st_rdev) if kind in _DEVICES else 0
                nodes.append(Node(name, mode, st.st_uid, st.st_gid, time, len(target), rdev, xattrs, target))
        return Listing(own_xattrs, nodes), subdirectories

    def _is_own(self, path: bytes, st: os.stat_result) -> bool:
        mention = self._own.get((st.st_dev, st.st_ino))
        if mention:
            self.own_outputs_met.append(path)
        return mention is not None

    def _read_entry(self, directory: int, name: bytes, st: os.stat_result, path: bytes) -> tuple[bytes, bytes]:
        """The packed xattrs of what is no directory, and a link's target: of the very file that ``st`` tells of.

        A descriptor that only names a file neither opens a device nor follows a link; SourceError when it is another.
        """
        fd = os.open(name, _ENTRY, dir_fd=directory)
        try:
            found = os.fstat(fd)
            if identity(found) != identity(st) or (found.st_mode ^ st.st_mode) & _S_IFMT:
                raise changed(path)
            target = os.readlink(b"", dir_fd=fd) if st.st_mode & _S_IFMT == _S_IFLNK else b""
            return _read_xattrs(b"%b%d" % (self._root.descriptors, fd), path), target
        finally:
            os.close(fd)


def _read_xattrs(file: int | bytes, path: bytes) -> bytes:
    """The packed xattrs of an open directory, or of a descriptor's path; ``path`` is the file's for people."""
    found = {}
    try:
        for name in os.listxattr(file):
            found[os.fsencode(name)] = os.getxattr(file, name)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
    try:
        return xattr.pack(found) if found else b""
    except UnsupportedError as error:
        raise SourceError(f"{printable(path)}: {error.message}", hint=error.hint) from None
