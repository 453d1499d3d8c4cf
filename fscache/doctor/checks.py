"""One thing that a host must be able to do, and what came of trying it."""

from __future__ import annotations

from typing import NamedTuple

from ...erofs.errors import KernelError


class Check(NamedTuple):
    """One thing this host must be able to do; ``fix`` tells a person what to change when it cannot, or soon."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    @property
    def state(self) -> str:
        """For people: ``ok``, ``note`` for what works and should be changed all the same, or ``FAIL``."""
        return ("note" if self.fix else "ok") if self.ok else "FAIL"


def failure(checks: list[Check]) -> str:
    """What failed, one phrase; empty when all is well."""
    return next((f"{check.name}: {check.detail}" for check in checks if not check.ok), "")


def require(checks: list[Check]) -> None:
    """KernelError for the first check that failed, if any."""
    for check in checks:
        if not check.ok:
            raise KernelError(f"the fanotify engine does not work here: {failure(checks)}", hint=check.fix)
