"""Whiteouts: marks of a layer that say "gone below". An image of a single layer has no use for them.

Source: OCI image specification (layer), Linux ``Documentation/filesystems/overlayfs.rst``. As Nydus does,
opaque marks of overlayfs stay: they are attributes of directories that do exist.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from .options import WhiteoutSpec

OCI_PREFIX = b".wh."  # also that of the opaque mark, ".wh..wh..opq"

Whiteout = Callable[[bytes, int, int], bool]  # of (name, mode, rdev)


def _oci(name: bytes, _mode: int, _rdev: int) -> bool:
    return name.startswith(OCI_PREFIX)


def _overlayfs(_name: bytes, mode: int, rdev: int) -> bool:
    return stat.S_ISCHR(mode) and rdev == 0


def whiteout_test(spec: WhiteoutSpec) -> Whiteout | None:
    """The test for whiteouts by name, mode and device number; None if there are none by definition."""
    match spec:
        case WhiteoutSpec.OCI:
            return _oci
        case WhiteoutSpec.OVERLAYFS:
            return _overlayfs
        case WhiteoutSpec.NONE:
            return None
