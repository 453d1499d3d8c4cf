"""The fanotify engine (Linux 6.14+): mounts localized bootstraps from files, and watches their segments.

From a request to a live mount, and back to nothing; what outlives a restart of the service is in ``taking_over.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial

from ....erofs.errors import BackendError, BusyError, FormatError, NydusErofsError, ServiceError
from ....erofs.ids import blob_id
from ...config.service import Config
from ...kernel import mount as kernel
from ...kernel.fd import Fd
from ...proto import control
from ...state import image
from ..children.errands import Errands, Say, errand, in_child
from ..disk import Disk
from ..images.bootstraps import Bootstraps
from ..images.healing import Healer
from ..images.origin import Origin
from ..images.places import Places, arrive
from ..images.prepared import Images
from ..log import logger
from ..paths import RunPaths, StatePaths
from ..stores.kept_store import KeptStore
from ..stores.restore import kept, restore
from ..stores.spec import FolderSpec, load_folder
from ..stores.table import StoreTable
from ..tasks import background
from .base import MountOrder, mount_status
from .emptying import Emptying
from .kept import KeptStores
from .mounted import MountedImage, MountRecord, boot_of
from .taking_over import find_blobs, find_live, note_again, take_over
from .unmounting import unmount_ours
from .watch import EventBudget, Watcher

# Seconds until what is in use is tried again at the end: whoever looks at all mounts is gone in a moment.
_BUSY = (0.05, 0.2, 0.5, 0.0)
# Seconds between looks whether the kernel has let go of the segments, which it does a moment after the unmount.
_SETTLING = (0.001, 0.002, 0.004, *[0.01] * 100)


class FanotifyEngine:
    """All mounts of the service."""

    name = "fanotify"

    def __init__(
        self,
        config: Config,
        state: StatePaths,
        disk: Disk,
        run: RunPaths,
        table: StoreTable,
        bootstraps: Bootstraps,
        budget: EventBudget,
    ) -> None:
        self.config, self._state, self._run, self._table, self._bootstraps = config, state, run, table, bootstraps
        self._watcher = Watcher(table, budget)
        self._own = partial(_is_ours, state.images)
        self._healer = Healer(table, self._own)
        self._mounts: list[MountedImage] = []
        self._targets: set[str] = set()  # of mounts under way
        self._restoring = asyncio.Lock()
        self._images = Images(state, disk, config.segment_size, config.uids, localize=True)
        self.kept = KeptStores(config.verifier_uid, state, table, self._images, self._watcher, self._mounts)
        self._emptying = Emptying(table, self._restoring, self.kept.forget_pages)
        self.on_nobody_writes = self._emptying.on_nobody_writes

    def start(self) -> None:
        """Serve what is still mounted from before."""
        self._mounts += take_over(self._state, self._run, self._table, self._watcher, self.config.verifier_uid)
        for mounted in self._mounts:
            self._heal(mounted)
        looking = find_blobs(self._mounts, self.config, self._table, self._bootstraps, self._own)
        background(looking, "blobs cannot be found")
        background(note_again(self._table, self._mounts), "nothing is fetched for some images")
        background(self.kept.forget_again(), "what was read before a repair may be in memory still")
        background(self.reconcile(), "the mount table cannot be read")

    def on_lost(self) -> bool:
        self._watcher.ignore_nothing()
        return self._emptying.on_lost()

    # --- mounting ---

    async def mount(self, order: MountOrder) -> None:
        if order.target in self._targets:
            raise BusyError(f"another image is being mounted on {order.target}", hint="choose another mountpoint")
        self._targets.add(order.target)
        try:
            with Errands() as errands:
                do = errands.said_by
                origin, local = await arrive(order.given, self.config, order.auth, order.target, do)
                bootstrap = await self._bootstraps.bootstrap(origin, local, order.digest)
                with Places(origin, self._own, do) as places, bootstrap:
                    await self._mount_image(order, places, bootstrap, errands)
            logger().info("mounted", image=origin.image, target=order.target)
        finally:
            self._targets.discard(order.target)

    async def _mount_image(self, order: MountOrder, places: Places, bootstrap: Fd, errands: Errands) -> None:
        name = self._images.id_of(bootstrap)
        provide = self._bootstraps.provider(places)
        prepared = self._images.find(name)
        if prepared is None:
            if self._images.busy:
                errands.close()  # many may wait for their turn
            prepared = await self._images.get(name, bootstrap, provide, do=errands.said_by)
        try:
            stores = await self._open_stores(prepared, places)
        except FormatError as error:
            logger().warning("a prepared image is damaged: preparing it again", image=name, error=error.message)
            prepared = await self._images.get(name, bootstrap, provide, anew=True)
            stores = await self._open_stores(prepared, places)
        record = MountRecord(name, order.given, order.target, order.prefetch)
        with contextlib.ExitStack() as undo:
            for store in stores:
                undo.callback(self._table.close, store)
            folder = self._run.new_mount()
            undo.callback(self._run.remove_mount, folder)
            watched = self._watcher.attach(self._state.store, os.path.join(folder, "through"), stores, bound=False)
            undo.callback(watched.try_unbind)
            blobs = [blob_id(ref.blob_id) for ref in prepared.stores]
            mounted = MountedImage(folder, record, places.origin, blobs, stores, watched, self._table)
            undo.callback(mounted.prefetch, False)
            mounted.prefetch(True)
            with self._run.writing():
                mounted.save()
            try:
                mounted.mount_id = await self._mount(mounted, prepared, order.flags, errands)
            except BaseException:
                # A child that was ended may have mounted it before.
                with contextlib.suppress(NydusErofsError, OSError):
                    mounted.mount_id = find_live().get((boot_of(self._state, record), record.target), 0)
                    if mounted.mount_id:
                        await in_child(partial(kernel.unmount, record.target), f"unmounting {record.target}")
                if not watched.try_unbind():
                    # The kernel lets go of a filesystem a moment later: reconcile() will see.
                    undo.pop_all()
                    mounted.detached = True
                    self._mounts.append(mounted)
                raise
            undo.pop_all()
        self._mounts.append(mounted)
        self._heal(mounted)

    async def _open_stores(self, prepared: image.ImageRecord, places: Places) -> list[KeptStore]:
        """Open the stores of an image with their blobs; a complete store does not need its blob any more."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as settled:
            specs: list[FolderSpec] = []
            for ref in prepared.stores:
                settled.enter_context(self._table.settling.opening(ref.key))
                directory = self._state.store_of(ref.key)
                await self._restored(ref.key, directory)
                in_use = self._table.opened(ref.key) is not None
                specs.append(load_folder(directory, self.config.verifier_uid, mounted=in_use))
                undo.callback(specs[-1].close)
            incomplete = [spec.directory for spec in specs if sum(spec.have) < sum(spec.sizes)]
            await places.look_for((blob_id(ref.blob_id) for ref in prepared.stores), begin=incomplete)
            stores = []
            for ref, spec in zip(prepared.stores, specs, strict=True):
                stores.append(self._open_store(ref, spec, places))
                undo.callback(self._table.close, stores[-1])
            undo.pop_all()
        return stores

    async def _restored(self, key: str, directory: str) -> None:
        """Nothing is mounted from a store in which a segment's size may say more than was verified. One that is open
        keeps the law since it was opened, and its files are in use."""
        async with self._restoring:  # one that waits here finds it done
            uids = self.config.uids
            if self._table.opened(key) is None and not kept(directory, uids.verifier):
                await in_child(partial(restore, directory, uids.verifier, uids.worker), f"restoring {directory}")

    def _open_store(self, ref: image.StoreRef, spec: FolderSpec, places: Places) -> KeptStore:
        blob, missing, source = blob_id(ref.blob_id), None, None
        try:
            source = places.take(blob)
        except BackendError as error:
            missing = error
        store = self._table.open(ref.key, spec, source)
        if missing is not None and not store.complete and not store.sources:
            self._table.close(store)
            raise missing
        return store

    def _heal(self, mounted: MountedImage) -> None:
        """From now on a blob that cannot be read is looked for again: there may be an intact copy in its place."""
        for store, blob in zip(mounted.stores, mounted.blobs, strict=True):
            self._healer.watch(store, blob, partial(self._origins, store))

    def _origins(self, store: KeptStore) -> list[Origin]:
        """Where the images that have a store come from."""
        origins: list[Origin] = []
        for mounted in self._mounts:
            if store in mounted.stores and mounted.origin not in origins:
                origins.append(mounted.origin)
        return origins

    async def _mount(self, mounted: MountedImage, prepared: image.ImageRecord, flags: int, errands: Errands) -> int:
        boot, target = boot_of(self._state, mounted.record), mounted.record.target
        ahead = self.config.read_ahead_kib or None
        call = partial(_mount, boot, mounted.through, prepared, target, flags, ahead)
        (packet,) = await errands.said_by(call, f"mounting on {target}")
        return int(packet.data)

    # --- unmounting ---

    async def umount(self, target: str) -> None:
        mounted = next((m for m in reversed(self._mounts) if m.record.target == target and not m.detached), None)
        if mounted is None:
            raise ServiceError(f"nothing of this service is mounted on {target}", hint="see 'nydus-erofs status'")
        await self._unmount(mounted)

    async def _unmount(self, mounted: MountedImage) -> None:
        target = mounted.record.target
        await in_child(partial(unmount_ours, target, mounted.mount_id), f"unmounting {target}")
        for pause in _SETTLING:
            if mounted not in self._mounts or self._finish(mounted):
                return
            await asyncio.sleep(pause)
        mounted.detached = True
        logger().warning("unmounted, but still in use elsewhere", target=target)

    def _finish(self, mounted: MountedImage) -> bool:
        """Forget a mount that is gone from its target, if nothing uses its filesystem any more."""
        if not mounted.finished():
            return False
        self._mounts.remove(mounted)
        self._run.remove_mount(mounted.folder)
        logger().info("unmounted", target=mounted.record.target)
        return True

    async def reconcile(self) -> None:
        """Notice what was unmounted, by us or by others, and let go of what nothing uses any more."""
        known = list(self._mounts)  # what is mounted while the table is read may not be in it
        live: set[int] = set()
        for ids in kernel.mount_ids(kernel.FS_TYPE):
            live |= ids
            await asyncio.sleep(0)  # readers have their turn
        for mounted in known:
            if mounted.mount_id not in live and mounted in self._mounts and not self._finish(mounted):
                mounted.detached = True

    async def stop(self) -> list[str]:
        for pause in _BUSY:
            await self._unmount_all()
            await self.reconcile()
            if all(mounted.detached for mounted in self._mounts):
                break
            await asyncio.sleep(pause)
        # What is unmounted just now: the kernel lets go of it a moment later.
        for pause in _SETTLING:
            await self.reconcile()
            if not any(mounted.detached for mounted in self._mounts):
                break
            await asyncio.sleep(pause)
        return [mounted.record.target for mounted in self._mounts]

    async def _unmount_all(self) -> None:
        """Unmount what nothing uses, by one child: starting one for each would take longer than all they do."""
        left = [(mounted.record.target, mounted.mount_id) for mounted in self._mounts if not mounted.detached]

        def call(say: Say) -> None:
            for target, mount_id in left:
                with contextlib.suppress(NydusErofsError, OSError):
                    unmount_ours(target, mount_id)
                say(b"", [])

        while left:
            done = 0
            try:
                async with contextlib.aclosing(errand(call, "unmounting")) as said:
                    async for _ in said:
                        done += 1
            except NydusErofsError as error:
                logger().error("not unmounted", target=left[done][0], error=error.message)
                done += 1
            left = left[done:]

    def close(self) -> None:
        self._watcher.close()

    def describe(self) -> list[control.MountStatus]:
        return [
            mount_status(
                mounted.record.target,
                mounted.origin,
                prefetch=mounted.record.prefetch,
                detached=mounted.detached,
                stores=mounted.stores,
                events=mounted.watched.counters,
            )
            for mounted in self._mounts
        ]


def _mount(
    boot: str, through: str, prepared: image.ImageRecord, target: str, flags: int, ahead: int | None, say: Say
) -> None:
    """In a child."""
    devices = image.devices(prepared)
    number = kernel.mount_erofs(boot, through, devices, target, flags=flags, read_ahead_kib=ahead)
    say(str(number).encode(), [])


def _is_ours(images: str, entry: kernel.MountEntry) -> bool:
    """Whether something is mounted from this folder of prepared images."""
    return entry.source.startswith(f"{images}/")
