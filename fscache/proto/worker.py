"""Messages between keeper and worker, each one packet of a SOCK_SEQPACKET socket.

A *store* is the cache of one blob, made of segment files; the keeper numbers the stores it has open.
Descriptors travel beside ``OpenStore`` (plan, segment folder, then the blob's sources), ``OpenObject``,
``AddSource``, ``Inspect`` and the two ``Fetch``. What the keeper asks with a ``ticket`` has one answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from ..config.backend import Remote
from .fault import Fault
from .packets import decoded

MAX_MESSAGE = 1 << 16


class Limits(NamedTuple):
    """What a worker may do at a time: ``threads`` in all; of these in the background for local and for remote blobs;
    seconds that readers wait for a backend that does not answer; bytes a second that are fetched in the background
    (0: no limit)."""

    threads: int
    background: int
    remote_background: int
    patience: int
    bandwidth: int


class Why(StrEnum):
    """What a segment was filled for."""

    DEMAND = "demand"  # a reader waits
    AHEAD = "ahead"  # a sequential reader will be there soon
    PREFETCH = "prefetch"


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    pass


class OpenStore(_Message):
    """Serve this store. ``trusted``: what the segment files hold was written since the last boot or synced."""

    store: int
    trusted: bool
    remotes: list[Remote] = []


class Published(msgspec.Struct, forbid_unknown_fields=True):
    """A bootstrap to be read in pieces from where it is published: its object's name and the image's identity."""

    remote: Remote
    name: str
    identity: str


class OpenObject(_Message):
    """Serve an object of the kernel's cache. Descriptors: the object, then the plan and the blob's sources; or,
    for a bootstrap of ``raw_size`` bytes, which is served as it is, its file; without a file it is ``published``."""

    store: int
    raw_size: int = 0
    segment_size: int = 0
    remotes: list[Remote] = []
    published: Published | None = None


class Inspect(_Message):
    """Tell which blobs the bootstrap (one descriptor) has."""

    ticket: int


class Identify(_Message):
    """Tell the identity of the bootstrap (one descriptor)."""

    ticket: int


class Peek(_Message):
    """Look at the bootstrap published under ``name`` without fetching it."""

    ticket: int
    remote: Remote
    name: str


class FetchRange(_Message):
    """Fetch a piece of a blob into the file (one descriptor), from its start."""

    ticket: int
    remote: Remote
    blob_id: str
    offset: int
    length: int


class FetchBootstrap(_Message):
    """Fetch the bootstrap published under ``name`` into the empty file (one descriptor), unless its version is still
    ``known``. ``digest``: the identity that it must have, if one is demanded."""

    ticket: int
    remote: Remote
    name: str
    known: str = ""
    digest: str = ""


class AddSource(_Message):
    """One more place to have the blob's bytes from."""

    store: int
    remotes: list[Remote] = []


class CloseStore(_Message):
    """Forget this store; fills under way end by themselves. With ``sync``, then write it to disk and say so."""

    store: int
    sync: bool


class Fill(_Message):
    """A reader waits for bytes up to ``end`` of this segment."""

    store: int
    segment: int
    end: int


class Touch(_Message):
    """A reader came to a segment that was filled before anybody asked."""

    store: int
    segment: int


class Prefetch(_Message):
    """Fill the whole store in the background, or stop doing so."""

    store: int
    on: bool


class Sync(_Message):
    """Write the store to disk and say so."""

    store: int


class Progress(_Message):
    """The first ``have`` bytes of this segment are there and verified; ``fetched`` bytes came from the backend."""

    store: int
    segment: int
    have: int
    done: bool
    why: Why
    fetched: int = 0


class Failed(_Message):
    """This segment cannot be filled now; its readers get EIO."""

    store: int
    segment: int
    message: str
    hint: str = ""
    full: bool = False


class Present(_Message):
    """Which segments of an object were there when it was opened: a bit each, lowest first, as hex."""

    store: int
    segments: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]+$")]


class Inspected(_Message):
    """The blobs of a bootstrap: (id, bytes of its uncompressed address space)."""

    ticket: int
    blobs: list[tuple[str, int]]


class Peeked(_Message):
    """A bootstrap that can be read in pieces: its object, bytes, identity and blobs. It cannot without ``identity``:
    then nothing else is said."""

    ticket: int
    name: str = ""
    size: int = 0
    identity: Annotated[str, msgspec.Meta(pattern="^(sha256:[0-9a-f]{64})?$")] = ""
    blobs: list[tuple[str, int]] = []


class Fetched(_Message):
    """What was asked for is in the file. Of a bootstrap: its version on the server, SHA-256 and identity; it was not
    fetched again when the version is the known one."""

    ticket: int
    version: str = ""
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    identity: Annotated[str, msgspec.Meta(pattern="^(sha256:[0-9a-f]{64})?$")] = ""


class NotDone(_Message):
    """Why a question has no answer."""

    ticket: int
    fault: Fault


class Traffic(_Message):
    """What a backend was asked since this worker started: requests, bytes that came, seconds they took together and
    at most; requests that failed, and those of them that were sent again at once."""

    backend: str
    requests: int = 0
    bytes: int = 0
    errors: int = 0
    retries: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    last_error: str = ""
    down: bool = False


class Postponed(_Message):
    """This segment cannot be had just now and is tried again; its readers wait."""

    store: int
    segment: int
    message: str


class Synced(_Message):
    """The store is on disk."""

    store: int


Question = Inspect | Identify | Peek | FetchRange | FetchBootstrap
Answer = Inspected | Peeked | Fetched | NotDone
ToWorker = OpenStore | OpenObject | AddSource | CloseStore | Fill | Touch | Prefetch | Sync | Question
ToKeeper = Progress | Failed | Postponed | Present | Synced | Traffic | Answer

_encode = msgspec.json.Encoder().encode
_to_worker: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
_to_keeper: msgspec.json.Decoder[ToKeeper] = msgspec.json.Decoder(ToKeeper)


def encode(message: ToWorker | ToKeeper) -> bytes:
    """One packet."""
    return _encode(message)


def decode_for_worker(packet: bytes) -> ToWorker:
    """A packet from the keeper; msgspec.DecodeError when it is not one."""
    return decoded(_to_worker, packet)


def decode_for_keeper(packet: bytes) -> ToKeeper:
    """A packet from the worker, which is not trusted; msgspec.DecodeError when it is not one."""
    return decoded(_to_keeper, packet)
