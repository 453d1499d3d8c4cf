"""A published bootstrap that is read in pieces, each verified against its digest tree."""

from __future__ import annotations

import threading

from ...erofs import verity
from ...erofs.errors import BlobNotFoundError, CorruptError
from ...erofs.record import Buffer
from .blob import RemoteBlob
from .bootstrap import fetch_tree, find_object
from .resilient import Resilient


class LazyBootstrap:
    """A source of bytes for several threads. The digest tree is fetched with the first of them.

    Args:
        name: of the bootstrap's object.
        identity: that the digest tree must have.
        tree: if it is here already.
    """

    def __init__(self, backend: Resilient, name: str, identity: str, tree: verity.Tree | None = None) -> None:
        self.label = backend.label
        self._backend, self._name, self._identity, self._tree = backend, name, identity, tree
        self._verified: verity.VerifiedSource | None = None
        self._lock = threading.Lock()

    def size(self) -> int:
        return self._source().size()

    def read_at(self, offset: int, length: int) -> Buffer:
        source = self._source()
        try:
            return source.read_at(offset, length)
        except CorruptError:
            return source.read_at(offset, length)  # on its way, perhaps

    def proof(self) -> bytes:
        """The file of its digest tree."""
        return self._source().tree.pack()

    def _source(self) -> verity.VerifiedSource:
        with self._lock:
            if self._verified is None:
                tree = self._tree or fetch_tree(self._backend, self._name)
                if tree is None:
                    raise BlobNotFoundError(f"{self.label}: {self._name}{verity.SUFFIX} is gone")
                if tree.identity != self._identity:
                    raise CorruptError(f"{self.label}: {self._name} is another image by now", hint="mount it again")
                self._verified = verity.VerifiedSource(RemoteBlob(self._backend, self._name), tree)
            return self._verified


def peek(backend: Resilient, name: str) -> tuple[str, verity.Tree] | None:
    """(object, digest tree) of a published bootstrap; None when it has no tree, so that it must be fetched whole.

    Raises CorruptError when they do not belong together.
    """
    name, info = find_object(backend, name)
    tree = fetch_tree(backend, name)
    if tree is not None and tree.size != info.size:
        raise CorruptError(f"{backend.label}: {name} has {info.size} bytes, its digest tree {tree.size}")
    return None if tree is None else (name, tree)
