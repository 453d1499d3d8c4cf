"""Opening what root alone may be able to read: bootstraps and blobs. Nothing here looks at their bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ...erofs.errors import BackendError, BlobNotFoundError, FormatError
from ...erofs.ids import BlobId


def open_bootstrap(path: str) -> int:
    """A read-only descriptor of a bootstrap file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FormatError(f"bootstrap {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FormatError(f"bootstrap {path} is not a file", hint="name the .meta file of the image")
    return fd


def open_blob(directories: Sequence[str], name: BlobId) -> int:
    """A read-only descriptor of the first non-empty ``DIR/<name>``; an empty file counts as missing, as in nydusd.

    Raises:
        BlobNotFoundError: none of the folders has it.
        BackendError: it is there and cannot be opened.
    """
    for directory in directories:
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackendError(f"blob {path}: {error.strerror}", retryable=False) from None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return fd
        os.close(fd)
    raise BlobNotFoundError(
        f"blob {name} is not in {' or '.join(directories)}", hint="name its folder with --blob-dir"
    )
