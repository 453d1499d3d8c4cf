"""Where an image and its blobs are: looked up, and opened, by children of the keeper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Self

import msgspec

from ....erofs.errors import BackendError, BlobNotFoundError, NydusErofsError
from ....erofs.ids import BlobId
from ...config.backend import Remote
from ...config.service import Config
from ...kernel.fd import Fd
from ...proto.fault import Fault
from ..children.errands import Do, Say, said_by
from ..stores import epoch
from .files import Own, check_target, open_blob, open_bootstrap
from .origin import ImageRequest, Origin, by_name, resolve

_ORIGIN = msgspec.json.Decoder(Origin)
_FAULT = msgspec.json.Decoder(Fault)


async def arrive(
    given: ImageRequest, config: Config, auth: str = "", target: str | None = None, do: Do = said_by
) -> tuple[Origin, Fd | None]:
    """What an image's name means, and its bootstrap if that is a file here.

    Args:
        auth: for a registry, base64 of user:password, if the backend's configuration has none.
        target: something is to be mounted there.
        do: how an errand is done.

    Raises:
        ConfigError: a name or a configuration that makes no sense.
        FormatError: there is no such file.
        ServiceError: nothing can be mounted on ``target``.
    """

    return await _arrive(partial(_find, given, config, auth, target), given.image, do)


async def arrive_by_name(fsid: str, config: Config) -> tuple[Origin, Fd | None]:
    """The same for the name in a plain mount(8); BlobNotFoundError when it means nothing."""
    return await _arrive(partial(by_name, fsid, config), fsid, said_by)


async def _arrive(find: partial[Origin], name: str, do: Do) -> tuple[Origin, Fd | None]:
    (packet,) = await do(partial(_open, find), f"looking for {name}")
    return _ORIGIN.decode(packet.data), packet.fds[0] if packet.fds else None


# --- in children ---


def _find(given: ImageRequest, config: Config, auth: str, target: str | None) -> Origin:
    if target is not None:
        check_target(target)
    return resolve(given, config, auth)


def _open(find: Callable[[], Origin], say: Say) -> None:
    origin = find()
    if origin.name:
        say(msgspec.json.encode(origin), [])
    else:
        with open_bootstrap(origin.image) as bootstrap:
            say(msgspec.json.encode(origin), [bootstrap])


def _open_blobs(folders: Sequence[str], blobs: Sequence[BlobId], begin: Sequence[str], own: Own, say: Say) -> None:
    for folder in begin:
        epoch.begin(folder)
    for blob in blobs:
        try:
            with open_blob(folders, blob, own) as fd:
                say(b"", [fd])
        except BackendError as error:
            say(msgspec.json.encode(Fault.of(error)), [])


# --- in the keeper ---


class Places:
    """Where the blobs of an image are, each looked up once. Owns the descriptors.

    Args:
        own: tells mounts of this service.
        do: how errands are done.
    """

    def __init__(self, origin: Origin, own: Own, do: Do = said_by) -> None:
        self.origin, self._own, self._do = origin, own, do
        self._found: dict[BlobId, Fd | Fault] = {}

    async def look_for(self, blobs: Iterable[BlobId], begin: Sequence[str] = ()) -> None:
        """Look for blobs in the image's folders.

        Args:
            begin: folders that will be written to: that is noted on disk (``epoch.begin``), by the same child.
        """
        origin = self.origin
        wanted = [blob for blob in dict.fromkeys(blobs) if blob not in self._found] if origin.folders else []
        if not wanted and not begin:
            return

        call = partial(_open_blobs, origin.folders, wanted, begin, self._own)
        packets = await self._do(call, f"opening the blobs of {origin.image}")
        for blob, packet in zip(wanted, packets, strict=True):
            self._found[blob] = packet.fds[0] if packet.fds else _FAULT.decode(packet.data)

    def take(self, blob: BlobId) -> Fd | Remote:
        """A descriptor of a blob that was looked for, or where else it should be.

        Raises BlobNotFoundError for nowhere, BackendError when it is here and cannot be opened.
        """
        found = self._found.get(blob)
        if isinstance(found, Fd):
            return found.dup()
        error: NydusErofsError = found.error() if found else BlobNotFoundError(f"blob {blob} is in no folder")
        if self.origin.remote is not None and isinstance(error, BlobNotFoundError):
            return self.origin.remote
        raise error

    async def find(self, blob: BlobId) -> Fd | Remote:
        """Both in one."""
        await self.look_for([blob])
        return self.take(blob)

    def close(self) -> None:
        for found in self._found.values():
            if isinstance(found, Fd):
                found.close()
        self._found.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
