"""What must be so in a state folder whatever has happened, looked at from outside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from nydus_erofs.erofs.digest import digest_function
from nydus_erofs.fscache.keeper.stores import epoch
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.state.layout import segment_name
from nydus_erofs.fscache.state.plan import Plan, PlanFlags


def check(state: Path) -> None:
    """What counts in its stores is right, byte for byte, as far as digests tell."""
    for store in state.glob("store/*"):
        plan = store / "plan"
        if not plan.is_file() or not epoch.trusted(str(store)):
            continue
        if hashlib.sha256(plan.read_bytes()).hexdigest() == store.name:  # by a damaged plan nothing is read
            _check_store(store)


def _check_store(store: Path) -> None:
    plan = Plan(Fd(os.open(store / "plan", os.O_RDONLY)))
    digest = digest_function(plan.digest_algo)
    for number, segment in enumerate(plan.segments):
        path = store / segment_name(number)
        have = path.read_bytes() if path.is_file() else b""  # none on an engine where the kernel has the cache
        assert len(have) <= segment.size, path
        for chunk in plan.chunks(number):
            at = chunk.uncompressed_offset - segment.start
            body = have[at : at + chunk.uncompressed_size]
            if len(body) < chunk.uncompressed_size or chunk.flags & PlanFlags.UNVERIFIED:
                continue
            right = not any(body) if chunk.flags & PlanFlags.UNUSED else digest(body) == chunk.digest
            assert right, f"{path}: wrong bytes from {at} on"
