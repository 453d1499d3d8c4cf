"""Filling one segment: fetch, decode, verify, and hand over what is right."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from ...erofs.errors import BackendError, CacheFullError, CorruptError
from ...erofs.record import Buffer
from ...erofs.unit import Decoder, ReadAt, Unit
from ..state.plan import PlanChunk, PlanFlags
from .store import ZEROS, Store

RUN_GAP = 128 << 10  # bytes of the blob between two chunks that are cheaper to read than to skip
RUN_MAX = 16 << 20  # bytes of the blob in one backend read, unless a single chunk is larger
_TRIES = 2  # times each source is asked again for a chunk whose digest is wrong

_UNUSED, _COMPRESSED, _UNVERIFIED = (
    flag.value for flag in (PlanFlags.UNUSED, PlanFlags.COMPRESSED, PlanFlags.UNVERIFIED)
)


def fill(store: Store, segment: int, on_piece: Callable[[int], None], upto: int | None = None) -> int:
    """Make a segment complete, or its first ``upto`` bytes; the bytes fetched from the backend.

    Args:
        on_piece: called with the number of verified bytes from the segment's start as it grows.

    Raises:
        CorruptError, BackendError: a chunk cannot be had; what was written before it stays.
        CacheFullError: no room; likewise.
    """
    fetched = 0
    decoder = Decoder(store.plan.compression, store.digest)
    try:
        writer = store.sink.open(segment, store.plan.segments[segment], on_piece)
        try:
            missing = writer.missing(list(store.plan.chunks(segment)), store.digest)
            if upto is not None:
                end = store.plan.segments[segment].start + upto
                missing = [chunk for chunk in missing if chunk.uncompressed_offset < end]
            for run in _runs(missing):
                data, base = _fetch(store, run)
                fetched += len(data)
                for chunk in run:
                    writer.put(chunk, _chunk(store, decoder, chunk, data, base))
            writer.flush()
        finally:
            writer.close()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheFullError("no room left for fetched data", hint="free space where the cache is") from None
        raise BackendError(f"writing the cache: {error.strerror}", retryable=False) from None
    return fetched


def _fetch(store: Store, run: list[PlanChunk]) -> tuple[memoryview, int]:
    """The compressed bytes of a run and the blob offset they start at; sources are tried in turn."""
    used = [c for c in run if not c.flags & _UNUSED]
    if not used:
        return memoryview(b""), 0
    base = used[0].compressed_offset
    length = max(c.compressed_offset + c.compressed_size for c in used) - base
    failures = []
    for source in store.sources:
        try:
            return memoryview(source.read_at(base, length)), base
        except BackendError as error:
            failures.append(error)
    if not failures:
        raise BackendError(f"blob {store.plan.blob_id}: nothing to read it from", retryable=False)
    # The one that may pass speaks for all: another try is worth while.
    failure = next((error for error in failures if error.retryable), failures[0])
    failure.message = f"blob {store.plan.blob_id}: {failure.message}"
    raise failure


def _chunk(store: Store, decoder: Decoder, chunk: PlanChunk, data: memoryview, base: int) -> Buffer:
    """One chunk, decoded and verified; one that is wrong is asked for again before giving up."""
    if chunk.flags & _UNUSED:
        return ZEROS[: chunk.uncompressed_size]
    unit = Unit(chunk.compressed_offset, chunk.compressed_size, chunk.unit_size, bool(chunk.flags & _COMPRESSED))
    digest = None if chunk.flags & _UNVERIFIED else chunk.digest

    def decode(read_at: ReadAt) -> Buffer:
        return decoder.chunk(unit, chunk.unit_offset, chunk.uncompressed_size, digest, read_at)

    failure: BackendError
    try:
        return decode(lambda offset, length: data[offset - base : offset - base + length])
    except CorruptError as error:
        failure = error
    server = ""
    for source in store.sources * _TRIES:
        try:
            return decode(source.read_at)
        except CorruptError as error:
            failure, server = error, source.label
        except BackendError as error:
            failure = error
    if failure.retryable:
        raise failure
    raise CorruptError(
        f"blob {store.plan.blob_id}: chunk at byte {chunk.compressed_offset} ({chunk.compressed_size} bytes) "
        f"from {server or 'its backend'} is corrupt: {failure}",
        hint="replace the blob with an intact copy; readers get EIO until then",
    )


def _runs(chunks: list[PlanChunk]) -> Iterator[list[PlanChunk]]:
    """Chunks grouped so that each group is one backend read: near each other in the blob, not too many bytes."""
    run: list[PlanChunk] = []
    begin = end = 0
    for chunk in chunks:
        if not chunk.flags & _UNUSED:
            offset, size = chunk.compressed_offset, chunk.compressed_size
            near = begin <= offset <= end + RUN_GAP and offset + size - begin <= RUN_MAX
            if end and not near:
                yield run
                run, end = [], 0
            if not end:
                begin = offset
            end = max(end, offset + size)
        run.append(chunk)
    if run:
        yield run
