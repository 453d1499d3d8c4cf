"""What an engine counts of the kernel's requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EventCounters:
    """Requests of the kernel; stalls are the seconds that readers waited for bytes."""

    events: int = 0
    waited: int = 0
    denied: int = 0
    stall_total: float = 0.0
    stall_max: float = 0.0

    def __add__(self, other: EventCounters) -> EventCounters:
        return EventCounters(
            self.events + other.events,
            self.waited + other.waited,
            self.denied + other.denied,
            self.stall_total + other.stall_total,
            max(self.stall_max, other.stall_max),
        )
