"""The cachefiles engine (Linux 5.19 to 6.x): images mounted by fsid, cached by the kernel itself.

The kernel asks for objects by name (``requests.py``): first the bootstrap (cookie: the fsid), then each device
(cookie: the blob id). What it is given for them, and what fills that, is in ``cachefiles_images.py``; here are the
mounts.

Names: an fsid is what was registered under it (by ``nydus-erofs mount``), else ``<fsid>.meta`` in one of the
configured blob folders or the configured backend. Images in one domain share blobs; without a domain the volume
is the fsid's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from weakref import WeakValueDictionary

from ....erofs.errors import BusyError, KernelError, NydusErofsError, ServiceError
from ....erofs.ids import blob_id
from ...config.service import Config
from ...kernel.cachefiles import Device
from ...kernel.fd import Fd
from ...proto import cachefiles as proto
from ...proto.control import MountStatus
from ...state.layout import PLAN
from ..children.errands import in_child
from ..disk import Disk
from ..images.bootstraps import Bootstraps
from ..images.places import Places, arrive, arrive_by_name
from ..images.prepared import Images
from ..log import logger
from ..paths import RunPaths, StatePaths, away
from ..stores.table import StoreTable
from ..tasks import background
from . import culling
from .base import MountOrder, mount_status
from .cachefiles_images import ServedImage, ServedImages
from .counters import EventCounters
from .fsid_mounts import FsidMount, bind_again, is_ours, live, mount, mounts_of
from .kept_objects import KeptObjects
from .names import Names, Registered
from .objects import ObjectTable
from .requests import Arrival, Requests
from .unmounting import unmount_ours

_TAG = "nydus-erofs"
_MOUNTING = 330.0  # seconds; mount(2) waits until its image is opened, and plans may have to be compared
_LATE_TRIES, _LATE_STEP = 100, 0.01  # a mount that was given up may be there a moment later


class CachefilesEngine:
    """Serves ``/dev/cachefiles``."""

    name = "cachefiles"

    def __init__(
        self,
        config: Config,
        state: StatePaths,
        disk: Disk,
        run: RunPaths,
        table: StoreTable,
        bootstraps: Bootstraps,
        device: Device,
    ) -> None:
        self.config, self._state, self._bootstraps, self._device = config, state, bootstraps, device
        self._objects = ObjectTable(table)
        self._prepared = Images(state, disk, config.segment_size, config.uids, localize=False)
        self._names = Names(
            os.path.join(run.root, "names.json"),
            os.path.join(state.root, "objects.json"),
            lambda key: os.path.join(state.store_of(key), PLAN),
        )
        self._images = ServedImages(state, table, self._objects, self._names, bootstraps, self._prepared)
        self._requests = Requests(device, self._objects, self._images, self._arrive)
        self.kept = KeptObjects(state.cachefiles, table, self._objects, self._images.find)
        self._targets: set[str] = set()  # of mounts under way
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._culling: asyncio.Task[None] | None = None

    def start(self) -> None:
        if not self._names.knows_cache:
            self._empty_cache()
        os.makedirs(self._state.cachefiles, mode=0o700, exist_ok=True)
        limits = proto.CullLimits(self.config.cache_run, self.config.cache_cull, self.config.cache_stop)
        self._device.bind(proto.set_up(self._state.cachefiles, _TAG, limits))
        self._requests.start()
        dead: dict[tuple[str, str], list[FsidMount]] = {}
        for one in live():
            dead.setdefault((one.volume, one.fsid), []).append(one)
        for mounts in dead.values():
            background(self._revive(mounts), "a dead mount of a service that ended")

    def _empty_cache(self) -> None:
        """Have the kernel find nothing: it would take whatever has the right name and size for the right bytes."""
        cache = os.path.join(self._state.cachefiles, "cache")
        try:
            os.rename(cache, away(cache))  # removed with everything else that is left over
        except FileNotFoundError:
            return
        except OSError as error:
            raise ServiceError(
                f"{cache}: nobody knows what it holds, and it cannot be put away: {error.strerror}", hint="remove it"
            ) from None
        logger().warning("the kernel's cache starts empty: there is no record of what it held", cache=cache)

    async def _arrive(self, volume: str, fsid: str) -> Arrival:
        """What an fsid means."""
        registered = self._names.registered(volume, fsid)
        if registered is None:
            origin, local = await arrive_by_name(fsid, self.config)
        else:
            origin, local = await arrive(registered.given, self.config)
        prefetch = self.config.prefetch if registered is None else registered.prefetch
        return Arrival(origin, await self._bootstraps.opened(origin, local), prefetch)

    # --- mounts ---

    async def mount(self, order: MountOrder) -> None:
        if order.target in self._targets:
            raise BusyError(f"another image is being mounted on {order.target}", hint="choose another mountpoint")
        self._targets.add(order.target)
        try:
            origin, local = await arrive(order.given, self.config, order.auth, order.target)
            opened = await self._bootstraps.opened(origin, local, order.digest)
            fsid, domain = self._images.identity(opened), self.config.domain
            if self._prepared.find(fsid) is None:
                with Places(origin, is_ours) as places:  # says now what would be missing later
                    await places.look_for(map(blob_id, opened.blobs))
                    for blob in opened.blobs:
                        if isinstance(place := places.take(blob_id(blob)), Fd):
                            place.close()
            async with self._lock(domain or fsid, fsid):
                await self._mount(order, fsid, domain, Arrival(origin, opened, order.prefetch))
            logger().info("mounted", image=origin.image, target=order.target, fsid=fsid, domain=domain)
        finally:
            self._targets.discard(order.target)

    def _lock(self, volume: str, fsid: str) -> asyncio.Lock:
        """One at a time mounts an image."""
        return self._locks.setdefault((volume, fsid), asyncio.Lock())

    async def _mount(self, order: MountOrder, fsid: str, domain: str, arrival: Arrival) -> None:
        volume = domain or fsid
        if mounts := mounts_of(volume, fsid):
            if self._images.find(volume, fsid) is None:
                raise BusyError(
                    f"{mounts[0].target} is a mount of this image, dead since the service before ended",
                    hint="end what uses it, unmount it, then try again",
                )
            await self._bind(mounts, order.target, order.flags)
            return
        before = self._names.registered(volume, fsid)
        try:
            await self._names.register(volume, fsid, Registered(order.given, order.prefetch))
            await self._mount_new(FsidMount(volume, fsid, domain or None, order.target, 0, order.flags), arrival)
        except BaseException:
            with contextlib.suppress(NydusErofsError):
                await self._names.register(volume, fsid, before)
            raise

    async def _mount_new(self, new: FsidMount, arrival: Arrival) -> None:
        """Mount what is not mounted anywhere; what the image is refused for is raised."""
        call = partial(mount, new.fsid, new.domain, new.target, new.flags)
        try:
            async with self._all_or_nothing(new):
                with self._requests.expecting(new.volume, new.fsid, arrival):
                    await in_child(call, f"mounting on {new.target}", _MOUNTING)
        except KernelError as error:
            raise arrival.error or error from None

    async def _bind(self, mounts: list[FsidMount], target: str, flags: int) -> None:
        async with self._all_or_nothing(mounts[0]._replace(target=target)):
            await in_child(partial(bind_again, mounts, target, flags), f"mounting on {target}")

    @contextlib.asynccontextmanager
    async def _all_or_nothing(self, new: FsidMount) -> AsyncIterator[None]:
        """If mounting fails, or is given up, nothing is left of it: a child that was ended may have mounted."""
        try:
            yield
        except (NydusErofsError, OSError):
            await self._take_back(new, tries=1)
            raise
        except asyncio.CancelledError:
            await self._take_back(new)
            raise

    async def _take_back(self, wanted: FsidMount, tries: int = _LATE_TRIES) -> None:
        """Unmount what a child that was ended has mounted, or will have in a moment."""
        for _ in range(tries):
            for one in mounts_of(wanted.volume, wanted.fsid):
                if one.target == wanted.target:
                    with contextlib.suppress(NydusErofsError):
                        await self._unmount(one)
                    return
            await asyncio.sleep(_LATE_STEP)

    async def _revive(self, mounts: list[FsidMount]) -> None:
        """The mounts of an image whose service ended are dead for good: mount them again, if nobody uses them."""
        first = mounts[0]
        async with self._lock(first.volume, first.fsid):
            try:
                arrival = await self._arrive(first.volume, first.fsid)
                for one in reversed(mounts):
                    await self._unmount(one)
                await self._mount_new(first, arrival)
                for one in mounts[1:]:
                    await self._bind(mounts_of(first.volume, first.fsid), one.target, one.flags)
            except (NydusErofsError, OSError) as error:
                logger().error(
                    "dead mount of a service that ended", target=first.target, error=str(error),
                    hint="end what uses it, unmount it and mount it again",
                )  # fmt: skip
            else:
                logger().info("mounted again", target=first.target, mounts=len(mounts))

    async def umount(self, target: str) -> None:
        ours = [one for one in live() if one.target == target]
        if not ours:
            raise ServiceError(f"nothing of this service is mounted on {target}", hint="see 'nydus-erofs status'")
        await self._unmount(ours[-1])
        logger().info("unmounted", target=target)

    async def _unmount(self, one: FsidMount) -> None:
        await in_child(partial(unmount_ours, one.target, one.mount_id), f"unmounting {one.target}")

    async def reconcile(self) -> None:
        """The kernel tells by itself what it does not use any more; here it may be short of room."""
        if self._culling is None and culling.short(self._state.cachefiles, self.config.cache_cull):
            self._culling = background(self._make_room(), "no room can be made in the cache")

    async def _make_room(self) -> None:
        try:
            gone = await culling.make_room(self._device, self._state.cachefiles, self.config.cache_run)
            if gone:
                logger().info("made room", files=gone)
        finally:
            self._culling = None

    def on_lost(self) -> bool:
        """The kernel's cache is written to directly: who writes is told."""
        return False

    def on_nobody_writes(self) -> None:
        pass

    async def stop(self) -> list[str]:
        for one in reversed(live()):
            with contextlib.suppress(NydusErofsError):
                await self.umount(one.target)
        # What was dead before nobody can help.
        return [one.target for one in live() if self._images.find(one.volume, one.fsid) is not None]

    def close(self) -> None:
        self._requests.close()
        if self._culling is not None:
            self._culling.cancel()
        self._device.close()

    # --- status ---

    def describe(self) -> list[MountStatus]:
        found = ((one, self._images.find(one.volume, one.fsid)) for one in live())
        return [self._status(one, image) for one, image in found if image is not None]

    def _status(self, one: FsidMount, image: ServedImage) -> MountStatus:
        names = (image.fsid, *image.opened.blobs)
        objects = [o for name in names if (o := self._objects.find(image.volume, name)) is not None]
        events = sum((o.counters for o in objects), EventCounters())
        stores = [store for o in objects for store in o.stores.values()]
        status = mount_status(
            one.target, image.origin, prefetch=image.prefetch, detached=False, stores=stores, events=events
        )
        status.fsid, status.domain = one.fsid, one.domain
        for o in objects:
            status.readers_waiting += len(o.early)
            if o.hopeless or o.stalled:
                status.failures, status.last_error = status.failures + 1, o.trouble
            elif o.trouble:
                status.waiting_for = o.trouble
        for blob, size in image.opened.blobs.items():
            cache_object = self._objects.find(image.volume, blob)
            if cache_object is None or not cache_object.stores:  # its plan is being made
                status.bytes_total += size
                status.complete = False
        return status
