"""Going through a source by descriptors: every step is relative to an open directory, and follows no link.

Whoever owns a part of a source may put something else in the place of any name at any moment, also while root
builds. A path would lead where he points; a descriptor stays with what was opened, and is compared with what was
listed.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .paths import changed, source_error

Identity = tuple[int, int]  # device, inode number

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Nonblocking: should a name be a FIFO's by now, opening it must not wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KEPT = 32  # directories above the current one that stay open
_CLOSED = -1


class Root(NamedTuple):
    """A source: its open directory, its path for people, and the folder in which this process's descriptors have
    paths, which end where the descriptor does: "/proc/PID/fd/", shorter a way than "/proc/self/fd/"."""

    fd: int
    path: bytes
    descriptors: bytes

    @property
    def prefix(self) -> bytes:
        """What a path begins with before it is relative to the source."""
        return self.path.rstrip(b"/") + b"/"


def identity(st: os.stat_result) -> Identity:
    return st.st_dev, st.st_ino


class Descent:
    """A place in a source, reached step by step. Neither depth nor the length of its path is limited.

    Of the directories above it the nearest stay open; one further up is opened again on the way back, and must be
    the one it was. OSError when a step is not possible.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._names: list[bytes] = []
        self._fds = [root.fd]  # one more than names
        self._closed: dict[int, Identity] = {}  # by depth

    @property
    def fd(self) -> int:
        """Of the directory that is the place."""
        return self._fds[-1]

    def enter(self, name: bytes) -> None:
        """Go into a directory."""
        fds = self._fds
        fds.append(os.open(name, _DIRECTORY, dir_fd=fds[-1]))
        self._names.append(name)
        far = len(self._names) - _KEPT
        if far > 0 and (fd := fds[far]) != _CLOSED:
            self._closed[far] = identity(os.fstat(fd))
            os.close(fd)
            fds[far] = _CLOSED

    def back(self, depth: int) -> None:
        """Leave directories until ``depth`` of them are left below the source. SourceError when one has changed."""
        fds, names = self._fds, self._names
        while len(names) > depth:
            left = fds.pop()
            names.pop()
            try:
                if fds[-1] == _CLOSED:
                    fds[-1] = fd = os.open(b"..", _DIRECTORY, dir_fd=left)
                    if identity(os.fstat(fd)) != self._closed.pop(len(names)):
                        raise changed(self._root.prefix + b"/".join(names))
            finally:
                os.close(left)

    def go(self, names: list[bytes]) -> None:
        """Go to the directory with these names from the source on."""
        common = 0
        for here, there in zip(self._names, names, strict=False):
            if here != there:
                break
            common += 1
        self.back(common)
        for name in names[common:]:
            self.enter(name)

    def close(self) -> None:
        """Close what is open, but for the source itself."""
        for fd in self._fds[1:]:
            if fd != _CLOSED:
                os.close(fd)
        del self._fds[1:]


class Files:
    """Opens regular files of a source again to read them; fastest in the order of the tree."""

    def __init__(self, root: Root) -> None:
        self._place = Descent(root)
        self._strip = len(root.prefix)
        self._directory = b""

    def open(self, path: bytes) -> int:
        """A descriptor of what is called ``path`` by now, which is no link; SourceError when there is nothing.

        Whether it is the file that was listed, the caller sees by its stamp once it has read.
        """
        directory, _, name = path[self._strip :].rpartition(b"/")
        try:
            if directory != self._directory:
                self._place.go(directory.split(b"/") if directory else [])
                self._directory = directory
            return os.open(name, _FILE, dir_fd=self._place.fd)
        except OSError as error:
            raise source_error(error, path) from None

    def close(self) -> None:
        self._place.close()
