"""Filling one segment: fetch, decode, and offer it to the verifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...erofs.digest import digest_function
from ...erofs.errors import BackendError, CorruptError
from ...erofs.record import Buffer
from ...erofs.source import FileSource
from ...erofs.unit import Decoder, ReadAt, Unit
from ..proto.verifier import MOST_CHUNKS, PIECE, Piece, Proof, Verdict
from ..proto.worker import FillReason
from ..state.plan import PlanChunk, PlanFlags
from .offers import Judge, Offers, raise_for
from .store import Store

RUN_GAP = 128 << 10  # bytes of the blob between two chunks that are cheaper to read than to skip
RUN_MAX = 16 << 20  # bytes of the blob in one backend read, unless a single chunk is larger
_TRIES = 2  # times each source is asked again for a chunk whose digest is wrong

_UNUSED, _COMPRESSED, _UNVERIFIED = (
    flag.value for flag in (PlanFlags.UNUSED, PlanFlags.COMPRESSED, PlanFlags.UNVERIFIED)
)


class Fill:
    """One segment of a store that is being filled.

    Args:
        number: of the store, for the verifier.
        why: it is filled, by now.
        on_have: called with the number of verified bytes from the segment's start as it grows.
    """

    def __init__(
        self,
        store: Store,
        number: int,
        segment: int,
        judge: Judge,
        why: Callable[[], FillReason],
        on_have: Callable[[int], None],
    ) -> None:
        self._store, self._number, self._segment, self._judge = store, number, segment, judge
        self._why, self._on_have = why, on_have
        self._chunks = list(store.plan.chunks(segment))
        self._digest = digest_function(store.plan.digest_algo)
        self._decoder = Decoder(store.plan.compression, self._digest)

    def run(self, upto: int | None = None) -> int:
        """Make the segment complete, or its first ``upto`` bytes; the bytes fetched from the backend.

        Raises:
            CorruptError, BackendError: a chunk cannot be had; what was written before it stays.
            CacheFullError: no room; likewise.
        """
        if self._store.proof is not None:
            proof = self._store.proof()
            raise_for(self._judge.ask(Proof(self._number, len(proof)), [proof]))
            self._store.proof = None
        first, last = self._missing(upto)
        if first >= last:
            self._ask(0, [])  # all is there, which the keeper may not know
            return 0
        first = self._take_back(first, last)
        offers, fetched = Offers(self._ask, first, self._others), 0
        for run in _runs(self._chunks[first:last]):
            data, base = _fetch(self._store, run)
            fetched += len(data)
            for chunk in run:
                self._offer(offers, chunk, data, base)
        offers.flush()
        return fetched

    def _offer(self, offers: Offers, chunk: PlanChunk, data: memoryview, base: int) -> None:
        if chunk.flags & _UNUSED:
            offers.put(b"")
            return
        try:
            offers.put(_decode(self._decoder, chunk, lambda at, length: data[at - base : at - base + length]))
        except CorruptError:
            offers.put_another()

    def _missing(self, upto: int | None) -> tuple[int, int]:
        """The first chunk that is not there, and the one behind the last that is asked for."""
        begin, size = self._store.plan.segments[self._segment][2:]
        have = self._store.have(self._segment)
        if have is None:
            have = self._verdict(0, []).have
        ends = [chunk.uncompressed_offset - begin for chunk in self._chunks[1:]] + [size]
        # Go on behind the last whole chunk that is there.
        first = next((number for number, end in enumerate(ends) if end > have), len(ends))
        last = len(ends) if upto is None else sum(chunk.uncompressed_offset - begin < upto for chunk in self._chunks)
        return first, last

    def _ask(self, first: int, parts: list[Buffer]) -> int:
        verdict = self._verdict(first, parts)
        if verdict.good or not parts:
            self._on_have(verdict.have)
        return verdict.good

    def _verdict(self, first: int, parts: list[Buffer]) -> Verdict:
        verdict = self._judge.ask(Piece(self._number, self._segment, first, len(parts), self._why()), parts)
        raise_for(verdict)
        return verdict

    def _take_back(self, first: int, last: int) -> int:
        """Offer what a crash of the machine left aside; the first chunk that is missing then."""
        aside = self._store.aside(self._segment)
        while aside is not None and first < last:
            parts = self._parts_of(aside, self._chunks[first:last])
            good = self._ask(first, parts) if parts else 0
            first += good
            if not good or good < len(parts):
                break
        return first

    def _parts_of(self, aside: FileSource, chunks: list[PlanChunk]) -> list[Buffer]:
        """Bytes of the first of these chunks, as far as they can be read and verified."""
        parts: list[Buffer] = []
        begin = self._store.plan.segments[self._segment].start
        for chunk in chunks[:MOST_CHUNKS]:
            if chunk.flags & _UNVERIFIED or sum(map(len, parts)) >= PIECE:
                break
            size = 0 if chunk.flags & _UNUSED else chunk.uncompressed_size
            try:
                parts.append(aside.read_at(chunk.uncompressed_offset - begin, size))
            except BackendError:
                break
        return parts

    def _others(self, number: int) -> Iterator[Buffer]:
        """What each source says that a chunk is, asked for once more; an error when there is no more."""
        chunk, server = self._chunks[number], ""
        failure: BackendError = CorruptError("its bytes have another digest")
        for source in self._store.sources * _TRIES:
            decoder = Decoder(self._store.plan.compression, self._digest)  # this one knows no batch yet
            try:
                data = _decode(decoder, chunk, source.read_at)
            except CorruptError as error:
                failure, server = error, source.label
            except BackendError as error:
                failure = error
                continue
            else:
                yield data
                failure, server = CorruptError("its bytes have another digest"), source.label
            self._store.put_last(source)
        if failure.retryable:
            raise failure
        raise CorruptError(
            f"blob {self._store.plan.blob_id}: chunk at byte {chunk.compressed_offset} "
            f"({chunk.compressed_size} bytes) from {server or 'its backend'} is corrupt: {failure}",
            hint="replace the blob with an intact copy; readers get EIO until then",
        )


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


def _decode(decoder: Decoder, chunk: PlanChunk, read_at: ReadAt) -> Buffer:
    """One chunk's bytes, not verified."""
    unit = Unit(chunk.compressed_offset, chunk.compressed_size, chunk.unit_size, bool(chunk.flags & _COMPRESSED))
    return decoder.chunk(unit, chunk.unit_offset, chunk.uncompressed_size, None, read_at)


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
