"""Bootstraps and chunk-info from afar, fetched by the worker for the keeper.

A bootstrap is fetched once and kept under its content's SHA-256 in ``bootstraps/``, beside a small record for each
name that says which version of it is here. While a server does not answer, what is here counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from ....erofs.errors import BackendError, CorruptError
from ....erofs.ids import BlobId
from ...config.backend import Registry, Remote, describe
from ...decoding import decoded
from ...kernel.fd import Fd
from ...kernel.plain import open_plain, read_plain
from ...proto import worker as proto
from .. import durable
from ..children.errands import in_child
from ..children.worker_link import WorkerLink
from ..log import logger
from ..paths import StatePaths
from .measure import Measured, kept
from .origin import Origin
from .places import Places
from .prepared import Provide

_PATIENCE, _RANGE_PATIENCE = 280.0, 60.0  # seconds
_MAX_RECORD = 1 << 16  # bytes


class _Known(msgspec.Struct):
    """Which version of a published bootstrap is here."""

    version: str
    measured: Measured


_KNOWN = msgspec.json.Decoder(_Known)


@dataclass(frozen=True, slots=True)
class Opened:
    """An image's bootstrap, of ``size`` bytes: a file here, or ``published`` and to be read in pieces.

    ``identity`` is that of a published one; a file of the user's has none.
    """

    identity: str
    file: Fd | None
    published: proto.PublishedBootstrap | None
    size: int
    blobs: dict[str, int]  # blob id -> bytes of its uncompressed address space


class Bootstraps:
    """Bootstraps, wherever they are."""

    def __init__(self, paths: StatePaths, link: WorkerLink) -> None:
        self._folder, self._link = paths.bootstraps, link
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def require(self, remote: Remote | None) -> None:
        """Something of this backend will be wanted."""
        if remote is not None:
            self._link.require(remote)

    async def bootstrap(self, origin: Origin, local: Fd | None, digest: str = "") -> Fd:
        """An image's bootstrap, fetched if need be.

        Args:
            local: it, if it is a file here; taken.
            digest: identity that it must have (``sha256:`` and the fs-verity digest), if one is demanded.
        """
        self.require(origin.remote)
        if local is not None:
            if digest:
                with local:
                    measured = await kept(local, self._folder)
                _demand(origin.image, measured.identity, digest)
                return open_plain(self._file(measured.sha256))
            return local
        key = _key(origin)
        async with self._locks.setdefault(key, asyncio.Lock()):
            return open_plain(self._file((await self._fetched(origin, key, digest)).measured.sha256))

    async def opened(self, origin: Origin, local: Fd | None, digest: str = "") -> Opened:
        """The same without waiting for all of it, where it is published so that pieces of it can be verified."""
        remote = origin.remote
        if local is None and remote is not None and self._load(_key(origin)) is None:
            self.require(remote)
            said = await self._link.ask(proto.Peek(0, remote, origin.name), None, _RANGE_PATIENCE)
            if said.identity:
                _demand(origin.image, said.identity, digest)
                published = proto.PublishedBootstrap(remote, said.name, said.identity)
                return Opened(said.identity, None, published, said.size, dict(said.blobs))
        file = await self.bootstrap(origin, local, digest)
        known = None if local is not None else self._load(_key(origin))
        size, blobs = os.fstat(file.fd).st_size, dict(await self._link.inspect(file))
        return Opened(known.measured.identity if known else "", file, None, size, blobs)

    async def _fetched(self, origin: Origin, key: str, digest: str) -> _Known:
        """What is here of a published bootstrap, after a look at the server."""
        assert origin.remote is not None
        known = self._load(key)
        fixed = isinstance(origin.remote, Registry) and origin.name.startswith("sha256:")
        if known is not None and (known.measured.identity == digest or (fixed and not digest)):
            return known
        # What the worker writes to is nothing yet.
        with Fd(os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)) as file:
            question = proto.FetchBootstrap(0, origin.remote, origin.name, known.version if known else "", digest)
            try:
                said = await self._link.ask(question, file, _PATIENCE)
            except BackendError as error:
                if known is None or not error.retryable:
                    raise
                _demand(origin.image, known.measured.identity, digest)
                logger().warning(
                    "server does not answer: using what is here", image=origin.image, error=error.message
                )
                return known
            if known is not None and said.version == known.version != "":
                _demand(origin.image, known.measured.identity, digest)
                return known
            known = _Known(said.version, await kept(file, self._folder))
        _demand(origin.image, known.measured.identity, digest)
        await self._save(key, known)
        return known

    def _file(self, sha256: str) -> str:
        return os.path.join(self._folder, f"{sha256}.meta")

    def _load(self, key: str) -> _Known | None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            known = decoded(_KNOWN, read_plain(os.path.join(self._folder, f"{key}.json"), _MAX_RECORD))
            if os.path.isfile(self._file(known.measured.sha256)):
                return known
        return None

    async def _save(self, key: str, known: _Known) -> None:
        path = os.path.join(self._folder, f"{key}.json")
        await in_child(partial(durable.write, path, msgspec.json.encode(known)), f"writing {path}")

    def provider(self, places: Places) -> Provide:
        """Gives ``prepare`` the bytes of an image's blobs."""

        async def provide(blob: BlobId, offset: int, length: int) -> tuple[Fd, int]:
            place = await places.find(blob)
            if isinstance(place, Fd):
                return place, 0
            file = Fd(os.memfd_create("range", os.MFD_CLOEXEC))
            await self._link.ask(proto.FetchRange(0, place, blob, offset, length), file, _RANGE_PATIENCE)
            return file, offset

        return provide


def _key(origin: Origin) -> str:
    """Name of the record of a published bootstrap."""
    assert origin.remote is not None
    return hashlib.sha256(f"{describe(origin.remote)} {origin.name}".encode()).hexdigest()[:32]


def _demand(image: str, identity: str, digest: str) -> None:
    if digest and identity != digest:
        raise CorruptError(f"{image} has the digest {identity}, not the one demanded")
