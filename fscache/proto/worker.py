"""Messages between keeper and worker, each one packet of a SOCK_SEQPACKET socket.

A *store* is the cache of one blob; the keeper numbers the stores it has open. Descriptors travel beside ``Connect``,
``OpenStore``, ``OpenBootstrap``, ``AddSource``, ``Inspect`` and the two ``Fetch``; none ever travels to the keeper.
What the keeper asks with a ``ticket`` has one answer, of the one type that the question names, or ``NotDone``. How
much of a segment is there the worker does not say: the verifier does (``proto/verifier.py``), which sees it.

The worker is not believed: what it may say is bounded here, field by field. Whether a message makes sense (a store
that is open, a segment that it has) is for the keeper's table (``keeper/stores/table.py``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from ..config.backend import Remote
from ..decoding import decoded
from .fault import Fault, Text

MAX_MESSAGE = 1 << 16
MAX_FDS = 16  # beside one message

Number = Annotated[int, Meta(ge=0, lt=1 << 31)]  # of a store, a segment or a ticket
Bytes = Annotated[int, Meta(ge=0, lt=1 << 53)]
Count = Bytes
Seconds = Annotated[float, Meta(ge=0, le=1e9)]  # not infinite, not NaN
Identity = Annotated[str, Meta(pattern="^(sha256:[0-9a-f]{64})?$", max_length=71)]  # of a bootstrap, or none
Blobs = Annotated[list[tuple[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")], Bytes]], Meta(max_length=256)]


MOST_SERVERS = 128  # that have a thread of their own at a time; a reader of one more waits
_LANES = 4  # servers and disks that may all be busy at once with all the threads that one may have


class Limits(NamedTuple):
    """What a worker may do at a time: ``threads`` for what comes from one server or disk; of these in the background
    for local and for remote blobs; bytes a second that are fetched in the background (0: no limit)."""

    threads: int
    background: int
    remote_background: int
    bandwidth: int

    @property
    def all_threads(self) -> int:
        """That all servers and disks share. Each has one of its own besides, for the time when others hold these."""
        return _LANES * self.threads

    @property
    def most_threads(self) -> int:
        """That there may be at a time."""
        return self.all_threads + MOST_SERVERS

    @property
    def scheduling(self) -> tuple[int, int, int, int]:
        """The worker's scheduler is made with these."""
        return self.threads, self.background, self.remote_background, self.all_threads


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker is started with: its user, what it may do at a time, the folder of stores, the kinds of backends
    that it must be able to reach, and the files of certificates that their configurations name."""

    uid: int
    limits: Limits
    store: str
    kinds: list[str] = []
    certificates: list[str] = []


class FillReason(StrEnum):
    """What a segment was filled for."""

    DEMAND = "demand"  # a reader waits
    AHEAD = "ahead"  # a sequential reader will be there soon
    PREFETCH = "prefetch"


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    pass


# --- what the worker answers --------------------------------------------------------------------------------


class _Answer(_Message):
    ticket: Number


class Inspected(_Answer):
    """The blobs of a bootstrap: (id, bytes of its uncompressed address space)."""

    blobs: Blobs


class Peeked(_Answer):
    """A bootstrap that can be read in pieces: its object, bytes, identity and blobs. It cannot without ``identity``:
    then nothing else is said."""

    name: Text = ""
    size: Bytes = 0
    identity: Identity = ""
    blobs: Blobs = []


class RangeFetched(_Answer):
    """The bytes are in the file."""


class BootstrapFetched(_Answer):
    """The bootstrap is in the file: its version on the server. With the known one, it was not fetched again."""

    version: Text = ""


class NotDone(_Answer):
    """Why a question has no answer."""

    fault: Fault


Answer = Inspected | Peeked | RangeFetched | BootstrapFetched | NotDone
A = TypeVar("A", bound=_Answer, covariant=True)


# --- what the keeper asks -----------------------------------------------------------------------------------


class Question(_Message, Generic[A]):
    """Something that has one answer, of type ``ANSWER``. The link to the worker fills in the ticket."""

    ANSWER: ClassVar[type[_Answer]]
    ticket: Number


class Inspect(Question[Inspected]):
    """Tell which blobs the bootstrap (one descriptor) has."""

    ANSWER = Inspected


class Peek(Question[Peeked]):
    """Look at the bootstrap published under ``name`` without fetching it."""

    ANSWER = Peeked
    remote: Remote
    name: str


class FetchRange(Question[RangeFetched]):
    """Fetch a piece of a blob into the file (one descriptor), from its start."""

    ANSWER = RangeFetched
    remote: Remote
    blob_id: str
    offset: int
    length: int


class FetchBootstrap(Question[BootstrapFetched]):
    """Fetch the bootstrap published under ``name`` into the empty file (one descriptor), unless its version is still
    ``known``. ``digest``: the identity that it must have, if one is demanded."""

    ANSWER = BootstrapFetched
    remote: Remote
    name: str
    known: str = ""
    digest: str = ""


# --- what the keeper tells ----------------------------------------------------------------------------------


class OpenStore(_Message):
    """Serve this store. ``filled``: its segments that are complete, a bit each, lowest first, as hex. Descriptors:
    the plan, the ``folder`` of its segment files if it has one, then the blob's sources."""

    store: int
    filled: str
    folder: bool = False
    remotes: list[Remote] = []


