"""A store as the worker sees it: one blob's plan, where its bytes come from, and what of it is there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from ...erofs.errors import BackendError
from ...erofs.source import FileSource, Source
from ..kernel.fd import Fd
from ..state.layout import SET_ASIDE, segment_name
from ..state.plan import AnyPlan


class BlobSource(Source, Protocol):
    """Where a blob's bytes come from; ``label`` names the place for people."""

    label: str


class Store:
    """An open store. What it refers to closes its descriptors with the last reference.

    Args:
        folder: of its segment files, if it has any: to look at their sizes, and to read what lies aside.
        proof: gives what the verifier needs to know before the first piece.
    """

    def __init__(
        self,
        plan: AnyPlan,
        sources: Sequence[BlobSource],
        folder: Fd | None = None,
        proof: Callable[[], bytes] | None = None,
    ) -> None:
        self.plan, self.proof = plan, proof
        self.sources, self._lock = tuple(sources), threading.Lock()
        self._folder = folder
        self._aside: Fd | None = None
        if folder is not None:
            with contextlib.suppress(OSError):
                self._aside = Fd(os.open(SET_ASIDE, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder.fd))

    def add(self, first: Sequence[BlobSource], last: Sequence[BlobSource]) -> None:
        """More places, before and behind those that are known."""
        with self._lock:
            self.sources = (*first, *self.sources, *last)

    def put_last(self, source: BlobSource) -> None:
        """One that brought wrong bytes: others are asked first from now on."""
        with self._lock:
            others = [other for other in self.sources if other is not source]
            if len(others) < len(self.sources):
                self.sources = (*others, source)

    def have(self, segment: int) -> int | None:
        """Bytes that a segment has from its start on, BackendError; None when only the verifier can tell."""
        if self._folder is None:
            return None
        try:
            return os.stat(segment_name(segment), dir_fd=self._folder.fd, follow_symlinks=False).st_size
        except OSError as error:
            raise BackendError(f"looking at the cache: {error.strerror}", retryable=False) from None

    def aside(self, segment: int) -> FileSource | None:
        """What a segment held before a crash of the machine, which may have damaged it."""
        if self._aside is not None:
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                return FileSource(os.open(segment_name(segment), flags, dir_fd=self._aside.fd))
        return None
