"""What the fanotify engine keeps on disk, for who looks at it again (``scrub.py``)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial

from ....erofs.errors import BusyError, FormatError, NydusErofsError, ServiceError
from ...kernel.fd import Fd
from ...kernel.mount import made_erofs
from ...kernel.page_cache import differs, forget, forget_everything, forget_mounted, tree
from ...kernel.plain import open_plain, read_plain
from ...state import image as prepared_image
from ...state.layout import BOOT, BOOT_DIGEST, segment_name
from ..children.errands import Say, in_child, remove, said_by
from ..images.files import open_bootstrap
from ..images.prepared import Images
from ..log import logger
from ..paths import StatePaths, away
from ..stores import epoch
from ..stores.kept_store import KeptStore
from ..stores.restore import kept
from ..stores.spec import load_folder
from ..stores.table import StoreTable
from ..trouble import report
from .mounted import MountedImage, boot_of
from .watch import Watcher

_LONG = 600.0  # seconds for looking at all files of an image
_KEYS = 1000  # names in one packet
_MOST_NAMED = 10  # files that are wrong in memory
_KEY = re.compile("[0-9a-f]{64}")
_IMAGE = re.compile("[0-9a-f]{32}")


class KeptStores:
    """All stores in the state folder, mounted or not.

    Args:
        uid: the verifier's, to whom segment files belong.
        mounts: those of the engine, as they come and go.
    """

    def __init__(
        self,
        uid: int,
        state: StatePaths,
        table: StoreTable,
        images: Images,
        watcher: Watcher,
        mounts: Sequence[MountedImage],
    ) -> None:
        self._uid, self._state, self._table, self._images = uid, state, table, images
        self._watcher, self._mounts = watcher, mounts

    async def keys(self, image: str) -> list[str]:
        if not image:
            packets = await said_by(partial(_list, self._state.store, _KEY), "looking for stores")
            return [key for packet in packets for key in packet.data.decode().split()]
        mounted = [one for one in self._mounts if image in (one.record.target, one.origin.image)]
        if mounted:
            return list(dict.fromkeys(store.key for one in mounted for store in one.stores))
        prepared = await self._prepared(image)
        if prepared is None:
            raise ServiceError(
                f"nothing is kept of {image}", hint="name a mountpoint or an image as it was mounted, or use --all"
            )
        return prepared

    async def _prepared(self, path: str) -> list[str] | None:
        """Stores of a bootstrap file that is not mounted now."""
        name = await self._name_of(path)
        record = self._images.find(name) if name else None
        return None if record is None else [ref.key for ref in record.stores]

    async def _name_of(self, path: str) -> str:
        try:
            (packet,) = await said_by(partial(_open, path), f"opening {path}")
        except FormatError:
            return ""
        with packet.fds[0] as bootstrap:
            return self._images.id_of(bootstrap)

    async def boots(self, image: str) -> list[str]:
        if not image:
            packets = await said_by(partial(_list, self._state.images, _IMAGE), "looking for images")
            return [name for packet in packets for name in packet.data.decode().split()]
        mounted = [one for one in self._mounts if image in (one.record.target, one.origin.image)]
        return list(dict.fromkeys(one.record.image for one in mounted)) or [await self._name_of(image)]

    async def boot_is_right(self, name: str) -> bool:
        (packet,) = await said_by(partial(_compare, self._state.image(name)), "looking at a bootstrap", _LONG)
        return packet.data == b"right"

    def mounted_boots(self, name: str) -> list[str]:
        return [mounted.record.target for mounted in self._mounts if mounted.record.image == name]

    async def discard_boot(self, name: str) -> bool:
        if self.mounted_boots(name):
            return False
        gone = away(self._state.image(name))
        os.rename(self._state.image(name), gone)
        await remove([gone])
        return True

    async def hold(self, key: str) -> KeptStore | None:
        if (store := self._table.opened(key)) is None:
            directory = self._state.store_of(key)
            if not kept(directory, self._uid):
                return None
            with self._table.settling.opening(key):
                return self._table.open(key, load_folder(directory, self._uid), pending=True)
        store.users += 1
        return store

    async def begin(self, store: KeptStore) -> None:
        assert store.folder is not None
        directory = store.folder.directory
        await in_child(partial(epoch.begin, directory), f"writing to {directory}")

    def plan(self, store: KeptStore) -> str:
        return store.key

    async def file(self, store: KeptStore) -> list[Fd]:
        return []  # the verifier opens segments itself

    def targets(self, store: KeptStore) -> list[str]:
        return [mounted.record.target for mounted in self._mounts_of(store)]

    def _mounts_of(self, store: KeptStore) -> list[MountedImage]:
        return [mounted for mounted in self._mounts if store in mounted.stores]

    def unignore(self, store: KeptStore, segment: int) -> None:
        self._watcher.unignore(os.path.join(self._state.store_of(store.key), segment_name(segment)))

    def note_stale(self, store: KeptStore) -> None:
        for mounted in self._mounts_of(store):
            mounted.note_stale()

    def stale(self, store: KeptStore) -> bool:
        return any(mounted.stale for mounted in self._mounts_of(store))

    async def forget_pages(self, store: KeptStore) -> None:
        for mounted in self._mounts_of(store):
            target = mounted.record.target
            call = forget_everything if mounted.detached else partial(forget_mounted, target, mounted.mount_id)
            with self._unless_gone(mounted):
                await in_child(call, f"reading {target} anew", _LONG)

    async def forget_at_last(self, store: KeptStore) -> list[str]:
        wrong = []
        for mounted in self._mounts_of(store):
            with self._unless_gone(mounted):
                wrong += await self._forget_at_last(mounted)
        return wrong

    @contextlib.contextmanager
    def _unless_gone(self, mounted: MountedImage) -> Iterator[None]:
        """What cannot be done with an image does not matter once it is unmounted."""
        try:
            yield
        except NydusErofsError:
            if mounted in self._mounts:
                raise

    async def _forget_at_last(self, mounted: MountedImage) -> list[str]:
        target = mounted.record.target
        if mounted.detached:
            await in_child(forget_everything, "forgetting what was read", _LONG)
            raise BusyError(
                f"{target} was unmounted and is in use all the same: what its users have mapped may be wrong",
                hint="end them",
            )
        boot, through = boot_of(self._state, mounted.record), mounted.through
        call = partial(_remembered, target, mounted.mount_id, boot, through, self._state.image(mounted.record.image))
        packets = await said_by(call, f"reading {target} anew", _LONG)
        if not packets:
            mounted.note_forgotten()
        return [packet.data.decode(errors="replace") for packet in packets]

    async def forget_again(self) -> None:
        """What the service before cut, and had not the kernel forget."""
        for mounted in [mounted for mounted in self._mounts if mounted.stale]:
            try:
                wrong = await self._forget_at_last(mounted)
            except NydusErofsError as error:
                report("what was read before a repair may be in memory still", error, target=mounted.record.target)
            else:
                for name in wrong:
                    logger().error("a mapped file is wrong in memory", file=name)

    async def discard(self, key: str) -> bool:
        if self._table.opened(key) is not None or self._table.settling.is_opening(key):
            return False
        gone = away(self._state.store_of(key))
        os.rename(self._state.store_of(key), gone)
        await remove([gone])
        return True


def _list(root: str, kind: re.Pattern[str], say: Say) -> None:
    """Say the names of all stores, or images. In a child."""
    names = list(filter(kind.fullmatch, sorted(os.listdir(root))))  # others are none of ours: lost+found
    for start in range(0, len(names), _KEYS):
        say(" ".join(names[start : start + _KEYS]).encode(), [])


def _remembered(target: str, mount_id: int, boot: str, through: str, prepared: str, say: Say) -> None:
    """Forget what was read of an image, and say which files are wrong in memory all the same. In a child."""
    with tree(target, mount_id) as root:
        if not (left := forget(root)):
            return
        devices, said = prepared_image.devices(prepared_image.load(prepared)), 0
        with made_erofs(boot, through, devices) as anew:
            for path in left:
                if said < _MOST_NAMED and differs(path, root, anew):
                    say(os.fsencode(os.path.join(target, path)), [])
                    said += 1


def _open(path: str, say: Say) -> None:
    with open_bootstrap(path) as fd:
        say(b"", [fd])


def _compare(image: str, say: Say) -> None:
    """Say whether a bootstrap is what it was. One that is not there, or whose digest nobody noted, is not wrong. In a
    child."""
    try:
        noted = read_plain(os.path.join(image, BOOT_DIGEST), 64)
        with open_plain(os.path.join(image, BOOT)) as boot, open(boot.fd, "rb", closefd=False) as file:
            right = hashlib.file_digest(file, "sha256").hexdigest().encode() == noted
    except FileNotFoundError:
        right = True
    say(b"right" if right else b"wrong", [])
