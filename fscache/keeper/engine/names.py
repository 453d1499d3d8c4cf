"""What the cachefiles engine remembers under names: registered images, and what the kernel's cache holds.

The kernel finds cached data again by name and size alone. So the engine notes what each name stood for, and
when that changes it gives the object another size (a block more), upon which the kernel throws the old data
away.
"""

from __future__ import annotations

import contextlib
import os
from typing import TypeVar

import msgspec

from ....erofs.errors import FormatError
from ...proto.cachefiles import BLOCK_SIZE
from ...proto.packets import decoded
from ...state.layout import PLAN
from ...state.plan import Plan, PlanFlags
from ..origin import Given

T = TypeVar("T")
_UNUSED = PlanFlags.UNUSED.value


class Registered(msgspec.Struct):
    """An image registered under an fsid."""

    given: Given
    prefetch: bool


class _Cached(msgspec.Struct):
    """What the kernel's cache holds under one name: ``identity`` of the content, and its object's size."""

    identity: str
    size: int
    plans: list[str] = []  # folders of the plans that its data was verified with


class Names:
    """Both registries, on disk: registrations until a reboot, cached objects as long as the cache."""

    def __init__(self, registrations: str, cached: str) -> None:
        self._registrations, self._cached = registrations, cached
        self._by_name = _load(registrations, dict[str, Registered])
        self._objects = _load(cached, dict[str, _Cached])

    def register(self, volume: str, fsid: str, given: Given, prefetch: bool) -> None:
        self._by_name[f"{volume}/{fsid}"] = Registered(given, prefetch)
        _save(self._registrations, self._by_name)

    def registered(self, volume: str, fsid: str) -> Registered | None:
        return self._by_name.get(f"{volume}/{fsid}")

    def size_of(self, volume: str, cookie: str, identity: str, size: int) -> int:
        """The size to open an object with, given its content's identity and bytes (whole blocks)."""
        name = f"{volume}/{cookie}"
        known = self._objects.get(name)
        if known is not None and _same(known, identity, size):
            return known.size
        if known is not None and known.size == size:
            size += BLOCK_SIZE
        self._objects[name] = _Cached(identity, size)
        _save(self._cached, self._objects)
        return size

    def holds(self, volume: str, cookie: str) -> bool:
        """Whether data was cached under a blob's name."""
        known = self._objects.get(f"{volume}/{cookie}")
        return known is not None and bool(known.plans) and _there(known)

    def agree(self, volume: str, cookie: str, folder: str) -> None:
        """Note a plan that fills a blob's object; FormatError when its data was verified with a contrary one."""
        known = self._objects.get(f"{volume}/{cookie}")
        if known is None or folder in known.plans:
            return
        if not all(_compatible(plan, folder) for plan in known.plans):
            raise FormatError(
                f"blob {cookie} has other digests in another image of domain {volume}",
                hint="mount one of the images in another domain",
            )
        known.plans.append(folder)
        _save(self._cached, self._objects)


def _same(known: _Cached, identity: str, size: int) -> bool:
    """Whether what is cached can be used; not when nobody can tell any more what it was verified with."""
    return _there(known) and known.identity == identity and known.size in (size, size + BLOCK_SIZE)


def _there(known: _Cached) -> bool:
    return all(os.path.exists(os.path.join(plan, PLAN)) for plan in known.plans)


def _compatible(one: str, other: str) -> bool:
    """Whether two plans of a blob say the same of every chunk that both use."""
    first, second = _plan(one), _plan(other)
    if first.segments != second.segments or first.digest_algo != second.digest_algo:
        return False
    for number in range(len(first.segments)):
        for a, b in zip(first.chunks(number), second.chunks(number), strict=True):
            if a != b and not (a.flags | b.flags) & _UNUSED:
                return False
    return True


def _plan(folder: str) -> Plan:
    return Plan(os.open(os.path.join(folder, PLAN), os.O_RDONLY | os.O_CLOEXEC))


def _load(path: str, kind: type[T]) -> T:
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError), open(path, "rb") as file:
        return decoded(msgspec.json.Decoder(kind), file.read())
    return kind()


def _save(path: str, value: object) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    # A record that a crash takes back would let the next content have the size of this one.
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
