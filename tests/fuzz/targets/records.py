"""What lies in the service's folders: plans and records, which root reads and does not believe."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

import msgspec

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.rafs import Compression, DigestAlgo
from nydus_erofs.fscache.config.backend import Registry
from nydus_erofs.fscache.keeper.engine.agreement import check_agreement
from nydus_erofs.fscache.keeper.engine.mounted import MountRecord, load_record
from nydus_erofs.fscache.keeper.engine.names import Cached, Names, Registered
from nydus_erofs.fscache.keeper.images.bootstraps import Bootstraps, _key, _Known
from nydus_erofs.fscache.keeper.images.measure import Measured
from nydus_erofs.fscache.keeper.images.origin import ImageRequest, Origin
from nydus_erofs.fscache.keeper.stores import epoch as epochs
from nydus_erofs.fscache.keeper.stores.spec import load_folder, load_plan
from nydus_erofs.fscache.state import image
from nydus_erofs.fscache.state.layout import segment_name
from nydus_erofs.fscache.state.plan import CHUNK, MAGIC, SEGMENT, PlanHeader
from tests.fuzz import mutate
from tests.fuzz.target import target

KEY = "ab" * 32
encode = msgspec.json.encode


@functools.cache
def folder() -> str:
    """A folder of this process's own, in memory where that can be."""
    path = tempfile.mkdtemp(prefix="ne.fuzz", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def put(name: str, data: bytes) -> str:
    """The path of a file with this name and content."""
    path = os.path.join(folder(), name)
    with open(path, "wb") as file:
        file.write(data)
    return path


# --- plans ----------------------------------------------------------------------------------------------------

_HEADER = PlanHeader.size()


def make_plan(segments: int = 3, each: int = 2, chunk: int = 4096) -> bytes:
    """A sound one."""
    header = PlanHeader(MAGIC, KEY.encode(), Compression.ZSTD, DigestAlgo.SHA256, segments, segments * each, chunk)
    size = each * chunk
    table = [SEGMENT.pack(number * size, size, number * each, each) for number in range(segments)]
    chunks = [CHUNK.pack(bytes(32), at, at, chunk, chunk, 1, chunk, 0) for at in range(0, segments * size, chunk)]
    return header.pack() + b"".join(table + chunks)


def _plan_seeds() -> Iterator[bytes]:
    yield make_plan()
    yield make_plan(1, 1, 1 << 20)
    yield make_plan(40, 1)


def _true_counts(raw: bytes) -> bytes:
    """As many chunks as there is room for, and segments that follow each other."""
    if len(raw) < _HEADER:
        return raw
    out = bytearray(raw)
    (segments,) = struct.unpack_from("<I", out, 80)
    room = len(out) - _HEADER - segments * SEGMENT.size
    if room < 0:
        return raw
    chunks = room // CHUNK.size
    struct.pack_into("<I", out, 84, chunks)
    del out[_HEADER + segments * SEGMENT.size + chunks * CHUNK.size :]
    first = start = 0
    for number in range(segments):
        at = _HEADER + number * SEGMENT.size
        _, size, _, count = SEGMENT.unpack_from(out, at)
        count = chunks - first if number == segments - 1 else count
        SEGMENT.pack_into(out, at, start % (1 << 64), size, first % (1 << 32), max(count, 0) % (1 << 32))
        first, start = first + count, start + size
    return bytes(out)


@target(_plan_seeds, mutate.repaired(mutate.number, _true_counts))
def plan(data: bytes) -> object:
    """What keeper and worker read of a plan, and that one agrees with itself."""
    path = put("plan", data)
    sizes, fd = load_plan(path)
    with fd:
        assert 0 < len(sizes) <= len(data)
        assert all(size > 0 and not size % 4096 for size in sizes)
    check_agreement([path], path, KEY, "domain")
    return min(len(sizes), 5)


@target(_plan_seeds, mutate.repaired(mutate.number, _true_counts))
def store_folder(data: bytes) -> object:
    """A folder with this plan, an epoch and three segment files of one block, the last of them longer."""
    path = os.path.join(folder(), "store")
    if not os.path.isdir(path):
        os.mkdir(path)
        for number in range(3):
            put(f"store/{segment_name(number)}", bytes(4096 << number))
    put("store/plan", data)
    put("store/epoch", epochs.era() if len(data) % 2 else data[-32:])
    spec = load_folder(path, os.geteuid())
    try:
        assert 0 < len(spec.sizes) == len(spec.have) == len(spec.inodes) <= 3
        assert all(0 <= have <= size for have, size in zip(spec.have, spec.sizes, strict=True))
        assert len(data) % 2, "what a crash may have damaged is not opened"
    finally:
        spec.close()
    return True


# --- records --------------------------------------------------------------------------------------------------

_GIVEN = ImageRequest("/image.meta", ["/blobs", "/more"], "/backend.json")


def _image_seeds() -> Iterator[bytes]:
    stores = [image.StoreRef(KEY, KEY, 3, 12288), image.StoreRef("0" * 64, KEY, 1, 4096)]
    yield encode(image.ImageRecord(stores, 4))
    yield encode(image.ImageRecord([], 0))


@target(_image_seeds, mutate.document, refusals=(FormatError,))
def image_record(data: bytes) -> object:
    put("boot", b"boot")
    put("image.json", data)
    record = image.load(folder())
    assert record.boot_size in (0, 4)
    names = image.devices(record)
    assert not any(".." in name or "\0" in name for name in names)
    assert len(names) == sum(store.segments for store in record.stores)
    return len(record.stores)


def _mount_seeds() -> Iterator[bytes]:
    yield encode(MountRecord("0" * 32, _GIVEN, "/mnt", True))
    yield encode(MountRecord("a1", ImageRequest("s3://b/k"), "/m n", False))


@target(_mount_seeds, mutate.document, refusals=(FormatError,))
def mount_record(data: bytes) -> object:
    put("mount.json", data)
    record = load_record(folder())
    assert "/" not in record.image
    for name in (record.target, record.given.image, *record.given.folders):
        os.fsencode(os.path.join("/", name))
    return bool(record.given.folders), record.prefetch


class _Paths:
    bootstraps = ""


_REMOTE = Origin("host/repo:tag", [], Registry(host="host", repo="repo"), "tag")


def _bootstrap_seeds() -> Iterator[bytes]:
    yield encode(_Known("version", Measured(KEY, f"sha256:{KEY}")))


@target(_bootstrap_seeds, mutate.document, refusals=())
def bootstrap_record(data: bytes) -> object:
    put(f"{KEY}.meta", b"")
    put(f"{_key(_REMOTE)}.json", data)
    paths: Any = _Paths()
    paths.bootstraps = folder()
    link: Any = None
    known = Bootstraps(paths, link)._load(_key(_REMOTE))
    assert known is None or known.measured.sha256 == KEY
    return known is None


def _sealed(body: bytes) -> bytes:
    """With the digest that a table must have."""
    body = body.partition(b"\n")[2]
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _names_seeds() -> Iterator[bytes]:
    cached = {"volume/cookie": Cached("sha256:1", 4096, 8192, [KEY]), "v/c": Cached("", 0, 0)}
    yield _sealed(b"\n" + encode(cached))
    yield _sealed(b"\n" + encode({"volume/fsid": Registered(_GIVEN, True)}))


def _in_table(data: bytes, rng: Any) -> bytes:
    digest, _, body = data.partition(b"\n")
    return digest + b"\n" + mutate.document(body, rng)


@target(_names_seeds, mutate.repaired(_in_table, _sealed), refusals=())
def names(data: bytes) -> object:
    """Both tables of the cachefiles engine, and that no content of a name gets a size that another one had."""
    path = put("names.json", data)
    found = Names(path, path, lambda key: os.path.join(folder(), key))
    for name, known in list(found._cached.entries.items()):
        claimed = found._claim(name, "another", 4096)
        assert claimed.size > known.size or claimed is known
        assert claimed.size >= claimed.bytes
        encode(claimed)
    for registered in found._registered.entries.values():
        encode(registered)
    return found.knows_cache, bool(found._cached.entries), bool(found._registered.entries)


def _epoch_seeds() -> Iterator[bytes]:
    yield epochs.era()
    yield b""


@target(_epoch_seeds, refusals=())
def epoch(data: bytes) -> object:
    put("epoch", data)
    trusted = epochs.trusted(folder())
    assert trusted == (data[:64] == epochs.era())
    assert epochs.begun(folder())
    return trusted
