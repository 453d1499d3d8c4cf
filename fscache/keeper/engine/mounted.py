"""One mounted image of the fanotify engine: what it holds, and what is on disk to serve it after a restart."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import msgspec

from ....erofs.errors import FormatError
from ....erofs.ids import BlobId
from ...decoding import decoded
from ...kernel.plain import pass_on_unless_damage, read_plain
from ...state.layout import BOOT, MOUNT_RECORD, STALE
from .. import durable
from ..images.origin import ImageRequest, Origin
from ..paths import StatePaths
from ..stores.kept_store import KeptStore
from ..stores.table import StoreTable
from .watch import WatchedImage

_MAX_RECORD = 1 << 20  # bytes


class MountRecord(msgspec.Struct):
    """What must be known to serve a live mount after a restart (``mounts/<n>/mount.json``)."""

    image: str  # id of the prepared image
    given: ImageRequest
    target: str
    prefetch: bool


_RECORD = msgspec.json.Decoder(MountRecord)


def boot_of(state: StatePaths, record: MountRecord) -> str:
    """The localized bootstrap that is mounted: EROFS has its path for a source."""
    return os.path.join(state.image(record.image), BOOT)


def load_record(folder: str) -> MountRecord:
    """The record in a mount's folder; FormatError when it is damaged, OSError when it cannot be read now."""
    try:
        record = decoded(_RECORD, read_plain(os.path.join(folder, MOUNT_RECORD), _MAX_RECORD))
    except (OSError, msgspec.MsgspecError) as error:
        pass_on_unless_damage(error)
        raise FormatError(f"{MOUNT_RECORD}: {error}") from None
    given = record.given
    names = (record.image, record.target, given.image, given.backend_file, *given.folders)
    if not record.image.isalnum() or any("\0" in name for name in names):
        raise FormatError(f"{MOUNT_RECORD}: image {record.image[:80]!r}")
    return record


class MountedImage:
    """One mounted image and what it holds: stores, and the engine's kernel side."""

    def __init__(
        self,
        folder: str,
        record: MountRecord,
        origin: Origin,
        blobs: Sequence[BlobId],
        stores: Sequence[KeptStore],
        watched: WatchedImage,
        table: StoreTable,
    ) -> None:
        self.folder, self.record, self.origin = folder, record, origin
        self.blobs, self.stores, self.watched = blobs, stores, watched  # stores[n] caches blobs[n]
        self._table = table
        self.mount_id = 0  # of the mount on its target
        self.stale = os.path.lexists(os.path.join(folder, STALE))  # what the kernel remembers of it may be wrong
        self.detached = False  # not mounted on its target any more, but still in use somewhere

    @property
    def through(self) -> str:
        return self.watched.through

    def prefetch(self, on: bool) -> None:
        """Have everything fetched, if that is wanted, or no longer."""
        if self.record.prefetch:
            for store in self.stores:
                self._table.prefetch(store, on)

    def save(self) -> None:
        durable.write_until_reboot(os.path.join(self.folder, MOUNT_RECORD), msgspec.json.encode(self.record))

    def note_stale(self) -> None:
        """Files that the kernel remembers are about to turn out wrong: that is known until it has forgotten them,
        also by the next service."""
        self.stale = True
        durable.write_until_reboot(os.path.join(self.folder, STALE), b"")

    def note_forgotten(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, STALE))
        self.stale = False

    def finished(self) -> bool:
        """Let go of everything if nothing uses the filesystem any more. The bind mount tells: EROFS holds it."""
        if not self.watched.try_unbind():
            return False
        self.prefetch(False)
        for store in self.stores:
            self._table.close(store)
        return True
