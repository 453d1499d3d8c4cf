"""A prepared image on disk: the localized bootstrap and the list of stores whose segments are its devices.

``images/<id>/`` holds ``boot`` (localized bootstrap), ``image.json`` (this record) and, until the filesystem
was synced, ``epoch`` (see ``epoch.py``). The id stands for one bootstrap file as it was: same file, same id.
"""

from __future__ import annotations

import hashlib
import os
import re

import msgspec

from ...erofs.errors import FormatError
from ...erofs.segments import MAX_DEVICES
from ..decoding import decoded
from ..kernel.plain import open_plain, pass_on_unless_damage, read_plain
from .layout import segment_name

BOOT, RECORD = "boot", "image.json"
_FORMAT = 1  # raise it when what prepare writes changes
_MAX_RECORD = 1 << 20  # bytes; a record of 254 blobs takes less than a tenth of it
_KEY = re.compile("[0-9a-f]{64}")


class StoreRef(msgspec.Struct, forbid_unknown_fields=True):
    """One blob of an image: the store that caches it."""

    key: str
    blob_id: str
    segments: int
    size: int  # bytes of the blob's uncompressed address space


class ImageRecord(msgspec.Struct, forbid_unknown_fields=True):
    """What ``prepare`` found out about an image."""

    stores: list[StoreRef]
    boot_size: int  # bytes of the localized bootstrap; 0 without one


_RECORD = msgspec.json.Decoder(ImageRecord)


def image_id(bootstrap_fd: int, segment_size: int) -> str:
    """Name of the prepared image of an open bootstrap: changes whenever the file does."""
    status = os.fstat(bootstrap_fd)
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    text = repr((_FORMAT, segment_size, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(directory: str) -> ImageRecord:
    """The record in an image's folder; FormatError when it or the bootstrap is damaged, OSError when they cannot be
    read now."""
    try:
        record = decoded(_RECORD, read_plain(os.path.join(directory, RECORD), _MAX_RECORD))
        size = 0
        if record.boot_size:
            with open_plain(os.path.join(directory, BOOT)) as boot:
                size = os.fstat(boot.fd).st_size
    except (OSError, msgspec.MsgspecError) as error:
        pass_on_unless_damage(error)
        raise FormatError(f"prepared image {directory} is damaged: {error}") from None
    if size != record.boot_size:
        raise FormatError(f"prepared image {directory} is damaged: bootstrap of {size} bytes")
    for store in record.stores:
        if not _KEY.fullmatch(store.key) or not 0 < store.segments <= MAX_DEVICES:
            raise FormatError(f"prepared image {directory} is damaged: store {store.key[:80]!r}")
    return record


def devices(record: ImageRecord) -> list[str]:
    """Names of the device files in device table order, relative to the folder of all stores."""
    return [f"{store.key}/{segment_name(number)}" for store in record.stores for number in range(store.segments)]
