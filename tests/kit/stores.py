"""Stores over real files, as worker and verifier see them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.record import Buffer
from nydus_erofs.erofs.source import BufferSource, FileSource
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.proto import verifier as proto
from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.state.layout import SET_ASIDE, segment_name
from nydus_erofs.fscache.state.plan import Plan
from nydus_erofs.fscache.verifier.segment_files import SegmentFiles
from nydus_erofs.fscache.verifier.store import Store as CheckedStore
from nydus_erofs.fscache.worker.fill import Fill
from nydus_erofs.fscache.worker.store import BlobSource, Store


class OpenImage:
    """An image of ``nydus_images``, cut into segments, with its blob in memory."""

    def __init__(self, folder: Path, segment_size: int) -> None:
        self.boot = (folder / "boot").read_bytes()
        (path,) = (folder / "blobs").iterdir()
        self.name, self.blob = path.name, path.read_bytes()
        self.head = read_head(BufferSource(self.boot))
        (self.map,) = localize.read_blob_maps(self.boot, self.head, lambda _: BufferSource(self.blob), segment_size)
        self.plan = pack_plan(self.map)

    def image(self) -> Image:
        """The reader, which knows nothing of segments."""
        return Image(Bootstrap(BufferSource(self.boot)), lambda _: BufferSource(self.blob))


class Judging:
    """A verifier at the other end, without a process of its own."""

    def __init__(self, store: CheckedStore) -> None:
        self._store = store

    def ask(self, offer: proto.Offer, parts: list[Buffer]) -> proto.Verdict:
        data = memoryview(bytearray(b"".join(parts)))
        packet = proto.encode(self._store.judge(proto.decode_offer(proto.encode(offer)), lambda size: data[:size]))
        return proto.decode_verdict(packet)


def fill(
    store: Store, checked: CheckedStore, segment: int, on_have: Callable[[int], None], upto: int | None = None
) -> int:
    """Have a worker fill a segment, by way of a verifier; bytes fetched."""
    return Fill(store, 1, segment, Judging(checked), lambda: FillReason.DEMAND, on_have).run(upto)


@dataclass
class MadeStore:
    """A store, and the folder with its segments."""

    store: Store
    checked: CheckedStore
    folder: Path

    def fill(self, segment: int, on_have: Callable[[int], None] = lambda have: None, upto: int | None = None) -> int:
        return fill(self.store, self.checked, segment, on_have, upto)

    def path(self, number: int) -> Path:
        return self.folder / segment_name(number)

    def set_aside(self, number: int) -> Path:
        """Where a segment's bytes are after a crash of the machine."""
        return self.folder / SET_ASIDE / segment_name(number)


def make_store(folder: Path, image: OpenImage, *blobs: bytes) -> MadeStore:
    """A store in a folder, which may hold one already, with a source for each blob; without any, the image's own."""
    folder.mkdir(exist_ok=True)
    if not (folder / "plan").exists():
        (folder / "plan").write_bytes(image.plan)
        for number in range(len(image.map.segments)):
            (folder / segment_name(number)).touch()
    sources: list[BlobSource] = []
    for blob in blobs or [image.blob]:
        fd = os.memfd_create("blob")
        os.write(fd, blob)
        sources.append(FileSource(fd))
    plan = Plan(Fd(os.open(folder / "plan", os.O_RDONLY)))
    place = Fd(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    return MadeStore(Store(plan, sources, place), CheckedStore(plan, SegmentFiles(place)), folder)


class OpenImages(Protocol):
    """``open_image(name, segment_size)``: one of ``nydus_images``."""

    def __call__(self, name: str = ..., segment_size: int = ...) -> OpenImage: ...


class MakeStore(Protocol):
    """``make_store(image, *blobs, where=)``: a store in ``where``, or in a folder of its own."""

    def __call__(self, image: OpenImage, *blobs: bytes, where: Path | None = ...) -> MadeStore: ...
