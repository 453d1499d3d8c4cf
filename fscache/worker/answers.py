"""What the worker answers besides filling segments: looks at bootstraps, and fetches what the keeper asks for."""

from __future__ import annotations

from collections.abc import Sequence

from ...erofs.blob_table import check_supported
from ...erofs.errors import NydusErofsError
from ...erofs.head import read_head
from ...erofs.ids import blob_id
from ...erofs.ondisk import BLOCK_SIZE
from ...erofs.record import round_up
from ...erofs.source import FileSource, Source
from ..backend.assemble import Backends
from ..backend.files import write_all
from ..backend.resilient import Resilient
from ..config.backend import Registry
from ..proto import worker as proto
from ..proto.fault import Fault

_MAX_RANGE = 1 << 30  # bytes of a blob in one answer; a chunk-info array has half of it at most


def answer(question: proto.AnyQuestion, files: Sequence[FileSource], backends: Backends) -> proto.Answer:
    """The answer to any question, given the files that came with it."""
    try:
        match question:
            case proto.Inspect():
                return proto.Inspected(question.ticket, _inspect(files[0]))
            case proto.Peek():
                return _peek(question, backends.get(question.remote))
            case proto.FetchRange():
                _fetch_range(question, files[0].fd, backends)
                return proto.RangeFetched(question.ticket)
            case proto.FetchBootstrap():
                from ..backend.bootstrap import fetch_bootstrap  # loaded with the backend

                version = fetch_bootstrap(
                    backends.get(question.remote), question.remote, question.name, files[0].fd,
                    known=question.known, digest=question.digest,
                )  # fmt: skip
                return proto.BootstrapFetched(question.ticket, version)
    except NydusErofsError as error:
        return proto.NotDone(question.ticket, Fault.of(error))
    except OSError as error:
        fault = Fault("CacheFullError", f"writing what was fetched: {error.strerror}")
        return proto.NotDone(question.ticket, fault)


def _peek(question: proto.Peek, backend: Resilient) -> proto.Peeked:
    from ..backend.lazy import LazyBootstrap, peek  # loaded with the backend

    found = None if isinstance(question.remote, Registry) else peek(backend, question.name)
    if found is None:
        return proto.Peeked(question.ticket)
    name, tree = found
    source = LazyBootstrap(backend, name, tree.identity, tree)
    return proto.Peeked(question.ticket, name, tree.size, tree.identity, _inspect(source))


def _inspect(bootstrap: Source) -> list[tuple[str, int]]:
    """The blobs of a bootstrap, read no further than its blob table."""
    blobs = []
    for blob in read_head(bootstrap).blobs:
        check_supported(blob.entry)
        blobs.append((str(blob.stored_id()), round_up(blob.entry.uncompressed_size, BLOCK_SIZE)))
    return blobs


def _fetch_range(question: proto.FetchRange, fd: int, backends: Backends) -> None:
    if not (0 < question.length <= _MAX_RANGE and question.offset >= 0):
        raise NydusErofsError(f"{question.length} bytes of a blob are too many at once")
    source = backends.blob(question.remote, blob_id(question.blob_id))
    write_all(fd, source.read_at(question.offset, question.length), 0)
