"""Images whose bootstraps the kernel has open: the plans of their blobs, and what images of a domain share.

A bootstrap is an object like any other and is read by the kernel as it needs it, so mounting does not wait for
metadata; what the data needs (digests, chunk-info) is prepared behind the mount's back. Only where an image shares a
blob with others must it be known before it is mounted that they agree about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from functools import partial

from ....erofs.errors import BackendError, FormatError, NydusErofsError
from ....erofs.ids import blob_id
from ....erofs.rafs import MAX_BOOTSTRAP_SIZE
from ....erofs.record import round_up
from ...kernel.fd import Fd
from ...proto.cachefiles import BLOCK_SIZE
from ...state.layout import PLAN
from ..images.bootstraps import Bootstraps, Opened
from ..images.healing import Healer
from ..images.origin import Origin
from ..images.places import Places
from ..images.prepared import Images
from ..log import logger
from ..paths import StatePaths
from ..stores.kept_store import KeptStore
from ..stores.spec import BlobSpec, BootstrapSpec, load_plan
from ..stores.table import StoreTable
from ..tasks import background
from ..trouble import report
from .fsid_mounts import is_ours
from .names import Cached, Names
from .objects import CacheObject, ObjectTable

_METADATA_SEGMENT = 128 << 10  # bytes of a bootstrap that are loaded at once
_AGAIN = 1.0  # seconds until what a server has of an image is asked for again


@dataclass(eq=False, slots=True)
class ServedImage:
    """An image in a volume; ``opened`` is its bootstrap as it was when it was opened."""

    fsid: str
    volume: str
    origin: Origin
    prefetch: bool
    opened: Opened
    agreed: bool = False  # with the other images of its domain
    cache_object: CacheObject | None = None  # of its bootstrap
    store: KeptStore | None = None  # the same
    plans: asyncio.Task[dict[str, str]] | None = None  # blob id -> key of its plan

    def known_plan(self, blob: str) -> str | None:
        """Key of the plan of a blob, if it was made."""
        done = self.plans is not None and self.plans.done() and self.plans.exception() is None
        return self.plans.result().get(blob) if self.plans is not None and done else None


class ServedImages:
    """All of them by volume and fsid."""

    def __init__(
        self,
        state: StatePaths,
        table: StoreTable,
        objects: ObjectTable,
        names: Names,
        bootstraps: Bootstraps,
        images: Images,
    ) -> None:
        self._state, self._table, self._objects, self._names = state, table, objects, names
        self._bootstraps, self._images = bootstraps, images
        self._healer = Healer(table, is_ours)
        self._served: dict[tuple[str, str], ServedImage] = {}

    def find(self, volume: str, fsid: str) -> ServedImage | None:
        """The image, if the kernel has its bootstrap open."""
        image = self._served.get((volume, fsid))
        return image if image is not None and image.cache_object is not None else None

    def identity(self, opened: Opened) -> str:
        """What changes when a bootstrap does; fit for an fsid."""
        if opened.identity:
            return opened.identity.rpartition(":")[2][:32]
        assert opened.file is not None
        return self._images.id_of(opened.file)

    def _with_blob(self, volume: str, blob: str) -> list[ServedImage]:
        """The images of a volume that use a blob and agree about it, in the order in which they came."""
        found = (image for image in self._served.values() if image.volume == volume and image.agreed)
        return [image for image in found if blob in image.opened.blobs]

    # --- opening objects ---

    async def open_blob(self, volume: str, blob: str) -> Cached | None:
        """What a blob's object is opened with; None when no image of the volume has such a blob."""
        images = self._with_blob(volume, blob)
        if not images:
            return None
        claimed = await self._names.claim(volume, {blob: (blob, images[0].opened.blobs[blob])})
        return claimed[blob]

    async def open_bootstrap(self, image: ServedImage) -> Cached:
        """What the object of an image's bootstrap is opened with; FormatError when the image cannot be served, or
        disagrees with another one of its domain."""
        name = image.volume, image.fsid
        before = self._served.pop(name, None)  # the kernel may not have closed it yet
        self._served[name] = image
        try:
            content = self.identity(image.opened), _length(image)
            await self._join(image)
            claimed = await self._names.claim(image.volume, {image.fsid: content})
        except BaseException:
            if self._served.get(name) is image:
                del self._served[name]
                if before is not None and before.cache_object is not None and not before.cache_object.closed:
                    self._served[name] = before
            raise
        return claimed[image.fsid]

    def serve(self, cache_object: CacheObject, image: ServedImage | None) -> None:
        """The kernel has an object now: of an image's bootstrap, or of a blob."""
        if image is None:
            background(self._serve_blob(cache_object), "blob cannot be served")
            return
        try:
            self._serve_bootstrap(image, cache_object)
        except OSError as error:
            report("an image is not served", error, image=image.origin.image)
            cache_object.trouble = str(error)
            self._objects.give_up(cache_object)

    def closed(self, cache_object: CacheObject) -> None:
        """The kernel has closed an object. An image goes with its bootstrap's."""
        name = cache_object.volume, cache_object.cookie
        image = self._served.get(name)
        if image is not None and image.cache_object is cache_object:
            del self._served[name]

    # --- what images of a domain share ---

    async def _join(self, image: ServedImage) -> None:
        """Join the images of the domain that use the same blobs; FormatError when they disagree about one.

        What the kernel has of a blob is given to all of them, whoever it was fetched for.
        """
        volume, blobs = image.volume, image.opened.blobs
        closed = {blob: (blob, size) for blob, size in blobs.items() if self._objects.find(volume, blob) is None}
        await self._names.claim(volume, closed)
        while await self._agree(image):
            pass  # others may have come meanwhile
        image.agreed = True
        for blob in blobs:
            if (cache_object := self._objects.find(volume, blob)) is not None:
                await self._fill(image, cache_object)

    async def _agree(self, image: ServedImage) -> bool:
        """Have an image agree about each blob with those that were there before, and with what was verified by plans
        before them; whether that took any time."""
        volume, waited = image.volume, False
        for blob, size in image.opened.blobs.items():
            others = self._with_blob(volume, blob)
            if any(other.opened.blobs[blob] != size for other in others):
                raise FormatError(
                    f"blob {blob} has another size in another image of domain {volume}",
                    hint="mount one of the images in another domain",
                )
            cache_object = self._objects.find(volume, blob)
            cached = self._names.cached(volume, blob) if cache_object is None else cache_object.cached
            for one in (*others, image) if others or cached.plans else ():
                if one.known_plan(blob) not in cached.plans:
                    waited = True
                    try:
                        await self._names.agree(cached, volume, blob, await self._key(one, blob))
                    except NydusErofsError:
                        if one is image or self._served.get((volume, one.fsid)) is one:
                            raise
        return waited

    async def _key(self, image: ServedImage, blob: str) -> str:
        """Key of the plan that an image has of a blob, made once it is needed."""
        if image.plans is None or (image.plans.done() and image.plans.exception() is not None):
            image.plans = asyncio.get_running_loop().create_task(self._prepare(image))
            image.plans.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody asks
        plans = await asyncio.shield(image.plans)
        if blob not in plans:
            raise FormatError(f"{image.origin.image}: nothing is known of blob {blob}")
        return plans[blob]

    async def _prepare(self, image: ServedImage) -> dict[str, str]:
        with await self._whole(image) as bootstrap, Places(image.origin, is_ours) as places:
            name, provide = self._images.id_of(bootstrap), self._bootstraps.provider(places)
            record = await self._images.get(name, bootstrap, provide)
            plans = {ref.blob_id: ref.key for ref in record.stores}
            try:
                for key in plans.values():
                    load_plan(self._plan_of(key))[1].close()
            except FormatError as error:
                logger().warning("a prepared image is damaged: preparing it again", image=name, error=error.message)
                record = await self._images.get(name, bootstrap, provide, anew=True)
                plans = {ref.blob_id: ref.key for ref in record.stores}
        return plans

    async def _whole(self, image: ServedImage) -> Fd:
        """The whole bootstrap of an image: one that is read in pieces is fetched."""
        if image.opened.file is not None:
            return image.opened.file.dup()
        assert image.opened.published is not None
        file = await self._bootstraps.bootstrap(image.origin, None, image.opened.published.identity)
        if image.store is not None and self._table.is_open(image.store):
            self._table.add_source(image.store, file.dup())
            self._table.prefetch(image.store, True)
        return file

    def _plan_of(self, key: str) -> str:
        return os.path.join(self._state.store_of(key), PLAN)

    # --- filling objects ---

    def _serve_bootstrap(self, image: ServedImage, cache_object: CacheObject) -> None:
        opened = image.opened
        sizes = [
            round_up(min(_METADATA_SEGMENT, opened.size - start), BLOCK_SIZE)
            for start in range(0, opened.size, _METADATA_SEGMENT)
        ]
        spec = BootstrapSpec(sizes, cache_object.fd.dup(), opened.size, _METADATA_SEGMENT, opened.published)
        source = opened.file.dup() if opened.file is not None else None
        image.store = self._objects.add_store(cache_object, "", spec, source)
        self._objects.serve(cache_object)
        if source is not None:
            self._table.prefetch(image.store, True)

    async def _serve_blob(self, cache_object: CacheObject) -> None:
        """Once the plans of all images that use a blob are there, fill its object; until then its readers wait.

        What a server has of them may be out of reach for a while: readers get EIO when that lasts too long
        (``objects.py``), and are served once it is back.
        """
        while not cache_object.closed:
            try:
                for image in self._with_blob(cache_object.volume, cache_object.cookie):
                    await self._fill(image, cache_object)
            except (NydusErofsError, OSError) as error:
                passing = error.retryable if isinstance(error, BackendError) else not isinstance(error, FormatError)
                if not cache_object.trouble:
                    logger().error(
                        "blob cannot be served", blob=cache_object.cookie, error=str(error), passing=passing
                    )
                cache_object.trouble = str(error)
                if not passing:
                    self._objects.give_up(cache_object)
                    return
                await asyncio.sleep(_AGAIN)
            else:
                break
        if cache_object.stores and not cache_object.closed:
            self._objects.serve(cache_object)

    async def _fill(self, image: ServedImage, cache_object: CacheObject) -> None:
        """Fill a blob's object by the plan that an image has of it, too."""
        blob = cache_object.cookie
        key = await self._key(image, blob)
        await self._names.agree(cache_object.cached, cache_object.volume, blob, key)
        with Places(image.origin, is_ours) as places:
            if key not in cache_object.stores:
                await places.look_for([blob_id(blob)])
            if cache_object.closed:
                return
            store = cache_object.stores.get(key) or self._open_store(image, cache_object, key, places)
        if image.prefetch and not store.prefetching:
            self._table.prefetch(store, True)

    def _open_store(self, image: ServedImage, cache_object: CacheObject, key: str, places: Places) -> KeptStore:
        blob, source = blob_id(cache_object.cookie), None
        with contextlib.suppress(BackendError):  # all of it may be cached; what is not gets EIO
            source = places.take(blob)
        sizes, plan = load_plan(self._plan_of(key))
        store = self._objects.add_store(cache_object, key, BlobSpec(sizes, cache_object.fd.dup(), plan), source)
        self._healer.watch(store, blob, partial(self._origins, cache_object.volume, blob))
        return store

    def _origins(self, volume: str, blob: str) -> list[Origin]:
        """Where the images that use a blob come from."""
        return [image.origin for image in self._with_blob(volume, blob)]


def _length(image: ServedImage) -> int:
    """Bytes of a bootstrap in whole blocks; FormatError when nobody can mean that."""
    size = image.opened.size
    if not 0 < size <= MAX_BOOTSTRAP_SIZE:
        raise FormatError(f"{image.origin.image}: a bootstrap of {size} bytes")
    return round_up(size, BLOCK_SIZE)
