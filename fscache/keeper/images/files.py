"""Files of others: bootstraps, blobs and mountpoints. Nothing here looks at bytes; all of it may wait for a server,
so that it is for children of the keeper (``places.py``)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from ....erofs.errors import BackendError, BlobNotFoundError, BusyError, FormatError, ServiceError
from ....erofs.ids import BlobId
from ...kernel.fd import Fd
from ...kernel.mount import FS_TYPE, MountEntry, mounts

Own = Callable[[MountEntry], bool]  # whether a mount of EROFS is one of this service


def open_bootstrap(path: str) -> Fd:
    """A read-only descriptor of a bootstrap file."""
    try:
        fd = Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise FormatError(f"bootstrap {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd.fd).st_mode):
        fd.close()
        raise FormatError(f"bootstrap {path} is not a file", hint="name the .meta file of the image")
    return fd


def open_blob(directories: Sequence[str], name: BlobId, own: Own) -> Fd:
    """A read-only descriptor of the first non-empty ``DIR/<name>``; an empty file counts as missing, as in nydusd.

    One inside an image that this service has mounted does not count either: the service would wait for itself, and
    could not let go of the one image before the other. The device tells, whatever way led there; what is stacked on
    such an image (overlayfs) has a device of its own and is not noticed.

    Raises:
        BlobNotFoundError: none of the folders has it.
        BackendError: it is there and cannot be opened.
    """
    inside = ""
    for directory in directories:
        path = os.path.join(directory, name)
        try:
            fd = Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackendError(f"blob {path}: {error.strerror}", retryable=False) from None
        status = os.fstat(fd.fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            if not (target := _image_with(status.st_dev, own)):
                return fd
            inside = inside or f"blob {path} lies in the image on {target}, which this service serves itself"
        fd.close()
    if inside:
        raise BlobNotFoundError(inside, hint="copy it out of there, and name its folder with --blob-dir")
    raise BlobNotFoundError(
        f"blob {name} is not in {' or '.join(directories)}", hint="name its folder with --blob-dir"
    )


def _image_with(device: int, own: Own) -> str:
    """Where the image of this service that has this device is mounted; empty for another filesystem."""
    if os.major(device):  # a disk's: those of images are anonymous, and the table of mounts may be long
        return ""
    return next((entry.target for entry in mounts(FS_TYPE) if entry.device == device and own(entry)), "")


def check_target(target: str) -> None:
    """ServiceError unless something can be mounted on ``target`` now."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        raise ServiceError(f"mountpoint {target} does not exist", hint="create it with mkdir") from None
    except OSError as error:
        raise ServiceError(f"mountpoint {target}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ServiceError(f"mountpoint {target} is not a directory")
    if (name := os.path.realpath(target)) != target:  # one mountpoint has one name, or two images get onto it
        raise ServiceError(f"mountpoint {target} is another name of {name}", hint="use that one")
    if os.path.ismount(target):
        raise BusyError(f"something is mounted on {target} already", hint="unmount it, or choose another mountpoint")
