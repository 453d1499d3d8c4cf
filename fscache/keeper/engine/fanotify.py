"""The fanotify engine (Linux 6.14+): mounts localized bootstraps from files, and watches their segments.

From a request to a live mount, across restarts of the service, and back to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import Any

import msgspec

from ....erofs.errors import BlobNotFoundError, BusyError, FormatError, KernelError, NydusErofsError, ServiceError
from ....erofs.ids import blob_id
from ...config.backend import Remote
from ...config.service import Config
from ...kernel import mount as kernel
from ...proto.packets import decoded
from ...state import image
from ...state.layout import MOUNT_RECORD
from ..bootstraps import Fetcher
from ..log import logger
from ..origin import Given, Origin, resolve
from ..paths import RunPaths, StatePaths
from ..prepared import Images
from ..stores import KeptStore, StoreTable
from .base import MountOrder, mount_status
from .common import check_target, in_child
from .watch import EventBudget, Watch

_SETTLE_TRIES, _SETTLE_STEP = 100, 0.01  # the kernel lets go of the segments a moment after the unmount


class MountRecord(msgspec.Struct):
    """What must be known to serve a live mount after a restart (``mounts/<n>/mount.json``)."""

    image: str  # id of the prepared image
    given: Given
    target: str
    prefetch: bool


_RECORD = msgspec.json.Decoder(MountRecord)


class MountedImage:
    """One mounted image and what it holds: stores, and the engine's kernel side."""

    def __init__(
        self,
        folder: str,
        record: MountRecord,
        origin: Origin,
        stores: list[KeptStore],
        watch: Watch,
        table: StoreTable,
    ) -> None:
        self.folder, self.record, self.origin, self.stores, self.watch = folder, record, origin, stores, watch
        self._table = table
        self.detached = False  # not mounted on its target any more, but still in use somewhere
        for store in stores:
            if record.prefetch:
                table.prefetch(store, True)

    @property
    def through(self) -> str:
        return os.path.join(self.folder, "through")

    def save(self) -> None:
        path = os.path.join(self.folder, MOUNT_RECORD)
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.json.encode(self.record))
        os.replace(f"{path}.new", path)

    def finished(self) -> bool:
        """Forget the mount if nothing uses its filesystem any more. The bind mount tells: EROFS holds it."""
        if not self.watch.try_unbind():
            return False
        self.watch.close()
        for store in self.stores:
            if self.record.prefetch:
                self._table.prefetch(store, False)
            self._table.close(store)
        return True


