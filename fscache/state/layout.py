"""Names in the service's folders, which several processes agree on. What they mean: ``keeper/paths.py``."""

from __future__ import annotations

BOOT, RECORD = "boot", "image.json"  # of a prepared image: localized bootstrap, record
BOOT_DIGEST = "boot.sha256"  # of the same, in hex: what the bootstrap was when it was prepared
STORES = "stores"  # folder in which prepare leaves new stores
PLAN = "plan"
EPOCH = "epoch"
SET_ASIDE = "old"  # of a store: folder of segment files that a crash of the machine may have damaged
MOUNT_RECORD = "mount.json"
STALE = f"{MOUNT_RECORD}.stale"  # what the kernel has in memory of its files may be wrong


def segment_name(segment: int) -> str:
    """File name of a segment, also its name in the mount options of the localized bootstrap."""
    return f"{segment:05d}"
