"""Blobs that cannot be read are looked for again: somebody may have put an intact copy in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ....erofs.errors import NydusErofsError
from ....erofs.ids import BlobId
from ..log import logger
from ..stores.kept_store import KeptStore
from ..stores.table import StoreTable
from ..tasks import background
from .files import Own
from .origin import Origin
from .places import Places


class Healer:
    """Looks for the blobs of stores in a table, once at a time for each store.

    Args:
        own: tells mounts of this service.
    """

    def __init__(self, table: StoreTable, own: Own) -> None:
        self._table, self._own = table, own
        self._looking: set[str] = set()  # keys of stores whose blob is being looked for

    def watch(self, store: KeptStore, blob: BlobId, origins: Callable[[], Sequence[Origin]]) -> None:
        """From now on look for a store's blob, wherever the images that have it by then come from, when it cannot be
        read."""
        store.reopen = partial(self._look_again, store, blob, origins)

    def _look_again(self, store: KeptStore, blob: BlobId, origins: Callable[[], Sequence[Origin]]) -> None:
        if store.key not in self._looking:
            self._looking.add(store.key)
            background(self._reopen(store, blob, origins()), "a blob cannot be looked for")

    async def _reopen(self, store: KeptStore, blob: BlobId, origins: Sequence[Origin]) -> None:
        try:
            for origin in origins:
                await self._reopen_from(store, blob, origin)
        finally:
            self._looking.discard(store.key)

    async def _reopen_from(self, store: KeptStore, blob: BlobId, origin: Origin) -> None:
        try:
            with Places(origin, self._own) as places:
                self._table.add_source(store, await places.find(blob))
        except NydusErofsError as error:
            logger().debug("its blob is not there", store=store.label, error=error.message)
