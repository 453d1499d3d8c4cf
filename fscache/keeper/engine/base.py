"""What the keeper asks of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ...config.backend import describe
from ..origin import Given, Origin
from ..stores import KeptStore
from .counters import EventCounters

# Mount options and their flags, the same numbers for mount(2) (MS_*) and fsmount(2) (MOUNT_ATTR_*).
MOUNT_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8}


@dataclass(frozen=True, slots=True)
class MountOrder:
    """What to mount where. ``target`` is absolute and real, ``flags`` are of MOUNT_FLAGS; ``digest`` is the identity
    that the image must have, if one is demanded; ``auth`` is for its registry and not kept."""

    given: Given
    target: str
    prefetch: bool
    flags: int = 0
    digest: str = ""
    auth: str = ""


class Engine(Protocol):
    """Mounts images and serves their readers."""

    name: str

    def start(self) -> None:
        """Begin to serve, also what is still mounted from before."""
        ...

    async def mount(self, order: MountOrder) -> None:
        """Mount an image; all or nothing."""
        ...

    async def umount(self, target: str) -> None:
        """Unmount what is mounted on ``target``; BusyError leaves everything as it is."""
        ...

    def look(self) -> None:
        """The mount table may have changed, by others' doing too."""
        ...

    async def stop(self) -> list[str]:
        """Unmount everything; the targets that are busy and stay."""
        ...

    def close(self) -> None:
        """Let go of the kernel; nothing is mounted any more."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Each mounted image, for ``status``."""
        ...


def mount_status(
    target: str, origin: Origin, *, prefetch: bool, detached: bool, stores: list[KeptStore], events: EventCounters
) -> dict[str, Any]:
    """One mounted image as ``status`` shows it. Bytes are of uncompressed data unless named otherwise."""
    waiting = [store.counters.waiting_for for store in stores if store.counters.waiting_for]
    errors = [store.counters.last_error for store in stores if store.counters.last_error]
    return {
        "target": target,
        "image": origin.image,
        "backend": describe(origin.remote) if origin.remote else None,
        "detached": detached,
        "prefetch": prefetch,
        "bytes_total": sum(store.total for store in stores),
        "bytes_cached_before": sum(store.counters.cached for store in stores),
        "bytes_on_demand": sum(store.counters.demand for store in stores),
        "bytes_ahead": sum(store.counters.ahead for store in stores),
        "bytes_prefetched": sum(store.counters.prefetch for store in stores),
        "bytes_fetched_compressed": sum(store.counters.fetched for store in stores),
        "complete": all(store.complete for store in stores),
        "segments": sum(len(store.sizes) for store in stores),
        "failures": sum(store.counters.failures for store in stores),
        "last_error": errors[-1] if errors else None,
        "readers_waiting": sum(store.waits.count() for store in stores),
        "waiting_for": waiting[0] if waiting else None,
        "events": events.events,
        "events_waited": events.waited,
        "events_denied": events.denied,
        "stall_seconds_total": round(events.stall_total, 6),
        "stall_seconds_max": round(events.stall_max, 6),
    }
