"""A store as the worker sees it: one blob's plan, where its bytes come from, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ...erofs.digest import DigestFunction, digest_function
from ...erofs.rafs import MAX_CHUNK_SIZE
from ...erofs.record import Buffer
from ...erofs.segments import Segment
from ...erofs.source import Source
from ..state.plan import AnyPlan, PlanChunk

PIECE = 512 << 10  # write at least this much at once, and wake waiting readers as often
ZEROS = memoryview(bytes(MAX_CHUNK_SIZE))

OnPiece = Callable[[int], None]


class SegmentWriter(Protocol):
    """One segment being filled."""

    def missing(self, chunks: Sequence[PlanChunk], digest: DigestFunction) -> list[PlanChunk]:
        """The chunks that have to be fetched, in order; reports what is there already to ``on_piece``.

        Args:
            digest: tells whether what may be damaged is right.
        """
        ...

    def put(self, chunk: PlanChunk, data: Buffer) -> None:
        """The verified bytes of the next missing chunk."""
        ...

    def flush(self) -> None:
        """Write what was put and not written yet."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where the bytes of one store go."""

    def filled(self, plan: AnyPlan) -> bytearray:
        """One byte a segment: 1 when it is known to be complete."""
        ...

    def open(self, number: int, segment: Segment, on_piece: OnPiece) -> SegmentWriter: ...

    def sync(self) -> None:
        """Everything is on disk when this returns."""
        ...


class BlobSource(Source, Protocol):
    """Where a blob's bytes come from; ``label`` names the place for people."""

    label: str


class Store:
    """An open store. What it refers to closes its descriptors with the last reference."""

    def __init__(self, plan: AnyPlan, sink: Sink, sources: Sequence[BlobSource]) -> None:
        self.plan = plan
        self.sink = sink
        self.sources = list(sources)
        self.digest = digest_function(plan.digest_algo)
