"""After a restart: serving what is still mounted from before.

Every mount is watched again at once, so that its readers wait instead of getting EIO. Its blobs are looked for
afterwards, by children: a file server that is away holds up nobody but its own images.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence

import msgspec

from ....erofs.errors import BackendError, FormatError, KernelError, NydusErofsError
from ....erofs.ids import blob_id
from ...config.backend import Remote
from ...config.service import Config
from ...kernel import mount as kernel
from ...kernel.fd import Fd
from ...proto.fault import Fault
from ...state import image
from ..children.errands import Say, errand
from ..images.bootstraps import Bootstraps
from ..images.files import Own, open_blob
from ..images.origin import Origin, resolve
from ..log import logger
from ..paths import RunPaths, StatePaths
from ..stores import epoch
from ..stores.spec import FolderSpec, load_folder
from ..stores.table import StoreTable
from ..tasks import background
from ..trouble import refusal, report
from .mounted import MountedImage, boot_of, load_record
from .watch import Watcher

_AGAIN = 5.0  # seconds until it is tried again to write to the state folder
_IMPATIENCE, _PATIENCE = 3.0, 60.0  # seconds for one lookup: of many one after the other, and of one alone
_FAULT, _ORIGIN = msgspec.json.Decoder(Fault), msgspec.json.Decoder(Origin)


def find_live() -> dict[tuple[str, str], int]:
    """Id of each EROFS mount, by its localized bootstrap and its target."""
    return {(entry.source, entry.target): entry.mount_id for entry in kernel.mounts(kernel.FS_TYPE)}


def take_over(state: StatePaths, run: RunPaths, table: StoreTable, watcher: Watcher, uid: int) -> list[MountedImage]:
    """Watch again what is mounted, clean up behind what is not. Nothing is known of its blobs yet."""
    live = find_live()
    bound = {entry.target for entry in kernel.mounts()}
    taken = []
    for name in sorted(os.listdir(run.mounts)):
        folder = os.path.join(run.mounts, name)
        through = os.path.join(folder, "through")
        try:
            if through not in bound:
                raise FormatError("it was not mounted")
            mounted = _watch(folder, state, table, watcher, uid)
        except (KernelError, OSError) as error:  # it stays as it is: the next service may be able to
            report("a mount of the service before is not served", error, folder=folder)
            continue
        except NydusErofsError as error:
            logger().warning("a mount of the service before cannot be served", folder=folder, error=str(error))
            with contextlib.suppress(OSError):
                if through in bound:
                    kernel.unmount(through)
                run.remove_mount(folder)
            continue
        mounted.mount_id = live.get((boot_of(state, mounted.record), mounted.record.target), 0)
        if mounted.mount_id:
            logger().info("serving again", target=mounted.record.target)
        taken.append(mounted)
    return taken


def _watch(folder: str, state: StatePaths, table: StoreTable, watcher: Watcher, uid: int) -> MountedImage:
    record = load_record(folder)
    prepared = image.load(state.image(record.image))
    with contextlib.ExitStack() as undo:
        stores = []
        for ref in prepared.stores:
            spec = load_folder(state.store_of(ref.key), uid, mounted=True)
            stores.append(table.open(ref.key, spec, pending=True, barred=_begin(spec)))
            undo.callback(table.close, stores[-1])
        watched = watcher.attach(state.store, os.path.join(folder, "through"), stores, bound=True)
        undo.pop_all()
    blobs = [blob_id(ref.blob_id) for ref in prepared.stores]
    mounted = MountedImage(folder, record, Origin(record.given.image, []), blobs, stores, watched, table)
    mounted.prefetch(True)
    return mounted


def _begin(spec: FolderSpec) -> KernelError | None:
    """Note on disk that a store is written to; why nothing may be written to it, when that cannot be noted: after a
    power cut nobody would know that it has to be verified."""
    if sum(spec.have) < sum(spec.sizes):
        try:
            epoch.begin(spec.directory)
        except OSError as error:
            why = refusal(error, f"writing {spec.directory}")
            report("nothing can be fetched", why)
            return why
    return None


async def note_again(table: StoreTable, taken: Sequence[MountedImage]) -> None:
    """Try again now and then what ``_begin`` could not do."""
    left = [store for mounted in taken for store in mounted.stores if store.barred is not None]
    while left := [store for store in left if store.barred is not None and table.is_open(store)]:
        await asyncio.sleep(_AGAIN)
        folders = [store.folder.directory for store in left if store.folder is not None]

        def call(say: Say, folders: Sequence[str] = folders) -> None:
            for folder in folders:
                epoch.begin(folder)
                say(b"", [])

        noted = iter(left)
        try:
            async with contextlib.aclosing(errand(call, "noting what is written to")) as said:
                async for _ in said:
                    table.admit(next(noted))
        except NydusErofsError as error:
            report("nothing can be fetched", error)


async def find_blobs(
    taken: Sequence[MountedImage], config: Config, table: StoreTable, bootstraps: Bootstraps, own: Own
) -> None:
    """Look up where the blobs of all these images are."""
    lookup = _Lookup(config, table, bootstraps, own)
    left = list(taken)
    while left:
        done = 0
        try:
            async for one in lookup.run(left, _IMPATIENCE):
                done += one
        except KernelError as error:
            logger().warning("looking for blobs takes long", image=left[done].origin.image, error=error.message)
            background(lookup.alone(left[done]), "blobs cannot be found")
            done += 1
        left = left[done:]


class _Lookup:
    """One child that looks for the blobs of several images, one after the other."""

    def __init__(self, config: Config, table: StoreTable, bootstraps: Bootstraps, own: Own) -> None:
        self._config, self._table, self._bootstraps, self._own = config, table, bootstraps, own

    async def alone(self, mounted: MountedImage) -> None:
        """For one image that takes long: its readers wait, but not for ever."""
        try:
            async for _ in self.run([mounted], _PATIENCE):
                pass
        except KernelError as error:
            logger().error("its blobs cannot be found", image=mounted.origin.image, error=error.message)
            for store in mounted.stores:
                self._table.sourced(store)

    async def run(self, images: Sequence[MountedImage], patience: float) -> AsyncIterator[int]:
        """Gives 1 for each image that is done with, in order; KernelError when one takes too long."""
        config, own = self._config, self._own
        wanted = [(mounted.record.given, mounted.blobs) for mounted in images]

        def call(say: Say) -> None:
            for given, blobs in wanted:
                try:
                    origin = resolve(given, config)
                except NydusErofsError as error:
                    say(msgspec.json.encode(Fault.of(error)), [])
                    continue
                say(b"=" + msgspec.json.encode(origin), [])
                for blob in blobs:
                    try:
                        with open_blob(origin.folders, blob, own) as fd:
                            say(b"", [fd])
                    except BackendError as error:
                        say(msgspec.json.encode(Fault.of(error)), [])

        async with contextlib.aclosing(errand(call, "looking for blobs", patience)) as said:
            for mounted in images:
                packet = await anext(said)
                if packet.data[:1] != b"=":
                    self._give_up(mounted, _FAULT.decode(packet.data))
                else:
                    mounted.origin = _ORIGIN.decode(packet.data[1:])
                    self._bootstraps.require(mounted.origin.remote)
                    for store in mounted.stores:
                        packet = await anext(said)
                        source: Fd | Remote | None = packet.fds[0] if packet.fds else mounted.origin.remote
                        if source is not None:
                            self._table.add_source(store, source)
                        self._table.sourced(store)
                yield 1

    def _give_up(self, mounted: MountedImage, fault: Fault) -> None:
        logger().error("its blobs cannot be found", image=mounted.origin.image, error=fault.message)
        for store in mounted.stores:
            self._table.sourced(store)
