"""What the kernel asks through ``/dev/cachefiles``: opens, reads and closes of objects, each one answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from ....erofs.errors import KernelError, NydusErofsError
from ...config.reference import check_name
from ...kernel.cachefiles import Device
from ...kernel.fd import Fd
from ...proto import cachefiles as proto
from ..images.bootstraps import Opened
from ..images.origin import Origin
from ..log import logger
from ..tasks import background
from ..trouble import report
from .cachefiles_images import ServedImage, ServedImages
from .names import Cached
from .objects import CacheObject, ObjectTable

_BATCH = 64  # messages handled before other work gets its turn
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(eq=False, slots=True)
class Arrival:
    """An image that is about to be opened, and why it was refused if it was."""

    origin: Origin
    opened: Opened
    prefetch: bool
    error: NydusErofsError | None = None
    opening: asyncio.Task[tuple[Cached, ServedImage | None]] | None = None  # while the kernel waits for it


class Requests:
    """Reads the device and answers.

    Args:
        arrive: finds what an fsid in a volume means.
    """

    def __init__(
        self,
        device: Device,
        objects: ObjectTable,
        images: ServedImages,
        arrive: Callable[[str, str], Awaitable[Arrival]],
    ) -> None:
        self._device, self._objects, self._images, self._arrive = device, objects, images, arrive
        self._expected: dict[tuple[str, str], Arrival] = {}  # by volume and fsid

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._device.fd, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._device.fd)

    @contextlib.contextmanager
    def expecting(self, volume: str, fsid: str, arrival: Arrival) -> Iterator[None]:
        """While an image is being mounted it is known what its fsid means. An open that the kernel still waits for at
        the end is refused: the mount was given up, and could not end otherwise."""
        self._expected[volume, fsid] = arrival
        try:
            yield
        finally:
            del self._expected[volume, fsid]
            if arrival.opening is not None:
                arrival.opening.cancel()

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                message = self._device.read()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise KernelError(f"the kernel asks for nothing any more: {error.strerror}") from None
                report("an object is not served", error)  # the kernel has failed the open
                return
            match message:
                case None:
                    return
                case proto.Read() as read:
                    self._objects.on_read(read)
                case proto.Close() as close:
                    self._close(close.object_id)
                case proto.Open() as message:
                    background(self._open(message, Fd(message.fd)), "an object is not served")

    def _close(self, object_id: int) -> None:
        if (cache_object := self._objects.on_close(object_id)) is not None:
            self._images.closed(cache_object)

    async def _open(self, message: proto.Open, fd: Fd) -> None:
        """Answer an open, whatever happens: mount(2) cannot be killed while it waits."""
        try:
            cached, image = await self._resolved(message.volume, message.cookie)
        except (NydusErofsError, OSError, asyncio.CancelledError) as error:
            why = str(error) or "the mount was given up"
            logger().error("not served", volume=message.volume, name=message.cookie, error=why)
            number = error.errno if isinstance(error, NydusErofsError) else errno.EIO
            with contextlib.suppress(OSError):
                self._device.command(proto.refused(message.msg_id, number or errno.EIO))
            fd.close()
            return
        cache_object = CacheObject(fd, message.volume, message.cookie, cached)
        self._objects.add(message.object_id, cache_object)
        if image is not None:
            image.cache_object = cache_object
        try:
            self._device.command(proto.opened(message.msg_id, cached.size))
        except OSError as error:
            logger().warning("the kernel did not want it any more", name=message.cookie, error=error.strerror)
            self._close(message.object_id)
        else:
            self._images.serve(cache_object, image)

    async def _resolved(self, volume: str, cookie: str) -> tuple[Cached, ServedImage | None]:
        """The same as ``_resolve``, for an image that is being mounted until that is given up."""
        arrival = self._expected.get((volume, cookie))
        if arrival is None:
            return await self._resolve(volume, cookie, None)
        arrival.opening = asyncio.get_running_loop().create_task(self._resolve(volume, cookie, arrival))
        try:
            return await arrival.opening
        except NydusErofsError as error:
            arrival.error = error
            raise
        finally:
            arrival.opening = None

    async def _resolve(self, volume: str, cookie: str, arrival: Arrival | None) -> tuple[Cached, ServedImage | None]:
        """What an object is opened with, and its image if it is the bootstrap of one."""
        if (cached := await self._images.open_blob(volume, cookie)) is not None:
            return cached, None
        found = arrival or await self._arrive(volume, check_name("fsid", cookie))
        image = ServedImage(cookie, volume, found.origin, found.prefetch, found.opened)
        return await self._images.open_bootstrap(image), image
