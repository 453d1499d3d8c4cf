"""The cachefiles engine (Linux 5.19 to 6.x): images mounted by fsid, cached by the kernel itself.

The kernel asks for objects by name: first the bootstrap (cookie: the fsid), then each device (cookie: the
blob id). A bootstrap is an object like any other and is read by the kernel as it needs it, so mounting does
not wait for metadata; what the data needs (digests, chunk-info) is prepared behind the mount's back.

Names: an fsid is what was registered under it (by ``nydus-erofs mount``), else ``<fsid>.meta`` in one of the
configured blob folders or the configured backend. Images in one domain share blobs; without a domain the volume
is the fsid's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ....erofs.errors import (
    BackendError,
    BlobNotFoundError,
    BusyError,
    FormatError,
    KernelError,
    NydusErofsError,
    ServiceError,
)
from ....erofs.ids import blob_id
from ....erofs.record import round_up
from ...config.backend import Remote
from ...config.reference import check_name
from ...config.service import Config
from ...kernel import mount as kernel
from ...kernel.cachefiles import Device
from ...kernel.fd import Fd
from ...proto import cachefiles as proto
from ...proto import worker
from ...state.layout import PLAN
from ...state.plan import Plan
from ..bootstraps import Fetcher, Opened
from ..log import logger
from ..origin import Origin, by_name, resolve
from ..paths import RunPaths, StatePaths
from ..prepared import Images
from ..stores import KeptStore, StoreTable
from ..worker_link import WorkerLink
from . import culling
from .base import MountOrder, mount_status
from .common import check_target, in_child
from .counters import EventCounters
from .names import Names
from .objects import CacheObject, ObjectTable

TAG = "nydus-erofs"
_METADATA_SEGMENT = 128 << 10  # bytes of a bootstrap that are loaded at once
_AGAIN = 1.0  # seconds until what a server has of an image is asked for again
_BATCH = 64  # messages handled before other work gets its turn


@dataclass(eq=False, slots=True)
class _Image:
    """One bootstrap that the kernel has open, or that was registered."""

    fsid: str
    volume: str
    origin: Origin
    prefetch: bool
    opened: Opened | None = None  # its bootstrap, as it was when it was opened
    store: KeptStore | None = None  # of the bootstrap's object
    blobs: dict[str, int] = field(default_factory=dict)  # blob id -> bytes of its object
    plans: asyncio.Task[dict[str, str]] | None = None  # blob id -> key of its plan


class CachefilesEngine:
    """Serves ``/dev/cachefiles``."""

    name = "cachefiles"

    def __init__(
        self,
        config: Config,
        state: StatePaths,
        run: RunPaths,
        table: StoreTable,
        fetcher: Fetcher,
        link: WorkerLink,
        device: Device,
    ) -> None:
        self._fetcher = fetcher
        self._config, self._state, self._table, self._link, self._device = config, state, table, link, device
        self._objects = ObjectTable(table)
        self._images = Images(state, config.segment_size, config.uids, localize=False)
        self._names = Names(os.path.join(run.root, "names.json"), os.path.join(state.root, "objects.json"))
        self._served: dict[tuple[str, str], _Image] = {}  # (volume, fsid) -> image
        self._expected: dict[str, Opened] = {}  # by fsid, while it is being mounted
        self._cache = os.path.join(state.root, "cachefiles")
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        os.makedirs(self._cache, mode=0o700, exist_ok=True)
        limits = proto.Limits(self._config.cache_run, self._config.cache_cull, self._config.cache_stop)
        self._device.bind(proto.set_up(self._cache, TAG, limits))
        asyncio.get_running_loop().add_reader(self._device.fd, self._messages)
        for entry in self._live():
            self._spawn(self._revive(entry))

    async def _revive(self, entry: kernel.MountEntry) -> None:
        """A mount of a service that ended is dead for good: mount it again, if nobody uses it."""
        try:
            await self._unmount(entry.target)
            names = (f"{name}={entry.options[name]}" for name in ("fsid", "domain_id") if name in entry.options)
            await in_child(self._outside(lambda: kernel.mount_fsid(",".join(names), entry.target)))
        except NydusErofsError as error:
            logger().error(
                "dead mount of a service that ended", target=entry.target, error=str(error),
                hint="end what uses it, unmount it and mount it again",
            )  # fmt: skip
        else:
            logger().info("mounted again", target=entry.target)

    def _outside(self, call: Callable[[], None]) -> Callable[[], None]:
        """The call as a child process makes it: without the device, or it could never be killed while it waits."""
        device = self._device

        def run() -> None:
            device.close()
            call()

        return run

    def _messages(self) -> None:
        for _ in range(_BATCH):
            message = self._device.read()
            match message:
                case None:
                    return
                case proto.Read():
                    self._objects.on_read(message)
                case proto.Close():
                    self._objects.on_close(message)
                    self._forget()
                case proto.Open():
                    self._spawn(self._open(message))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, message: proto.Open) -> None:
        """Answer an open, whatever happens: mount(2) cannot be killed while it waits."""
        try:
            size, then = await self._resolve(message)
        except Exception as error:
            logger().error("not served", volume=message.volume, name=message.cookie, error=str(error))
            number = error.errno if isinstance(error, NydusErofsError) else errno.EIO
            with contextlib.suppress(OSError):
                self._device.command(proto.refused(message.msg_id, number))
            os.close(message.fd)
            if not isinstance(error, (NydusErofsError, OSError)):
                raise
            return
        cache_object = CacheObject(message.fd, message.volume, message.cookie)
        self._objects.add(message.object_id, cache_object)
        try:
            self._device.command(proto.opened(message.msg_id, size))
        except OSError as error:
            logger().warning("the kernel did not want it any more", name=message.cookie, error=error.strerror)
            self._objects.on_close(proto.Close(message.msg_id, message.object_id))
            return
        then(cache_object)

    async def _resolve(self, message: proto.Open) -> tuple[int, Callable[[CacheObject], None]]:
        """The size of the object, and what to do once the kernel has it."""
        volume, cookie = message.volume, message.cookie
        known = (image for image in self._served.values() if image.volume == volume and cookie in image.blobs)
        image = next(known, None)
        if image is not None:
            size = self._names.size_of(volume, cookie, cookie, image.blobs[cookie])
            return size, lambda cache_object: self._spawn(self._serve_blob(cache_object))
        return await self._resolve_bootstrap(message.volume, message.cookie)

    async def _resolve_bootstrap(self, volume: str, fsid: str) -> tuple[int, Callable[[CacheObject], None]]:
        check_name("fsid", fsid)
        registered = self._names.registered(volume, fsid)
        if registered is None:
            image = _Image(fsid, volume, by_name(fsid, self._config), self._config.prefetch)
        else:
            image = _Image(fsid, volume, resolve(registered.given, self._config), registered.prefetch)
        image.opened = opened = self._expected.get(fsid) or await self._fetcher.opened(image.origin)
        image.blobs = opened.blobs
        self._served[volume, fsid] = image
        try:
            await self._share(image)
        except BaseException:
            del self._served[volume, fsid]
            raise
        size = self._names.size_of(volume, fsid, self._identity(opened), round_up(opened.size, proto.BLOCK_SIZE))
        return size, lambda cache_object: self._serve_bootstrap(image, cache_object)

    def _identity(self, opened: Opened) -> str:
        """What changes when a bootstrap does."""
        if opened.identity:
            return opened.identity.rpartition(":")[2][:32]
        assert opened.file is not None
        return self._images.id_of(opened.file.fd)

    async def _share(self, image: _Image) -> None:
        """Join images of the domain that use the same blobs; FormatError when they disagree about one.

        What the kernel has of a blob is given to all of them, whoever it was fetched for.
        """
        for blob, size in image.blobs.items():
            others = (other.blobs.get(blob, size) for other in self._served.values() if other.volume == image.volume)
            if any(other != size for other in others):
                raise FormatError(
                    f"blob {blob} has another size in another image of domain {image.volume}",
                    hint="mount one of the images in another domain",
                )
            cache_object = self._objects.find(image.volume, blob)
            if cache_object is not None:
                await self._fill(image, cache_object)
            elif self._names.holds(image.volume, blob):
                self._names.agree(image.volume, blob, self._state.store_of((await self._plans(image))[blob]))

    async def _plans(self, image: _Image) -> dict[str, str]:
        """Keys of the plans of an image's blobs, made once they are needed: mounting does not wait for them."""
        if image.plans is None or (image.plans.done() and image.plans.exception() is not None):
            image.plans = asyncio.create_task(self._prepare(image))
            image.plans.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody asks
        return await asyncio.shield(image.plans)

    async def _prepare(self, image: _Image) -> dict[str, str]:
        assert image.opened is not None
        file = image.opened.file
        if file is None:  # all of it is needed for this
            assert image.opened.published is not None
            file = Fd(await self._fetcher.bootstrap(image.origin, image.opened.published.identity))
            if image.store is not None and self._table.is_open(image.store):
                self._table.add_source(image.store, os.dup(file.fd))
                self._table.prefetch(image.store, True)
        provide = self._fetcher.provider(image.origin)
        record = await self._images.get(self._images.id_of(file.fd), file.fd, provide)
        return {ref.blob_id: ref.key for ref in record.stores}

    def _serve_bootstrap(self, image: _Image, cache_object: CacheObject) -> None:
        assert image.opened is not None
        size, file, published = image.opened.size, image.opened.file, image.opened.published
        sizes = [
            round_up(min(_METADATA_SEGMENT, size - start), proto.BLOCK_SIZE)
            for start in range(0, size, _METADATA_SEGMENT)
        ]
        image.store = self._objects.add_store(
            cache_object,
            "",
            sizes,
            lambda number: worker.OpenObject(number, size, _METADATA_SEGMENT, published=published),
            lambda: [os.dup(file.fd)] if file is not None else [],
        )
        self._objects.serve(cache_object)
        if file is not None:
            self._table.prefetch(image.store, True)

    async def _serve_blob(self, cache_object: CacheObject) -> None:
        """Once the plans of all images that use a blob are there, fill its object; until then its readers wait.

        What a server has of them may be out of reach for a while: readers get EIO when that lasts too long, and are
        served once it is back.
        """
        since = time.monotonic()
        while cache_object in self._objects.all():
            try:
                for image in list(self._served.values()):
                    if image.volume == cache_object.volume and cache_object.cookie in image.blobs:
                        await self._fill(image, cache_object)
            except (NydusErofsError, OSError) as error:
                passing = isinstance(error, BackendError) and error.retryable
                if not cache_object.trouble:
                    logger().error(
                        "blob cannot be served", blob=cache_object.cookie, error=str(error), passing=passing
                    )
                cache_object.trouble = str(error)
                if not passing or time.monotonic() - since >= self._config.patience:
                    self._objects.give_up(cache_object)
                if not passing:
                    return
                await asyncio.sleep(_AGAIN)
            else:
                break
        if cache_object.stores:  # else unmounted meanwhile
            self._objects.serve(cache_object)

    async def _fill(self, image: _Image, cache_object: CacheObject) -> None:
        """Fill a blob's object by the plan that an image has of it, too."""
        key = (await self._plans(image))[cache_object.cookie]
        folder = self._state.store_of(key)
        self._names.agree(cache_object.volume, cache_object.cookie, folder)
        if cache_object not in self._objects.all():
            return  # unmounted meanwhile
        store = cache_object.stores.get(key)
        if store is None:
            store = self._add_plan(image, cache_object, key, os.path.join(folder, PLAN))
        if image.prefetch and not store.prefetching:
            self._table.prefetch(store, True)

    def _add_plan(self, image: _Image, cache_object: CacheObject, key: str, path: str) -> KeptStore:
        blob = blob_id(cache_object.cookie)
        sources: list[int] = []
        remotes: list[Remote] = []
        with contextlib.suppress(BlobNotFoundError):  # all of it may be cached; what is not gets EIO
            place = image.origin.find(blob)
            if isinstance(place, int):
                sources.append(place)
            else:
                remotes.append(place)
        sizes = [segment.size for segment in Plan(os.open(path, os.O_RDONLY | os.O_CLOEXEC)).segments]
        store = self._objects.add_store(
            cache_object,
            key,
            sizes,
            lambda number: worker.OpenObject(number, remotes=remotes),
            lambda: [os.open(path, os.O_RDONLY | os.O_CLOEXEC), *map(os.dup, sources)],
        )
        store.source_fds, store.remotes = sources, remotes
        store.reopen = lambda: image.origin.find(blob)
        return store

    def _forget(self) -> None:
        """Drop images whose bootstrap the kernel has closed."""
        for (volume, fsid), image in list(self._served.items()):
            if self._objects.find(volume, fsid) is None and (image.plans is None or image.plans.done()):
                del self._served[volume, fsid]

    async def mount(self, order: MountOrder) -> None:
        check_target(order.target)
        origin = resolve(order.given, self._config, order.auth)
        opened = await self._fetcher.opened(origin, order.digest)
        fsid = self._identity(opened)
        if not self._images.known(fsid):
            for name in opened.blobs:
                place = origin.find(blob_id(name))  # says now what would be missing later
                if isinstance(place, int):
                    os.close(place)
        domain = self._config.domain
        self._expected[fsid] = opened  # the kernel will ask for it
        try:
            await in_child(self._mount_call(fsid, domain, order))
        finally:
            del self._expected[fsid]
        logger().info("mounted", image=origin.image, target=order.target, fsid=fsid, domain=domain)

    def _mount_call(self, fsid: str, domain: str, order: MountOrder) -> Callable[[], None]:
        """What a child process does to mount an image."""
        there = (entry.target for entry in self._live() if entry.options["fsid"] == fsid)
        if (other := next(there, None)) is not None:
            # The kernel mounts an fsid once; once more is the same filesystem in another place.
            return lambda: kernel.bind(other, order.target, order.flags)
        self._names.register(domain or fsid, fsid, order.given, order.prefetch)
        options = f"fsid={fsid}" + (f",domain_id={domain}" if domain else "")

        def mount() -> None:
            try:
                kernel.mount_fsid(options, order.target, order.flags)
            except OSError as error:
                raise KernelError(
                    f"mounting {order.given.image}: {error.strerror}", hint=_mount_hint(error.errno or 0)
                ) from None

        return self._outside(mount)

    def _live(self) -> list[kernel.MountEntry]:
        return [e for e in kernel.mounts() if e.fs_type == kernel.FS_TYPE and "fsid" in e.options]

    async def umount(self, target: str) -> None:
        if not any(entry.target == target for entry in self._live()):
            raise ServiceError(f"nothing of this service is mounted on {target}", hint="see 'nydus-erofs status'")
        await self._unmount(target)
        logger().info("unmounted", target=target)

    async def _unmount(self, target: str) -> None:
        try:
            await in_child(self._outside(lambda: kernel.unmount(target)))
        except KernelError as error:
            if error.number == errno.EBUSY:
                raise BusyError(f"{target} is in use", hint="end what uses it, then try again") from None
            raise

    async def look(self) -> None:
        """The kernel tells by itself what it does not use any more; here it may be short of room."""
        if culling.short(self._cache, self._config.cache_cull):
            culling.make_room(self._device, self._cache, self._config.cache_run)

    async def stop(self) -> list[str]:
        for entry in reversed(self._live()):
            with contextlib.suppress(NydusErofsError):
                await self.umount(entry.target)
        return [entry.target for entry in self._live()]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._device.fd)
        self._device.close()

    def describe(self) -> list[dict[str, Any]]:
        out = []
        for entry in self._live():
            fsid = entry.options["fsid"]
            volume = entry.options.get("domain_id", fsid)
            image = self._served.get((volume, fsid))
            if image is None:
                continue
            objects = [o for name in (fsid, *image.blobs) if (o := self._objects.find(volume, name)) is not None]
            events = sum((o.counters for o in objects), EventCounters())
            stores = [store for o in objects for store in o.stores.values()]
            status = mount_status(
                entry.target, image.origin, prefetch=image.prefetch, detached=False, stores=stores, events=events
            )
            for o in objects:
                status["readers_waiting"] += len(o.early)
                if o.trouble:
                    status["failures"] += o.hopeless
                    status["last_error" if o.hopeless else "waiting_for"] = o.trouble
            for blob, size in image.blobs.items():
                cache_object = self._objects.find(volume, blob)
                if cache_object is None or not cache_object.stores:  # its plan is being made
                    status["bytes_total"] += size
                    status["complete"] = False
            out.append({**status, "fsid": fsid, "domain": entry.options.get("domain_id")})
        return out


def _mount_hint(number: int) -> str:
    if number == errno.EINVAL:
        return "the kernel needs CONFIG_EROFS_FS_ONDEMAND: 'scripts/kernel-modules' builds it for Debian's kernels"
    if number in (errno.EBUSY, errno.EEXIST):
        return "something of the image is still in use"
    return "the log of the service says why"
