"""The control socket: one JSON object a line in, one out. Requests come from root, are typed and bounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..decoding import decoded

MAX_LINE = 1 << 20


class _Request(msgspec.Struct, forbid_unknown_fields=True, tag_field="verb", tag=str.lower):
    pass


class Mount(_Request):
    """Mount ``image`` (absolute path of a bootstrap, or where it is published) on ``target`` (absolute path).

    ``digest``: identity that the image must have; ``auth``: for its registry (base64 of user:password); ``options``:
    of mount(8), besides nosuid and nodev, which are always there unless suid and dev are."""

    image: str
    target: str
    blob_dirs: list[str] = []
    backend_file: str = ""
    digest: Annotated[str, msgspec.Meta(pattern="^(sha256:[0-9a-f]{64})?$")] = ""
    auth: str = ""
    plain_http: bool = False
    insecure: bool = False
    prefetch: bool | None = None
    options: list[Literal["suid", "nosuid", "dev", "nodev", "noexec"]] = []


class Umount(_Request):
    """Unmount what is mounted on ``target``."""

    target: str


class Status(_Request):
    """Tell everything (``ServiceStatus``)."""


class Stop(_Request):
    """Unmount everything and end; what is busy stays, and the service with it."""


class Scrub(_Request):
    """Begin to compare the cache with its plans: of one image (a target, or as it was mounted), or everything ("").

    ``rate``: bytes to read in a second, at most. ``repair``: have what is wrong fetched again."""

    image: str = ""
    repair: bool = False
    rate: Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 40)] = 64 << 20


class Scrubbing(_Request):
    """Tell how far that is, or was: a ``run``, or the last one. With ``stop`` it ends. One of which nobody wants to
    hear for some seconds ends, too."""

    run: str = ""
    stop: bool = False


Request = Mount | Umount | Status | Stop | Scrub | Scrubbing


class ProcessStatus(msgspec.Struct):
    """A process of the service's; no ``pid`` while there is none."""

    pid: int
    restarts: int


class BackendStatus(msgspec.Struct):
    """One backend since the service started, through all workers. Seconds are of single requests."""

    backend: str
    requests: int
    bytes: int
    errors: int
    retries: int
    latency_seconds_mean: float
    latency_seconds_max: float
    down: bool
    last_error: str | None


class MountStatus(msgspec.Struct, omit_defaults=True):
    """One mounted image. Bytes are of uncompressed data in whole blocks unless named otherwise, since its stores were
    opened; images that share a store show the same numbers for it."""

    target: str
    image: str
    backend: str | None
    detached: bool  # unmounted from its mountpoint, and still in use somewhere
    prefetch: bool
    bytes_total: int  # of all segments
    bytes_cached_before: int  # there when the store was opened
    bytes_on_demand: int  # fetched, or verified after a power cut, for a reader that waited
    bytes_ahead: int  # the same ahead of a sequential reader
    bytes_prefetched: int  # the same in the background
    bytes_fetched_compressed: int  # read from blobs
    complete: bool  # nothing is left to fetch: blobs are not needed any more
    segments: int
    failures: int  # segments that could not be filled
    last_error: str | None
    readers_waiting: int  # now
    waiting_for: str | None  # why they have to wait longer than usual
    events: int  # requests of the kernel: all,
    events_waited: int  # those that had to wait,
    events_denied: int  # and those answered with EIO
    stall_seconds_total: float  # how long they waited together
    stall_seconds_max: float  # and at most
    fsid: str | None = None  # cachefiles engine
    domain: str | None = None  # cachefiles engine


class Damage(msgspec.Struct):
    """A segment whose bytes are wrong from one on, or a store that cannot be looked at (segment -1)."""

    store: str  # empty for the bootstrap of an image
    mounted: list[str]  # where
    segment: int
    byte: int  # of the segment: the first chunk that is wrong begins there
    bytes: int  # that it had
    repaired: bool
    error: str  # why not, or why it cannot be looked at


class ScrubStatus(msgspec.Struct):
    """How far ``Scrub`` is, or was when it ended. Bytes are of segments, uncompressed."""

    run: str = ""
    running: bool = False
    finished: bool = False  # all was looked at
    image: str = ""
    repair: bool = False
    stores: int = 0
    stores_done: int = 0
    skipped: int = 0  # of these: what a crash may have damaged is verified as it is used; what has no name yet, later
    bootstraps: int = 0  # looked at, made for mounting
    bytes: int = 0  # looked at
    bytes_unknown: int = 0  # of these: their image has no digest of them
    damaged: int = 0
    repaired: int = 0  # of these, in stores that are done
    damages: list[Damage] = []


class ServiceStatus(msgspec.Struct):
    """One glance: what is served, how much of it is here, and whether readers wait."""

    version: str
    pid: int
    uptime_seconds: float
    engine: str
    state_dir: str
    run_dir: str
    worker: ProcessStatus
    verifier: ProcessStatus
    backends: list[BackendStatus]
    mounts: list[MountStatus]


_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def decode(line: bytes) -> Request:
    """A request; msgspec.DecodeError or ValidationError when it is none."""
    return decoded(_decoder, line)


def reply(answer: msgspec.Struct | dict[str, Any]) -> bytes:
    """A good answer."""
    fields = answer if isinstance(answer, dict) else msgspec.structs.asdict(answer)
    return msgspec.json.encode({"ok": True, **fields}) + b"\n"


def refusal(message: str, hint: str | None, code: int) -> bytes:
    """A bad one: what is wrong, what to do, and the exit code for the client."""
    return msgspec.json.encode({"ok": False, "error": message, "hint": hint, "exit_code": code}) + b"\n"
