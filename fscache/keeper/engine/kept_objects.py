"""What the kernel has open of its cache, for who looks at it again (``scrub.py``; cachefiles engine).

The kernel lends out a descriptor to write to an object, none to read from it. But each is a plain file
(fs/cachefiles/key.c, 5.19 to 6.12): ``<root>/cache/I<volume key>/@<hash>/D<cookie>``, though a new one gets its name
only when the kernel closes it (namei.c). Until then nobody can look at it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

from ....erofs.errors import KernelError, ServiceError
from ...kernel import channel
from ...kernel.fd import Fd
from ...kernel.page_cache import forget_mounted
from ..children.errands import Say, in_child, said_by
from ..stores.kept_store import KeptStore
from ..stores.table import StoreTable
from .cachefiles_images import ServedImage
from .fsid_mounts import FsidMount, live
from .objects import CacheObject, ObjectTable

_LONG = 600.0  # seconds for looking at all files of an image


class KeptObjects:
    """Stores of objects that the kernel has open. What is idle in its cache has no descriptor and is not looked at.

    Args:
        root: the cache's folder.
        find: gives the image of a volume that has this fsid.
    """

    def __init__(
        self, root: str, table: StoreTable, objects: ObjectTable, find: Callable[[str, str], ServedImage | None]
    ) -> None:
        self._cache, self._table, self._objects, self._find = os.path.join(root, "cache"), table, objects, find

    async def keys(self, image: str) -> list[str]:
        if not image:
            objects = self._objects.all()
        else:
            mounted = [(one, served) for one, served in self._mounted() if image in (one.target, served.origin.image)]
            if not mounted:
                raise ServiceError(
                    f"{image} is not mounted", hint="name a mountpoint or an image as it was mounted, or use --all"
                )
            objects = list(dict.fromkeys(o for _, served in mounted for o in self._objects_of(served)))
        # Who fills an object by no plan is a bootstrap, which the kernel reads and believes as it came.
        return [store.key for o in objects for plan, store in o.stores.items() if plan]

    def _mounted(self) -> list[tuple[FsidMount, ServedImage]]:
        found = ((one, self._find(one.volume, one.fsid)) for one in live())
        return [(one, served) for one, served in found if served is not None]

    def _objects_of(self, served: ServedImage) -> list[CacheObject]:
        return [o for name in served.opened.blobs if (o := self._objects.find(served.volume, name)) is not None]

    def _object(self, store: KeptStore) -> tuple[CacheObject, str]:
        """The object that a store fills, and the key of its plan."""
        for cache_object in self._objects.all():
            for plan, one in cache_object.stores.items():
                if one is store:
                    return cache_object, plan
        raise KernelError("the kernel has closed it meanwhile")

    async def hold(self, key: str) -> KeptStore | None:
        store = self._table.opened(key)
        if store is None:
            return None
        store.users += 1
        try:
            files = await self.file(store)
        except BaseException:
            self._table.close(store)
            raise
        if not files:
            self._table.close(store)
            return None
        channel.close(files)
        return store

    async def boots(self, image: str) -> list[str]:
        return []

    async def boot_is_right(self, name: str) -> bool:
        return True

    def mounted_boots(self, name: str) -> list[str]:
        return []

    async def discard_boot(self, name: str) -> bool:
        return False

    async def begin(self, store: KeptStore) -> None:
        """The kernel notes for itself what it writes to."""

    def plan(self, store: KeptStore) -> str:
        return self._object(store)[1]

    async def file(self, store: KeptStore) -> list[Fd]:
        cache_object, _ = self._object(store)
        folder = os.path.join(self._cache, f"Ierofs,{cache_object.volume}")
        packets = await said_by(partial(_open, folder, f"D{cache_object.cookie}"), "opening an object of the cache")
        return [fd for packet in packets for fd in packet.fds]

    def _mounts_with(self, store: KeptStore) -> list[FsidMount]:
        return [
            one for one, served in self._mounted()
            if any(store in o.stores.values() for o in self._objects_of(served))
        ]  # fmt: skip

    def targets(self, store: KeptStore) -> list[str]:
        return [one.target for one in self._mounts_with(store)]

    def unignore(self, store: KeptStore, segment: int) -> None:
        """The kernel asks for what is not there, and for nothing else."""

    def note_stale(self, store: KeptStore) -> None:
        """A mount does not outlive its service."""

    def stale(self, store: KeptStore) -> bool:
        return False

    async def forget_at_last(self, store: KeptStore) -> list[str]:
        await self.forget_pages(store)
        return []

    async def forget_pages(self, store: KeptStore) -> None:
        for one in self._mounts_with(store):
            await in_child(partial(forget_mounted, one.target, one.mount_id), f"reading {one.target} anew", _LONG)

    async def discard(self, key: str) -> bool:
        return False


def _open(folder: str, name: str, say: Say) -> None:
    """Say its file, if it has a name. In a child."""
    for place in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = os.path.join(folder, place, name)
            with Fd(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
                say(b"", [file])
            return
