"""A descriptor that is owned: one owner closes it, and who gives it away does not have it any more."""

from __future__ import annotations

import os
from types import TracebackType
from typing import NoReturn, Self


class Fd:
    """Owns a descriptor, which is closed by ``close``, at the end of a ``with`` block, or with the last reference."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The number, to be used while the owner lives; ValueError when it was given away or closed."""
        if self._fd < 0:
            raise ValueError("the descriptor is closed")
        return self._fd

    def fileno(self) -> int:
        return self.fd

    def dup(self) -> Fd:
        """Another descriptor of the same open file."""
        return Fd(os.dup(self.fd))

    def as_path(self) -> Fd:
        """The same file, held and not open (O_PATH): what has many descriptors forks and closes these much faster."""
        return Fd(os.open(f"/proc/self/fd/{self.fd}", os.O_PATH | os.O_CLOEXEC))

    def reopen(self) -> Fd:
        """Opened anew for reading, even if it has no name any more."""
        return Fd(os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC))

    def steal(self) -> int:
        """Give the descriptor away: the caller closes it."""
        fd, self._fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close it, unless it is closed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a descriptor cannot be pickled: it would have two owners")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
