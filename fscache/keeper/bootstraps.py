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

import msgspec

from ...erofs.errors import BackendError, CorruptError
from ...erofs.ids import BlobId
from ..config.backend import Registry, Remote, describe
from ..kernel.fd import Fd
from ..proto import worker as proto
from ..proto.packets import decoded
from .files import open_bootstrap
from .log import logger
from .origin import Origin
from .paths import StatePaths
from .prepared import Provide
from .worker_link import WorkerLink

_PATIENCE, _RANGE_PATIENCE = 280.0, 60.0  # seconds


class _Known(msgspec.Struct):
    """Which version of a published bootstrap is here."""

    version: str
    sha256: str
    identity: str


_KNOWN = msgspec.json.Decoder(_Known)


@dataclass(frozen=True, slots=True)
class Opened:
    """An image's bootstrap, of ``size`` bytes: a file here, or ``published`` and to be read in pieces.

    ``identity`` is that of a published one; a file of the user's has none.
    """

    identity: str
    file: Fd | None
    published: proto.Published | None
    size: int
    blobs: dict[str, int]  # blob id -> bytes of its uncompressed address space


class Fetcher:
    """Opens bootstraps, wherever they are."""

    def __init__(self, paths: StatePaths, link: WorkerLink) -> None:
        self._folder, self._link = paths.bootstraps, link
        self._locks: dict[str, asyncio.Lock] = {}

    def require(self, remote: Remote | None) -> None:
        """Something of this backend will be wanted."""
        if remote is not None:
            self._link.require(str(remote.__struct_config__.tag))

    async def bootstrap(self, origin: Origin, digest: str = "") -> int:
        """A descriptor of an image's bootstrap, fetched if need be.

        Args:
            digest: identity that it must have (``sha256:`` and the fs-verity digest), if one is demanded.
        """
        self.require(origin.remote)
        if not origin.name or origin.remote is None:
            return await self._local(origin.image, digest)
        key = _key(origin)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                return open_bootstrap(self._file(await self._fetched(origin, key, digest)))
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def opened(self, origin: Origin, digest: str = "") -> Opened:
        """The same without waiting for all of it, where it is published so that pieces of it can be verified."""
        remote = origin.remote
        if origin.name and remote is not None and self._load(_key(origin)) is None:
            self.require(remote)
            said = await self._link.ask(lambda ticket: proto.Peek(ticket, remote, origin.name), None, _RANGE_PATIENCE)
            assert isinstance(said, proto.Peeked)
            if said.identity:
                _demand(origin.image, said.identity, digest)
                published = proto.Published(remote, said.name, said.identity)
                return Opened(said.identity, None, published, said.size, dict(said.blobs))
        file = Fd(await self.bootstrap(origin, digest))
        known = self._load(_key(origin)) if origin.name else None
        return Opened(
            known.identity if known else "",
            file,
            None,
            os.fstat(file.fd).st_size,
            dict(await self._link.inspect(file.fd)),
        )

    async def _local(self, path: str, digest: str) -> int:
        fd = open_bootstrap(path)
        if digest:
            try:
                said = await self._link.ask(proto.Identify, fd, _PATIENCE)
                assert isinstance(said, proto.Fetched)
                _demand(path, said.identity, digest)
            except BaseException:
                os.close(fd)
                raise
        return fd

    async def _fetched(self, origin: Origin, key: str, digest: str) -> _Known:
        """What is here of a published bootstrap, after a look at the server."""
        assert origin.remote is not None
        known = self._load(key)
        fixed = isinstance(origin.remote, Registry) and origin.name.startswith("sha256:")
        if known is not None and (known.identity == digest or (fixed and not digest)):
            return known
        new = os.path.join(self._folder, f".new-{key}")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            said = await self._ask(origin, known, digest, fd)
        except BackendError as error:
            os.unlink(new)
            if known is None or not error.retryable:
                raise
            _demand(origin.image, known.identity, digest)
            logger().warning("server does not answer: using what is here", image=origin.image, error=error.message)
            return known
        except BaseException:
            os.unlink(new)
            raise
        finally:
            os.close(fd)
        if known is not None and said.version == known.version:
            os.unlink(new)
            _demand(origin.image, known.identity, digest)
            return known
        known = _Known(said.version, said.sha256, said.identity)
        if os.path.exists(self._file(known)):
            os.unlink(new)  # another name for it; the prepared image hangs on the file that is there
        else:
            os.rename(new, self._file(known))
        self._save(key, known)
        return known

    async def _ask(self, origin: Origin, known: _Known | None, digest: str, fd: int) -> proto.Fetched:
        remote, version = origin.remote, known.version if known else ""
        assert remote is not None
        said = await self._link.ask(
            lambda ticket: proto.FetchBootstrap(ticket, remote, origin.name, version, digest), fd, _PATIENCE
        )
        assert isinstance(said, proto.Fetched)
        return said

    def _file(self, known: _Known) -> str:
        return os.path.join(self._folder, f"{known.sha256}.meta")

    def _load(self, key: str) -> _Known | None:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            with open(os.path.join(self._folder, f"{key}.json"), "rb") as file:
                known = decoded(_KNOWN, file.read())
            if os.path.exists(self._file(known)):
                return known
        return None

    def _save(self, key: str, known: _Known) -> None:
        path = os.path.join(self._folder, f"{key}.json")
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.json.encode(known))
        os.replace(f"{path}.new", path)

    def provider(self, origin: Origin) -> Provide:
        """Gives ``prepare`` the bytes of an image's blobs."""

        async def provide(blob: BlobId, offset: int, length: int) -> tuple[int, int]:
            place = origin.find(blob)
            if isinstance(place, int):
                return place, 0
            fd = os.memfd_create("range", os.MFD_CLOEXEC)
            try:
                await self._link.ask(
                    lambda ticket: proto.FetchRange(ticket, place, blob, offset, length), fd, _RANGE_PATIENCE
                )
            except BaseException:
                os.close(fd)
                raise
            return fd, offset

        return provide


def _key(origin: Origin) -> str:
    """Name of the record of a published bootstrap."""
    assert origin.remote is not None
    return hashlib.sha256(f"{describe(origin.remote)} {origin.name}".encode()).hexdigest()[:32]


def _demand(image: str, identity: str, digest: str) -> None:
    if digest and identity != digest:
        raise CorruptError(f"{image} has the digest {identity}, not the one demanded")
