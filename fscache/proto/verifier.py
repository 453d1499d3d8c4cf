"""Messages of the verifier, each one packet of a SOCK_SEQPACKET socket: with the keeper, and with a worker.

The keeper opens stores by the numbers that it gives them; descriptors travel beside ``OpenFolder`` (plan, segment
folder), ``OpenObject`` (the object, then its plan, or the bootstrap's file if it is here) and ``Connect`` (a socket
to a new worker). None ever travels back.

A worker asks for connections over that socket, any packet for one, and is given two descriptors: a socket, and memory
that it writes chunks to. On that socket it offers a ``Piece`` or a ``Proof`` and hears a ``Verdict``, one after the
other. It is not believed: what it may say is bounded here, field by field.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ..decoding import decoded
from .fault import Text
from .worker import Bytes, FillReason, Number

MAX_MESSAGE = 1 << 16
NO_PLAN = "its plan is damaged"  # why a store cannot be looked at
NO_FILE = "its file is gone, or is another's"  # why a segment cannot be
PIECE = 512 << 10  # bytes of chunks: when there are so many, they are offered
MOST_CHUNKS = 1000  # of one piece
MAX_PROOF = 17 << 20  # bytes: more than a tree over 2 GiB has


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """What a verifier is started with: its user, the folder of stores, and how many connections a worker may have."""

    uid: int
    store: str
    connections: int


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    pass


# --- what the keeper tells ----------------------------------------------------------------------------------


class OpenFolder(_Message):
    """A store of segment files."""

    store: int


class OpenObject(_Message):
    """A store in an object of the kernel's cache. With ``raw_size`` it is a bootstrap, which is served as it is: its
    file's bytes count, or those that the digest tree of this ``identity`` has the hashes of."""

    store: int
    raw_size: int = 0
    segment_size: int = 0
    identity: str = ""


class CloseStore(_Message):
    """Forget this store, and say when nothing is written to it any more."""

    store: int


class Scrub(_Message):
    """Compare what a store holds with its plan, and the plan with its ``key``: ``Checked`` or ``Unreadable`` for each
    segment from ``first`` on, then ``Scrubbed``, all with this ``ticket``. The one before ends. With a store in an
    object of the kernel's cache comes the file that this is on disk.

    ``rate``: bytes to read in a second, at most."""

    ticket: int
    store: int
    key: str
    first: int
    rate: int


class EndScrub(_Message):
    """Nobody wants to hear of it any more."""


class Cut(_Message):
    """Take from a segment all but its first ``have`` bytes, or let them be written anew, and say ``Shortened``."""

    store: int
    segment: int
    have: int


class Connect(_Message):
    """There is a new worker."""


class Ping(_Message):
    """Say ``Pong``."""


# --- what the keeper is told --------------------------------------------------------------------------------


class Present(_Message):
    """Which segments of a store were there when it was opened: a bit each, lowest first, as hex."""

    store: Number
    segments: Annotated[str, Meta(pattern="^[0-9a-f]+$", max_length=1 << 15)]


class Progress(_Message):
    """The first ``have`` bytes of this segment are there and verified."""

    store: Number
    segment: Number
    have: Bytes
    done: bool
    why: FillReason


class Closed(_Message):
    """The store is forgotten, and nothing is written to it any more."""

    store: Number


class Checked(_Message):
    """Of the ``bytes`` that a segment has, the first ``good`` are right; ``unknown`` of them have no digest."""

    ticket: Number
    store: Number
    segment: Number
    bytes: Bytes
    good: Bytes
    unknown: Bytes
    inode: Annotated[int, Meta(ge=0)]  # of its file


class Unreadable(_Message):
    """A segment cannot be looked at, and why; the others are."""

    ticket: Number
    store: Number
    segment: Number
    error: Text


class Scrubbed(_Message):
    """A store was looked at to its end, or as far as that could be done: ``error``."""

    ticket: Number
    store: Number
    error: Text = ""


class Shortened(_Message):
    """A segment has no more than its first ``have`` bytes; or it could not be cut: ``error``."""

    store: Number
    segment: Number
    have: Bytes
    error: Text = ""


class Pong(_Message):
    """The verifier hears: the answer to ``Ping``."""


# --- between worker and verifier ----------------------------------------------------------------------------


class _Offer(msgspec.Struct, forbid_unknown_fields=True, array_like=True, tag=str.lower):
    store: Number


class Piece(_Offer):
    """``count`` chunks of a segment from its chunk ``first`` on. Their bytes lie in the memory of the connection, one
    behind the other; chunks that the image does not use have none. No chunk at all is a question: how far is it?"""

    segment: Number
    first: Number
    count: Annotated[int, Meta(ge=0, le=MOST_CHUNKS)]
    why: FillReason


class Proof(_Offer):
    """The digest tree of a bootstrap: so many bytes, in the memory of the connection. Before the first piece."""

    size: Annotated[int, Meta(gt=0, le=MAX_PROOF)]


class Verdict(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    """The first ``good`` chunks are right and written, the next one is wrong, if there is one; ``have`` bytes of the
    segment are there from its start. Or why nothing was written: ``full`` when that was for want of room."""

    good: int
    have: int
    error: Text = ""
    full: bool = False


ToVerifier = OpenFolder | OpenObject | CloseStore | Scrub | EndScrub | Cut | Connect | Ping
ToKeeper = Present | Progress | Closed | Checked | Unreadable | Scrubbed | Shortened | Pong
Offer = Piece | Proof

_encode = msgspec.json.Encoder().encode
_to_verifier: msgspec.json.Decoder[ToVerifier] = msgspec.json.Decoder(ToVerifier)
_to_keeper: msgspec.json.Decoder[ToKeeper] = msgspec.json.Decoder(ToKeeper)
_offer: msgspec.json.Decoder[Offer] = msgspec.json.Decoder(Offer)
_start = msgspec.json.Decoder(Start)
_verdict: msgspec.json.Decoder[Verdict] = msgspec.json.Decoder(Verdict)


def encode(message: ToVerifier | ToKeeper | Offer | Verdict) -> bytes:
    """One packet."""
    return _encode(message)


def decode_for_verifier(packet: bytes) -> ToVerifier:
    """A packet from the keeper; msgspec.DecodeError when it is not one."""
    return decoded(_to_verifier, packet)


def decode_for_keeper(packet: bytes) -> ToKeeper:
    """A packet from the verifier; msgspec.DecodeError when it is not one."""
    return decoded(_to_keeper, packet)


def decode_offer(packet: bytes) -> Offer:
    """A packet from a worker, which is not trusted; msgspec.DecodeError when it is not one."""
    return decoded(_offer, packet)


def decode_verdict(packet: bytes) -> Verdict:
    """What a worker is answered."""
    return decoded(_verdict, packet)


def encode_start(start: Start) -> str:
    """As one argument of a command line."""
    return msgspec.json.encode(start).decode()


def decode_start(argument: str) -> Start:
    return decoded(_start, argument.encode())
