"""What the cachefiles engine remembers under names: registered images, and what the kernel's cache holds.

The kernel finds cached data again by name and size alone. So it is noted, on disk and before the kernel is answered,
what each name stands for; other content gets a size that no content of that name ever had, upon which the kernel
throws the old data away. It may have lost that in a crash, and come up with older data again: hence *ever*. And where
nothing is noted (any more), nothing may be cached: then the cache must be emptied before the kernel sees it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from ...proto.cachefiles import BLOCK_SIZE
from ..children.errands import in_child
from ..images.origin import ImageRequest
from .agreement import check_agreement
from .disk_table import DiskTable

_MOST_REGISTERED = 4096  # the one registered longest ago goes first
_COMPARING = 300.0  # seconds that plans may be compared for
_MOST_BYTES = 1 << 53  # of a content

PlanKey = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Bytes = Annotated[int, Meta(ge=0, le=_MOST_BYTES)]


class Registered(msgspec.Struct, frozen=True):
    """An image registered under an fsid."""

    given: ImageRequest
    prefetch: bool


class Cached(msgspec.Struct, eq=False):
    """One content that the kernel's cache holds under a name.

    ``bytes`` is its length, in whole blocks, and ``size`` that of the object it is given to the kernel with. Only
    ``plans`` (keys) may fill the object; no two of them disagree.
    """

    identity: str
    bytes: Bytes
    size: Bytes
    plans: list[PlanKey] = []


class Names:
    """Both registries: registrations until a reboot, cached contents as long as the cache.

    Args:
        plan_of: path of the plan with a key.
    """

    def __init__(self, registered: str, cached: str, plan_of: Callable[[str], str]) -> None:
        self._registered = DiskTable(registered, Registered)
        self._cached = DiskTable(cached, Cached)
        self._plan_of = plan_of

    @property
    def knows_cache(self) -> bool:
        """Whether it is known what the kernel's cache holds; else that must be thrown away, all of it."""
        return not self._cached.fresh

    # --- registered images ---

    def registered(self, volume: str, fsid: str) -> Registered | None:
        return self._registered.entries.get(f"{volume}/{fsid}")

    async def register(self, volume: str, fsid: str, image: Registered | None) -> None:
        """Register an image, or take back what is registered under that name."""
        name, entries = f"{volume}/{fsid}", self._registered.entries
        entries.pop(name, None)
        if image is not None:
            entries[name] = image
        for oldest in list(entries)[:-_MOST_REGISTERED]:
            del entries[oldest]
        self._registered.changed()
        await self._registered.saved()

    # --- cached contents ---

    async def claim(self, volume: str, contents: Mapping[str, tuple[str, int]]) -> dict[str, Cached]:
        """What objects of a volume are to be opened with.

        Args:
            contents: object's name -> (identity of its content, bytes in whole blocks).
        """
        claimed = {cookie: self._claim(f"{volume}/{cookie}", *content) for cookie, content in contents.items()}
        await self._cached.saved()
        return claimed

    def _claim(self, name: str, identity: str, length: int) -> Cached:
        known = self._cached.entries.get(name)
        if known is not None and (known.identity, known.bytes) == (identity, length) and self._can_tell(known):
            return known
        size = length if known is None else max(length, known.size + BLOCK_SIZE)
        self._cached.entries[name] = new = Cached(identity, length, size)
        self._cached.changed()
        return new

    def _can_tell(self, known: Cached) -> bool:
        """Whether it is still there what the cached data was verified with."""
        return all(os.path.exists(self._plan_of(key)) for key in known.plans)

    def cached(self, volume: str, cookie: str) -> Cached:
        """What was claimed last for an object."""
        return self._cached.entries[f"{volume}/{cookie}"]

    async def agree(self, cached: Cached, volume: str, blob: str, key: str) -> None:
        """Note a plan that is going to fill a blob's object; FormatError when it disagrees with one that does."""
        while key not in cached.plans:
            known = list(cached.plans)
            if known:
                paths = [self._plan_of(other) for other in known]
                check = partial(check_agreement, paths, self._plan_of(key), blob, volume)
                await in_child(check, f"comparing plans of blob {blob}", _COMPARING)
            if cached.plans == known:
                cached.plans.append(key)
                self._cached.changed()
        await self._cached.saved()