class PublishedBootstrap(msgspec.Struct, forbid_unknown_fields=True):
    """A bootstrap to be read in pieces from where it is published: its object's name and the image's identity."""

    remote: Remote
    name: str
    identity: str


class OpenBootstrap(_Message):
    """Serve a bootstrap of so many bytes as it is, ``segment_size`` of them at a time: from its file (a descriptor),
    or from where it is ``published``. ``filled`` as above."""

    store: int
    filled: str
    size: int
    segment_size: int
    published: PublishedBootstrap | None = None


class AddSource(_Message):
    """One more place to have the blob's bytes from."""

    store: int
    remotes: list[Remote] = []


class CloseStore(_Message):
    """Forget this store; fills under way end by themselves."""

    store: int


class Fill(_Message):
    """A reader waits for bytes up to ``end`` of this segment."""

    store: int
    segment: int
    end: int


class Unwanted(_Message):
    """No reader waits for anything of this store any more: all that did have got EIO."""

    store: int


class Ping(_Message):
    """Say anything."""


class Touch(_Message):
    """A reader came to a segment that was filled before anybody asked."""

    store: int
    segment: int


class Prefetch(_Message):
    """Fill the whole store in the background, or stop doing so."""

    store: int
    on: bool


class Connect(_Message):
    """Here is the verifier (one descriptor). Comes first."""


# --- what the worker says by itself -------------------------------------------------------------------------


class Fetched(_Message):
    """A fill is done, for which so many bytes came from the backend."""

    store: Number
    bytes: Bytes


class Failed(_Message):
    """This segment cannot be filled now; its readers get EIO."""

    store: Number
    segment: Number
    message: Text
    hint: Text = ""
    full: bool = False


class Postponed(_Message):
    """This segment cannot be had just now and is tried again, as long as somebody waits for it."""

    store: Number
    segment: Number
    message: Text


class Traffic(_Message):
    """What a backend was asked since this worker started: requests, bytes that came, seconds they took together and
    at most; requests that failed, and those of them that were sent again at once."""

    backend: Text
    requests: Count = 0
    bytes: Bytes = 0
    errors: Count = 0
    retries: Count = 0
    seconds: Seconds = 0.0
    slowest: Seconds = 0.0
    last_error: Text = ""
    down: bool = False


class Pong(_Message):
    """The worker hears: the answer to ``Ping``."""


AnyQuestion = Inspect | Peek | FetchRange | FetchBootstrap
_Order = Connect | OpenStore | OpenBootstrap | AddSource | CloseStore | Fill | Unwanted | Touch | Prefetch
ToWorker = _Order | Ping | AnyQuestion
StoreNews = Fetched | Failed | Postponed
ToKeeper = StoreNews | Traffic | Pong | Answer

_encode = msgspec.json.Encoder().encode
_start = msgspec.json.Decoder(Start)
_to_worker: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
_to_keeper: msgspec.json.Decoder[ToKeeper] = msgspec.json.Decoder(ToKeeper)


def encode_start(start: Start) -> str:
    """As one argument of a command line."""
    return msgspec.json.encode(start).decode()


def decode_start(argument: str) -> Start:
    return decoded(_start, argument.encode())


def encode(message: ToWorker | ToKeeper) -> bytes:
    """One packet."""
    return _encode(message)


def decode_for_worker(packet: bytes) -> ToWorker:
    """A packet from the keeper; msgspec.DecodeError when it is not one."""
    return decoded(_to_worker, packet)


def decode_for_keeper(packet: bytes) -> ToKeeper:
    """A packet from the worker, which is not trusted; msgspec.DecodeError when it is not one."""
    return decoded(_to_keeper, packet)
