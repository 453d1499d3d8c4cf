"""What the fanotify engine keeps on disk, for who looks at it again (``scrub.py``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from ....erofs.errors import FormatError, ServiceError
from ...kernel.fd import Fd
from ...kernel.page_cache import forget, forget_everything
from ..children.errands import Say, in_child, remove, said_by
from ..images.files import open_bootstrap
from ..images.prepared import Images
from ..paths import StatePaths, away
from ..stores import epoch
from ..stores.kept_store import KeptStore
from ..stores.restore import kept
from ..stores.spec import load_folder
from ..stores.table import StoreTable
from .mounted import MountedImage

_LONG = 600.0  # seconds for looking at all files of an image
_KEYS = 1000  # names in one packet


class KeptStores:
    """All stores in the state folder, mounted or not.

    Args:
        uid: the verifier's, to whom segment files belong.
        mounts: those of the engine, as they come and go.
    """

    def __init__(
        self, uid: int, state: StatePaths, table: StoreTable, images: Images, mounts: Sequence[MountedImage]
    ) -> None:
        self._uid, self._state, self._table, self._images, self._mounts = uid, state, table, images, mounts

    async def keys(self, image: str) -> list[str]:
        if not image:
            packets = await said_by(partial(_list, self._state.store), "looking for stores")
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
        try:
            (packet,) = await said_by(partial(_open, path), f"opening {path}")
        except FormatError:
            return None
        with packet.fds[0] as bootstrap:
            record = self._images.find(self._images.id_of(bootstrap))
        return None if record is None else [ref.key for ref in record.stores]

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
        return [mounted.record.target for mounted in self._mounts if store in mounted.stores]

    def unignore(self, store: KeptStore, segment: int) -> None:
        for mounted in self._mounts:
            if store in mounted.stores:
                mounted.watched.unignore(store, segment)

    async def forget_pages(self, store: KeptStore) -> None:
        for mounted in list(self._mounts):
            if store in mounted.stores:
                target, detached = mounted.record.target, mounted.detached
                call = forget_everything if detached else partial(forget, target, mounted.mount_id)
                await in_child(call, f"reading {target} anew", _LONG)

    async def discard(self, key: str) -> bool:
        if self._table.opened(key) is not None:
            return False
        gone = away(self._state.store_of(key))
        os.rename(self._state.store_of(key), gone)
        await remove([gone])
        return True


def _list(root: str, say: Say) -> None:
    """Say the names of all stores. In a child."""
    names = [name for name in sorted(os.listdir(root)) if not name.startswith(".")]
    for start in range(0, len(names), _KEYS):
        say(" ".join(names[start : start + _KEYS]).encode(), [])


def _open(path: str, say: Say) -> None:
    with open_bootstrap(path) as fd:
        say(b"", [fd])
