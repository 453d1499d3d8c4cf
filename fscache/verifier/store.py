"""A store as the verifier sees it: what its plan says of each chunk, and where chunks go that are as it says."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ...erofs import verity
from ...erofs.digest import digest_function
from ...erofs.errors import NydusErofsError
from ...erofs.rafs import MAX_CHUNK_SIZE
from ...erofs.record import Buffer
from ...erofs.segments import Segment
from ...erofs.source import Source
from ..proto.fault import MAX_TEXT
from ..proto.verifier import PIECE, Offer, Piece, Proof, Verdict
from ..state.plan import AnyPlan, PlanChunk, PlanFlags

ZEROS = memoryview(bytes(MAX_CHUNK_SIZE))
_UNUSED, _UNVERIFIED = PlanFlags.UNUSED.value, PlanFlags.UNVERIFIED.value
_LOCKS = 16  # segments that are written at the same time


class RefusedError(Exception):
    """A worker offered what nobody may."""


class Bytes(NamedTuple):
    """What a segment holds from byte ``start`` on: these, then zeros up to byte ``end``. None at all where the image
    has no use for a chunk."""

    start: int
    data: Buffer
    end: int


class Sink(Protocol):
    """Where the bytes of one store go."""

    def filled(self, plan: AnyPlan) -> bytearray:
        """One byte a segment: 1 when it is known to be complete."""
        ...

    def have(self, number: int, plan: AnyPlan) -> int:
        """Bytes that are there from a segment's start on."""
        ...

    def write(self, number: int, segment: Segment, content: Sequence[Bytes]) -> None:
        """Write what follows what is there, or overlaps it; OSError."""
        ...

    def cut(self, number: int, have: int) -> None:
        """Leave no more than the first bytes of a segment; OSError."""
        ...

    def sync(self) -> None:
        """Everything is on disk when this returns."""
        ...


class Store:
    """An open store. What it refers to closes its descriptors with the last reference.

    Args:
        raw: a bootstrap's file: its own bytes count, and nobody else's.
        identity: of a bootstrap: only what its digest tree has the hash of counts.
    """

    def __init__(self, plan: AnyPlan, sink: Sink, raw: Source | None = None, identity: str = "") -> None:
        self.plan, self.sink, self._raw, self._identity = plan, sink, raw, identity
        self._tree: verity.Tree | None = None
        self._digest = digest_function(plan.digest_algo)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self.filled, self.sync = sink.filled, sink.sync

    def judge(
        self, offer: Offer, copy: Callable[[int], memoryview], written: Callable[[int], None] = lambda _: None
    ) -> Verdict:
        """Write the chunks of a piece that are right, up to the first wrong one; or take a proof.

        Args:
            copy: gives so many bytes, which are what is offered, and which nobody else can change.
            written: told how many bytes of the segment are there now, before anybody else can change that.
        """
        try:
            if isinstance(offer, Proof):
                return self._take_proof(copy(offer.size))
            piece = offer
            chunks, ends, size = self._chunks(piece)
            return self._write(piece, chunks, ends, copy(size), written)
        except RefusedError as error:
            return Verdict(0, 0, str(error))
        except NydusErofsError as error:
            return Verdict(0, 0, error.message[:MAX_TEXT])
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return Verdict(0, 0, (error.strerror or str(error))[:MAX_TEXT], full)

    def cut(self, segment: int, have: int, done: Callable[[], None]) -> None:
        """Leave no more than its first ``have`` bytes of a segment, while nobody writes to it; OSError.

        Args:
            done: told then, before anybody can write to it again.
        """
        with self._locks[segment % _LOCKS]:
            self.sink.cut(segment, have)
            done()

    def _take_proof(self, raw: memoryview) -> Verdict:
        tree = verity.parse_tree(raw)
        if tree.identity != self._identity or tree.size != self.plan.size:
            raise RefusedError("the digest tree of another bootstrap")
        self._tree = tree
        return Verdict(0, 0)

    def _chunks(self, piece: Piece) -> tuple[list[PlanChunk], list[int], int]:
        """The chunks of a piece, where each ends in its segment, padding included, and their bytes in all.

        RefusedError when it is larger than a worker needs to make it.
        """
        if piece.segment >= len(self.plan.segments):
            raise RefusedError("no such segment")
        segment = self.plan.segments[piece.segment]
        if piece.first + piece.count > segment.chunks:
            raise RefusedError("no such chunk")
        rows = list(self.plan.chunks(piece.segment, piece.first, piece.count + 1))
        chunks = rows[: piece.count]
        sizes = [0 if chunk.flags & _UNUSED else chunk.uncompressed_size for chunk in chunks]
        if sum(sizes[:-1]) >= PIECE or max(sizes, default=0) > MAX_CHUNK_SIZE:
            raise RefusedError("a piece that is too large")
        ends = [row.uncompressed_offset - segment.start for row in rows[1:]]
        if len(rows) == piece.count:
            ends.append(segment.size)
        return chunks, ends, sum(sizes)

    def _write(
        self, piece: Piece, chunks: list[PlanChunk], ends: list[int], data: memoryview, written: Callable[[int], None]
    ) -> Verdict:
        segment, content, at = self.plan.segments[piece.segment], list[Bytes](), 0
        for chunk, end in zip(chunks, ends[: len(chunks)], strict=True):
            start, size = chunk.uncompressed_offset - segment.start, chunk.uncompressed_size
            if not 0 <= start <= start + size <= end <= segment.size:
                raise RefusedError("chunks that overlap")
            body: Buffer = b""
            if not chunk.flags & _UNUSED:
                body = data[at : at + size]
                at += size
                if self._raw is not None:
                    body = self._raw.read_at(chunk.uncompressed_offset, size)
                elif not self._is_right(chunk, body):
                    break
            content.append(Bytes(start, body, end))
        with self._locks[piece.segment % _LOCKS]:
            have = self.sink.have(piece.segment, self.plan)
            if content:
                if content[0].start > have:
                    raise RefusedError("chunks behind what is there")
                self.sink.write(piece.segment, segment, content)
                have = max(have, content[-1].end)
            written(have)
        return Verdict(len(content), have)

    def _is_right(self, chunk: PlanChunk, data: memoryview) -> bool:
        if not self._identity:
            return bool(chunk.flags & _UNVERIFIED) or self._digest(data) == chunk.digest
        if self._tree is None:
            raise RefusedError("a piece before its proof")
        return self._tree.agrees(chunk.uncompressed_offset, data)
