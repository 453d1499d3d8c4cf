"""The control socket: one JSON object a line in, one out. Requests come from root, are typed and bounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .packets import decoded

MAX_LINE = 1 << 20


class _Request(msgspec.Struct, forbid_unknown_fields=True, tag_field="verb", tag=str.lower):
    pass


class Mount(_Request):
    """Mount ``image`` (absolute path of a bootstrap, or where it is published) on ``target`` (absolute path).

    ``digest``: identity that the image must have; ``auth``: for its registry (base64 of user:password)."""

    image: str
    target: str
    blob_dirs: list[str] = []
    backend_file: str = ""
    digest: Annotated[str, msgspec.Meta(pattern="^(sha256:[0-9a-f]{64})?$")] = ""
    auth: str = ""
    prefetch: bool | None = None
    options: list[Literal["nosuid", "nodev", "noexec"]] = []


class Umount(_Request):
    """Unmount what is mounted on ``target``."""

    target: str


class Status(_Request):
    """Tell everything."""


class Stop(_Request):
    """Unmount everything and end; what is busy stays, and the service with it."""


Request = Mount | Umount | Status | Stop

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def decode(line: bytes) -> Request:
    """A request; msgspec.DecodeError or ValidationError when it is none."""
    return decoded(_decoder, line)


def reply(**fields: Any) -> bytes:
    """A good answer."""
    return msgspec.json.encode({"ok": True, **fields}) + b"\n"


def refusal(message: str, hint: str | None, code: int) -> bytes:
    """A bad one: what is wrong, what to do, and the exit code for the client."""
    return msgspec.json.encode({"ok": False, "error": message, "hint": hint, "exit_code": code}) + b"\n"
