"""Unmounting what is ours and nothing else. For children of the keeper: it may wait."""

from __future__ import annotations

import errno

from ....erofs.errors import BusyError
from ...kernel import mount as kernel
from ...kernel import statx
from ...kernel.holders import holders


def unmount_ours(target: str, mount_id: int) -> None:
    """Unmount the mount with this id from ``target``.

    Raises BusyError when something else is mounted over it, or when it is in use: by whom, as far as it shows.
    """
    if statx.mount_id(target) != mount_id:
        raise BusyError(f"something else is mounted over {target}", hint="unmount that first")
    try:
        kernel.unmount(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        who = holders(target)
        by = f" by {', '.join(who)}" if who else ""
        raise BusyError(f"{target} is in use{by}", hint="end what uses it, then try again") from None
