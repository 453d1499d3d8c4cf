"""Prepared images: taken from disk, or made by ``prepare`` and taken over from it.

``prepare`` has no privilege and is not believed. What it leaves is looked at, hashed and moved to its place by a
child of the keeper (``adopt.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from ....erofs.errors import FormatError, NydusErofsError
from ....erofs.ids import BlobId, blob_id
from ...config.service import Uids
from ...kernel import channel
from ...kernel.fd import Fd
from ...processes import PREPARE
from ...proto import prepare as proto
from ...proto.fault import Fault
from ...state import image
from ...state.layout import PLAN, STORES
from ..children.errands import Do, remove, said_by
from ..children.spawn import ended, spawn
from ..disk import Disk
from ..paths import NEW, StatePaths, new_name
from ..stores import epoch
from ..tasks import background
from . import adopt

_PATIENCE = 300.0  # seconds
_MOST = 16  # prepares at a time, of which all but one wait for bytes
FAILED = "preparing the image failed: "


# Bytes of a blob, from an offset: a file with them, and the blob offset of its start.
Provide = Callable[[BlobId, int, int], Awaitable[tuple[Fd, int]]]


class Images:
    """Prepared images by id, each made once, however many want it. One ``prepare`` works at a time; those that wait
    for bytes of a server hold up nobody, and are few."""

    def __init__(self, paths: StatePaths, disk: Disk, segment_size: int, uids: Uids, *, localize: bool) -> None:
        self._paths, self._disk, self._uids = paths, disk, uids
        self._request = proto.Prepare(segment_size, localize)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._one, self._few = asyncio.Lock(), asyncio.Semaphore(_MOST)
        self._failed: list[str] = []  # folders to be removed
        self._fresh: dict[str, str] = {}  # images that may not be on disk -> the folder that became theirs

    def id_of(self, bootstrap: Fd) -> str:
        return image.image_id(bootstrap.fd, self._request.segment_size)

    @property
    def busy(self) -> bool:
        """Whether another image is being prepared, so that one must wait."""
        return self._one.locked()

    async def get(
        self, image_id: str, bootstrap: Fd, provide: Provide, *, anew: bool = False, do: Do = said_by
    ) -> image.ImageRecord:
        """The prepared image of an open bootstrap whose blobs ``provide`` gives the bytes of.

        Args:
            anew: what is there turned out to be damaged.
            do: how an errand is done.
        """

        async def provide_meanwhile(blob: BlobId, offset: int, length: int) -> tuple[Fd, int]:
            self._one.release()
            try:
                return await provide(blob, offset, length)
            finally:
                await self._one.acquire()

        async with self._locks.setdefault(image_id, asyncio.Lock()):
            if not anew and (found := self.find(image_id)) is not None:
                return found
            async with self._few, self._one:
                return await self._make(image_id, bootstrap, provide_meanwhile, do)

    def find(self, image_id: str) -> image.ImageRecord | None:
        """An image that is prepared already."""
        directory = self._paths.image(image_id)
        if not os.path.isdir(directory) or not epoch.trusted(directory):
            return None
        try:
            record = image.load(directory)
        except FormatError:
            return None
        if self._request.localize and not record.boot_size:
            return None
        if not all(os.path.exists(os.path.join(self._paths.store_of(ref.key), PLAN)) for ref in record.stores):
            return None
        return record

    async def _make(self, image_id: str, bootstrap: Fd, provide: Provide, do: Do) -> image.ImageRecord:
        """``images/<id>``, and its stores in ``store/<key>``. ``provide``'s errors pass through."""
        work = os.path.join(self._paths.images, new_name(f"{NEW}{image_id}-"))
        os.mkdir(work, 0o700)
        try:
            os.mkdir(os.path.join(work, STORES))
            for folder in (os.path.join(work, STORES), work):
                os.chown(folder, self._uids.prepare, self._uids.prepare)
            await self._run(work, bootstrap, provide)
            self._fresh.pop(image_id, None)
            final, uid = self._paths.image(image_id), self._uids.verifier
            take_over = partial(adopt.adopt, work, final, self._paths.store, uid, self._request.localize)
            await do(take_over, "taking the image over", _PATIENCE)
            self._fresh[image_id] = work
            self._disk.write_out_later(partial(self._settle, image_id, work))  # once its mount has what it needs
            background(self._clean_up(), "what is left over is not removed")
            return image.load(final)
        except BaseException:
            self._failed.append(work)
            await self._remove_failed()
            raise

    async def _clean_up(self) -> None:
        await remove(self._paths.gone())
        await self._remove_failed()

    async def _remove_failed(self) -> None:
        """Folders of images that could not be made; what is left of them goes with the next one."""
        failed, self._failed = self._failed, []
        await remove(failed)
        self._failed += filter(os.path.lexists, failed)

    async def _run(self, work: str, bootstrap: Fd, provide: Provide) -> None:
        """One prepare process, from request to result."""
        pid, sock = spawn(PREPARE, self._uids.prepare)
        with sock:
            try:
                with Fd(os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as folder:
                    channel.send(sock, proto.encode(self._request), [bootstrap, folder])
                sock.setblocking(False)
                result = await asyncio.wait_for(_converse(sock, provide), _PATIENCE)
            except TimeoutError:
                raise FormatError(f"preparing the image took more than {_PATIENCE:.0f} s") from None
            except ConnectionError:
                raise FormatError(FAILED + "the process died", hint="see the log") from None
            finally:
                # It has nothing more to say; whatever it still does is not wanted.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await ended(PREPARE, pid)
        if isinstance(result, proto.NotPrepared):
            raise result.fault.error()

    def _settle(self, image_id: str, work: str, written: bool) -> None:
        if self._fresh.get(image_id) == work:  # else another one has come in its place, and may not be on disk
            del self._fresh[image_id]
            if written:
                epoch.settle(self._paths.image(image_id))


async def _converse(sock: socket.socket, provide: Provide) -> proto.Prepared | proto.NotPrepared:
    """Answer its requests for bytes until it says how it went. What else it says ends it."""
    while True:
        packet = await asyncio.get_running_loop().sock_recv(sock, proto.MAX_MESSAGE)
        if not packet:
            raise ConnectionResetError
        try:
            message = proto.decode_for_keeper(packet)
        except msgspec.DecodeError:
            raise FormatError(FAILED + "the process sent nonsense") from None
        if not isinstance(message, proto.NeedBytes):
            return message
        try:
            file, base = await provide(blob_id(message.blob_id), message.offset, message.length)
        except NydusErofsError as error:
            channel.send(sock, proto.encode(proto.NoBytes(Fault.of(error))))
            continue
        with file:
            channel.send(sock, proto.encode(proto.Bytes(base)), [file])
