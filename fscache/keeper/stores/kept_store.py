"""One store as the keeper sees it: how much is there, who waits, where its bytes come from."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from operator import gt
from typing import Any

from ....erofs.errors import KernelError
from ...config.backend import Remote
from ...kernel import statx
from ...kernel.fd import Fd
from .clock import Clock
from .spec import FolderSpec, StoreSpec
from .waits import Waits

_SAY_EVERY = 1.0  # seconds
_MAX_SOURCES = 8  # files that one blob is read from; all their descriptors must fit into one message


@dataclass(slots=True)
class Counters:
    """Bytes of segments by how they came, since the store was opened."""

    cached: int = 0
    demand: int = 0
    ahead: int = 0
    prefetch: int = 0
    fetched: int = 0
    failures: int = 0
    last_error: str = ""
    waiting_for: str = ""  # why readers have to wait longer than usual

    @property
    def written(self) -> int:
        return self.demand + self.ahead + self.prefetch


class Waiter:
    """Someone with an unanswered event (one engine's kind of it)."""

    __slots__ = ()

    def answer(self, allow: bool, waited: float, number: int = errno.EIO) -> None:
        """Let the reader go on, or give it an errno (EIO where the kernel knows no other)."""
        raise NotImplementedError

    def completed(self, store: KeptStore, segment: int) -> None:
        """The segment is complete for good."""
        raise NotImplementedError


class Added(Enum):
    """What became of one more place."""

    KNOWN = auto()  # nothing
    NEW = auto()
    INSTEAD = auto()  # of another one


@dataclass(slots=True)
class Sources:
    """Where a blob's bytes come from: open files, and what lies behind a network."""

    files: list[Fd] = field(default_factory=list)
    remotes: list[Remote] = field(default_factory=list)

    def add(self, source: Fd | Remote) -> Added:
        """One more place, unless it is known, as where images share a blob. Takes the Fd.

        When there are too many, the oldest goes: nobody can see to it that what others bring counts for nothing.
        """
        if not isinstance(source, Fd):
            if source in self.remotes:
                return Added.KNOWN
            self.remotes.append(source)
            places: list[Any] = self.remotes
        else:
            if statx.identity(source.fd) in [statx.identity(fd.fd) for fd in self.files]:
                source.close()
                return Added.KNOWN
            self.files.append(source)
            places = self.files
        if len(places) <= _MAX_SOURCES:
            return Added.NEW
        oldest = places.pop(0)
        if isinstance(oldest, Fd):
            oldest.close()
        return Added.INSTEAD

    def __bool__(self) -> bool:
        return bool(self.files or self.remotes)

    def close(self) -> None:
        for fd in self.files:
            fd.close()


@dataclass(eq=False, slots=True)
class KeptStore:
    """One open store. The keeper never opens a segment for its bytes: a segment's fill state is its file size, which
    comes with every event for free."""

    number: int
    key: str
    spec: StoreSpec
    clock: Clock
    sources: Sources = field(default_factory=Sources)
    have: list[int] = field(default_factory=list)  # bytes from each segment's start that are known to be there
    left: int = 0  # segments that are not complete
    users: int = 0
    prefetching: int = 0  # mounts that want it prefetched
    barred: KernelError | None = None  # why no worker knows of it: nothing is written to it until that is over
    suspect: bool = False  # the disk has lost something of it: nobody is let to what is there
    emptied: int = 0  # times
    pending: bool = False  # where its blob is, is being looked up: the worker cannot fill anything yet
    shown: bool = False  # the verifier was told to look at it
    looked: bool = False  # it has: only then the worker is told of it
    shortening: dict[int, int] = field(default_factory=dict)  # segments, and what counts of them until they are cut
    synced: bool = False  # complete, and known to be on disk
    reopen: Callable[[], None] | None = None  # look for its blob anew, which may be another file by now
    counters: Counters = field(default_factory=Counters)
    said: float = -inf  # when something of it was logged that no reader waited for
    waits: Waits[Waiter] = field(default_factory=Waits)

    def __post_init__(self) -> None:
        self.have = self.spec.have if isinstance(self.spec, FolderSpec) else [0] * len(self.spec.sizes)
        self.left = sum(map(gt, self.spec.sizes, self.have))
        self.counters.cached = sum(self.have)
        self.synced = isinstance(self.spec, FolderSpec) and not self.left and not self.spec.begun

    @property
    def label(self) -> str:
        """Enough of the key for a log line."""
        return self.key.rpartition("/")[2][:12]

    @property
    def total(self) -> int:
        return sum(self.spec.sizes)

    @property
    def complete(self) -> bool:
        return self.left == 0

    @property
    def known(self) -> bool:
        """Whether a worker may know of it."""
        return self.looked and self.barred is None

    @property
    def filled(self) -> str:
        """Its complete segments, a bit each, lowest first, as hex."""
        bits = sum(1 << number for number, have in enumerate(self.have) if have == self.spec.sizes[number])
        return f"{bits:x}"

    @property
    def denial(self) -> int:
        """Errno for readers of what is not there, while it is barred."""
        full = self.barred is not None and self.barred.number in (errno.ENOSPC, errno.EDQUOT)
        return errno.ENOSPC if full else errno.EIO

    @property
    def folder(self) -> FolderSpec | None:
        """Its folder of segment files, if that is its kind."""
        return self.spec if isinstance(self.spec, FolderSpec) else None

    def may_say(self, now: float) -> bool:
        """Whether it is time for a line in the log that no reader waits for."""
        if now - self.said < _SAY_EVERY:
            return False
        self.said = now
        return True

    def size(self, segment: int) -> int:
        return self.spec.sizes[segment]

    def counting(self, segment: int, size: int) -> int:
        """How much of a segment counts whose file has this size."""
        return self.shortening.get(segment, size)

    def shrink(self, segment: int, have: int) -> None:
        """Note that only the first ``have`` bytes of a segment count, until it is cut there."""
        self.shortening[segment] = have
        self.left += self.have[segment] == self.size(segment) != have
        self.have[segment] = min(have, self.have[segment])
        self.synced = False
        self.emptied += 1

    def empty(self) -> None:
        """Nothing is there any more."""
        counters = self.counters
        counters.cached = counters.demand = counters.ahead = counters.prefetch = 0
        self.have[:] = [0] * len(self.have)
        self.left = len(self.have)
        self.shortening.clear()
        self.emptied += 1
        self.suspect = False

    def grow(self, segment: int, have: int) -> int:
        """Note that the first ``have`` bytes of a segment are there; how many are new."""
        new = have - self.have[segment]
        if new <= 0:
            return 0
        self.have[segment] = have
        self.left -= have == self.size(segment)
        return new