class FanotifyEngine:
    """All mounts of the service."""

    name = "fanotify"

    def __init__(
        self,
        config: Config,
        state: StatePaths,
        run: RunPaths,
        table: StoreTable,
        fetcher: Fetcher,
        budget: EventBudget,
    ) -> None:
        self._config, self._state, self._run, self._table, self._budget = config, state, run, table, budget
        self._fetcher = fetcher
        self._mounts: list[MountedImage] = []
        self._targets: set[str] = set()  # of mounts under way
        self._images = Images(state, config.segment_size, config.worker_uid, localize=True)

    async def mount(self, order: MountOrder) -> None:
        check_target(order.target)
        if order.target in self._targets:
            raise BusyError(f"another image is being mounted on {order.target}", hint="choose another mountpoint")
        self._targets.add(order.target)
        try:
            await self._mount_image(order)
        finally:
            self._targets.discard(order.target)

    async def _mount_image(self, order: MountOrder) -> None:
        origin = resolve(order.given, self._config, order.auth)
        fd = await self._fetcher.bootstrap(origin, order.digest)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            name = self._images.id_of(fd)
            prepared = await self._images.get(name, fd, self._fetcher.provider(origin))
            folder = self._run.new_mount()
            undo.callback(self._run.remove_mount, folder)
            record = MountRecord(name, order.given, order.target, order.prefetch)
            mounted = self._serve(folder, record, origin, prepared, bound=False)
            mounted.save()
            try:
                await self._mount(mounted, image.devices(prepared), order.flags)
            except BaseException:
                if not mounted.finished():
                    # The kernel lets go of a filesystem a moment later: look() will see.
                    mounted.detached = True
                    self._mounts.append(mounted)
                raise
            undo.pop_all()
            os.close(fd)
        self._mounts.append(mounted)
        logger().info("mounted", image=origin.image, target=order.target)

    def _serve(
        self, folder: str, record: MountRecord, origin: Origin, prepared: image.ImageRecord, *, bound: bool
    ) -> MountedImage:
        """Open the stores and start to answer events; nothing is mounted yet (or it is, after a restart)."""
        with contextlib.ExitStack() as undo:
            stores = []
            for ref in prepared.stores:
                store = self._open_store(ref, origin)
                undo.callback(self._table.close, store)
                stores.append(store)
            through = os.path.join(folder, "through")
            watch = Watch(through, stores, self._table, self._budget)
            watch.attach(self._state.store, bound=bound)
            undo.pop_all()
        return MountedImage(folder, record, origin, stores, watch, self._table)

    def _open_store(self, ref: image.StoreRef, origin: Origin) -> KeptStore:
        """Open one store with its blob; a store that is complete does not need the blob any more."""
        missing: BlobNotFoundError | None = None
        source: int | Remote | None = None
        try:
            source = origin.find(blob_id(ref.blob_id))
        except BlobNotFoundError as error:
            missing = error
        store = self._table.open(ref.key, self._state.store_of(ref.key), source)
        store.reopen = lambda: origin.find(blob_id(ref.blob_id))
        if missing is not None and not store.complete and not store.source_fds and not store.remotes:
            self._table.close(store)
            raise missing
        return store

    async def _mount(self, mounted: MountedImage, devices: list[str], flags: int) -> None:
        boot, target = self._boot(mounted.record), mounted.record.target
        ahead = self._config.read_ahead_kib or None
        await in_child(
            lambda: kernel.mount_erofs(boot, mounted.through, devices, target, flags=flags, read_ahead_kib=ahead)
        )

    async def umount(self, target: str) -> None:
        mounted = next((m for m in reversed(self._mounts) if m.record.target == target and not m.detached), None)
        if mounted is None:
            raise ServiceError(f"nothing of this service is mounted on {target}", hint="see 'nydus-erofs status'")
        await self._unmount(mounted)

    async def _unmount(self, mounted: MountedImage) -> None:
        target = mounted.record.target
        try:
            await in_child(lambda: kernel.unmount(target))
        except KernelError as error:
            if error.number == errno.EBUSY:
                raise BusyError(f"{target} is in use", hint="end what uses it, then try again") from None
            raise
        for _ in range(_SETTLE_TRIES):
            self.look()
            if mounted not in self._mounts:
                return
            await asyncio.sleep(_SETTLE_STEP)
        logger().warning("unmounted, but still in use elsewhere", target=target)

    def _live(self) -> set[tuple[str, str]]:
        """(localized bootstrap, target) of every mount that could be ours."""
        return {(entry.source, entry.target) for entry in kernel.mounts() if entry.fs_type == kernel.FS_TYPE}

    def _is_live(self, record: MountRecord, live: set[tuple[str, str]]) -> bool:
        return (self._boot(record), record.target) in live

    def _boot(self, record: MountRecord) -> str:
        return os.path.join(self._state.image(record.image), image.BOOT)

    def look(self) -> None:
        """Notice what was unmounted, by us or by others, and let go of what nothing uses any more."""
        live = self._live()
        for mounted in list(self._mounts):
            if self._is_live(mounted.record, live):
                continue
            if mounted.finished():
                self._mounts.remove(mounted)
                self._run.remove_mount(mounted.folder)
                logger().info("unmounted", target=mounted.record.target)
            else:
                mounted.detached = True

    async def stop(self) -> list[str]:
        for mounted in list(self._mounts):
            if not mounted.detached:
                with contextlib.suppress(NydusErofsError):
                    await self._unmount(mounted)
        # What others have unmounted just now: the kernel lets go of it a moment later.
        for _ in range(_SETTLE_TRIES):
            self.look()
            if not any(mounted.detached for mounted in self._mounts):
                break
            await asyncio.sleep(_SETTLE_STEP)
        return [mounted.record.target for mounted in self._mounts]

    def start(self) -> None:
        """Serve what is still mounted from before, clean up behind what is not."""
        live = self._live()
        bound = {entry.target for entry in kernel.mounts()}
        for name in sorted(os.listdir(self._run.mounts)):
            folder = os.path.join(self._run.mounts, name)
            through = os.path.join(folder, "through")
            try:
                with open(os.path.join(folder, MOUNT_RECORD), "rb") as file:
                    record = decoded(_RECORD, file.read())
                prepared = image.load(self._state.image(record.image))
                if through not in bound:
                    raise FormatError("it was not mounted")
                origin = resolve(record.given, self._config)
                self._fetcher.require(origin.remote)
                mounted = self._serve(folder, record, origin, prepared, bound=True)
            except (OSError, msgspec.MsgspecError, NydusErofsError) as error:
                logger().warning("a mount of the service before cannot be served", folder=folder, error=str(error))
                with contextlib.suppress(OSError):
                    if through in bound:
                        kernel.unmount(through)
                    self._run.remove_mount(folder)
                continue
            self._mounts.append(mounted)
            if self._is_live(record, live):
                logger().info("serving again", target=record.target)
        self.look()

    def close(self) -> None:
        """Nothing to do: each mount closed its group."""

    def describe(self) -> list[dict[str, Any]]:
        return [
            mount_status(
                mounted.record.target,
                mounted.origin,
                prefetch=mounted.record.prefetch,
                detached=mounted.detached,
                stores=mounted.stores,
                events=mounted.watch.counters,
            )
            for mounted in self._mounts
        ]
