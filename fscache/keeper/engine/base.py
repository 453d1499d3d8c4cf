"""What the keeper asks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...config.backend import describe
from ...config.service import Config
from ...kernel.mount import MOUNT_FLAGS
from ...proto.control import MountStatus
from ..images.origin import ImageRequest, Origin
from ..repair import Kept
from ..stores.kept_store import KeptStore
from .counters import EventCounters


@dataclass(frozen=True, slots=True)
class MountOrder:
    """What to mount where. ``target`` is absolute and real, ``flags`` are of MOUNT_FLAGS; ``digest`` is the identity
    that the image must have, if one is demanded; ``auth`` is for its registry and not kept."""

    given: ImageRequest
    target: str
    prefetch: bool
    flags: int = 0
    digest: str = ""
    auth: str = ""


class Engine(Protocol):
    """Mounts images and serves their readers."""

    name: str
    config: Config

    @property
    def kept(self) -> Kept:
        """What of its cache can be looked at again."""
        ...

    def start(self) -> None:
        """Begin to serve, also what is still mounted from before."""
        ...

    async def mount(self, order: MountOrder) -> None:
        """Mount an image; all or nothing."""
        ...

    async def umount(self, target: str) -> None:
        """Unmount what is mounted on ``target``; BusyError leaves everything as it is."""
        ...

    async def reconcile(self) -> None:
        """The mount table may have changed, by others' doing too."""
        ...

    def on_lost(self) -> bool:
        """The disk has lost something of what is not settled; whether nobody may write until all has begun again."""
        ...

    def on_nobody_writes(self) -> None:
        """The verifier has ended, or a new one knows nothing yet."""
        ...

    async def stop(self) -> list[str]:
        """Unmount everything; the targets that are busy and stay."""
        ...

    def close(self) -> None:
        """Let go of the kernel; nothing is mounted any more."""
        ...

    def describe(self) -> list[MountStatus]:
        """Each mounted image, for ``status``."""
        ...


def mount_flags(options: Sequence[str]) -> int:
    """Mount flags: nobody gets privileges from an image's files unless that is asked for."""
    wanted = {"nosuid", "nodev", *options}
    for option in ("suid", "dev"):
        if option in wanted:
            wanted -= {option, f"no{option}"}
    return sum(MOUNT_FLAGS[option] for option in wanted)


def mount_status(
    target: str,
    origin: Origin,
    *,
    prefetch: bool,
    detached: bool,
    stores: Sequence[KeptStore],
    events: EventCounters,
) -> MountStatus:
    """One mounted image as ``status`` shows it."""
    counters = [store.counters for store in stores]
    waiting = [one.waiting_for for one in counters if one.waiting_for]
    errors = [one.last_error for one in counters if one.last_error]
    return MountStatus(
        target=target,
        image=origin.image,
        backend=describe(origin.remote) if origin.remote else None,
        detached=detached,
        prefetch=prefetch,
        bytes_total=sum(store.total for store in stores),
        bytes_cached_before=sum(one.cached for one in counters),
        bytes_on_demand=sum(one.demand for one in counters),
        bytes_ahead=sum(one.ahead for one in counters),
        bytes_prefetched=sum(one.prefetch for one in counters),
        bytes_fetched_compressed=sum(one.fetched for one in counters),
        complete=all(store.complete for store in stores),
        segments=sum(len(store.have) for store in stores),
        failures=sum(one.failures for one in counters),
        last_error=errors[-1] if errors else None,
        readers_waiting=sum(store.waits.count() for store in stores),
        waiting_for=waiting[0] if waiting else None,
        events=events.events,
        events_waited=events.waited,
        events_denied=events.denied,
        stall_seconds_total=round(events.stall_total, 6),
        stall_seconds_max=round(events.stall_max, 6),
    )
