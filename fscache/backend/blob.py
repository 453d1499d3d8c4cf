"""A blob behind a network."""

from __future__ import annotations

from ...erofs.record import Buffer
from .resilient import Resilient


class RemoteBlob:
    """A blob behind a network, as a source of bytes for several threads."""

    def __init__(self, backend: Resilient, name: str) -> None:
        self._backend, self._name = backend, name
        self.label = backend.label

    def size(self) -> int:
        return self._backend.stat(self._name).size

    def read_at(self, offset: int, length: int) -> Buffer:
        return self._backend.read(self._name, offset, length)
