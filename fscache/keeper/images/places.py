"""Where an image and its blobs are: looked up, and opened, by children of the keeper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import msgspec

from ....erofs.errors import BackendError, BlobNotFoundError, NydusErofsError
from ....erofs.ids import BlobId
from ...config.backend import Remote
from ...config.service import Config
from ...kernel.fd import Fd
from ...proto.fault import Fault
from ..children.errands import Say, said_by
from ..stores import epoch
from .files import Own, check_target, open_blob, open_bootstrap
from .origin import ImageRequest, Origin, by_name, resolve

_ORIGIN = msgspec.json.Decoder(Origin)
_FAULT = msgspec.json.Decoder(Fault)


async def arrive(
    given: ImageRequest, config: Config, auth: str = "", target: str | None = None
) -> tuple[Origin, Fd | None]:
    """What an image's name means, and its bootstrap if that is a file here.

    Args:
        auth: for a registry, base64 of user:password, if the backend's configuration has none.
        target: something is to be mounted there.

    Raises:
        ConfigError: a name or a configuration that makes no sense.
        FormatError: there is no such file.
        ServiceError: nothing can be mounted on ``target``.
    """

    def find() -> Origin:
        if target is not None:
            check_target(target)
        return resolve(given, config, auth)

    return await _arrive(find, given.image)


async def arrive_by_name(fsid: str, config: Config) -> tuple[Origin, Fd | None]:
    """The same for the name in a plain mount(8); BlobNotFoundError when it means nothing."""
    return await _arrive(lambda: by_name(fsid, config), fsid)


async def _arrive(find: Callable[[], Origin], name: str) -> tuple[Origin, Fd | None]:
    def call(say: Say) -> None:
        origin = find()
        if origin.name:
            say(msgspec.json.encode(origin), [])
        else:
            with open_bootstrap(origin.image) as bootstrap:
                say(msgspec.json.encode(origin), [bootstrap])

    (packet,) = await said_by(call, f"looking for {name}")
    return _ORIGIN.decode(packet.data), packet.fds[0] if packet.fds else None


class Places:
    """Where the blobs of an image are, each looked up once. Owns the descriptors.

    Args:
        own: tells mounts of this service.
    """

    def __init__(self, origin: Origin, own: Own) -> None:
        self.origin, self._own = origin, own
        self._found: dict[BlobId, Fd | Fault] = {}

    async def look_for(self, blobs: Iterable[BlobId], begin: Sequence[str] = ()) -> None:
        """Look for blobs in the image's folders.

        Args:
            begin: folders that will be written to: that is noted on disk (``epoch.begin``), by the same child.
        """
        origin, own = self.origin, self._own
        wanted = [blob for blob in dict.fromkeys(blobs) if blob not in self._found] if origin.folders else []
        if not wanted and not begin:
            return

        def call(say: Say) -> None:
            for folder in begin:
                epoch.begin(folder)
            for blob in wanted:
                try:
                    with open_blob(origin.folders, blob, own) as fd:
                        say(b"", [fd])
                except BackendError as error:
                    say(msgspec.json.encode(Fault.of(error)), [])

        packets = await said_by(call, f"opening the blobs of {origin.image}")
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
