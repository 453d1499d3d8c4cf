"""What prepare says to the keeper, and what is said through the control socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from nydus_erofs.erofs.errors import BusyError, KernelError, NydusErofsError
from nydus_erofs.erofs.ids import blob_id
from nydus_erofs.fscache import client
from nydus_erofs.fscache.keeper.control import ControlServer
from nydus_erofs.fscache.proto import control as control_proto
from nydus_erofs.fscache.proto import prepare as prepare_proto
from nydus_erofs.fscache.proto.fault import Fault
from tests.fuzz import mutate
from tests.fuzz.target import target

_KEY = "ab" * 32


def _prepare_seeds() -> Iterator[bytes]:
    yield prepare_proto.encode(prepare_proto.NeedBytes(_KEY, 4096, 1 << 20))
    yield prepare_proto.encode(prepare_proto.Prepared())
    for error in (BusyError("in use", hint="wait"), KernelError("no", number=28)):
        yield prepare_proto.encode(prepare_proto.NotPrepared(Fault.of(error)))


@target(_prepare_seeds, mutate.document, refusals=(msgspec.DecodeError,))
def prepare_says(data: bytes) -> object:
    message = prepare_proto.decode_for_keeper(data)
    if isinstance(message, prepare_proto.NeedBytes):
        blob_id(message.blob_id)
        assert message.offset + message.length < 1 << 54
    if isinstance(message, prepare_proto.NotPrepared):
        told(message.fault)
    return type(message).__name__


def told(fault: Fault) -> None:
    """A fault becomes an error that can be shown, and told to others in one packet."""
    error = fault.error()
    assert str(error).isprintable()
    assert 0 <= error.exit_code < 256
    packet = prepare_proto.encode(prepare_proto.NoBytes(Fault.of(error)))
    assert len(packet) < prepare_proto.MAX_MESSAGE
    assert b"\n" not in control_proto.refusal(error.message, error.hint, error.exit_code)[:-1]


# --- the control socket ---------------------------------------------------------------------------------------


def _request_seeds() -> Iterator[bytes]:
    requests: list[Any] = [
        control_proto.Mount("/image.meta", "/mnt", ["/blobs"], digest=f"sha256:{_KEY}", options=["suid", "noexec"]),
        control_proto.Umount("/mnt"), control_proto.Status(), control_proto.Stop(),
    ]  # fmt: skip
    yield from map(msgspec.json.encode, requests)


async def _handle(request: control_proto.Request) -> msgspec.Struct | dict[str, Any]:
    match request:
        case control_proto.Mount():
            os.lstat(request.image)
        case control_proto.Umount():
            raise BusyError(request.target, hint=request.target)
    return {"said": msgspec.structs.asdict(request)}


@target(_request_seeds, mutate.document, refusals=())
def control_request(data: bytes) -> object:
    """Whatever a client sends has one answer, of one line."""
    coroutine = ControlServer("", _handle)._answer(data)
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: bytes = end.value
    assert answer.endswith(b"\n")
    assert answer.count(b"\n") == 1
    try:
        client.understood(answer)
    except client.RefusedError as error:
        return error.exit_code
    return True


def _answer_seeds() -> Iterator[bytes]:
    yield control_proto.reply({"pid": 7, "mounts": []})
    yield control_proto.refusal("no such image", "name one", 6)
    yield control_proto.refusal("no", None, 1)


def _one_line(data: bytes) -> bytes:
    return data.replace(b"\n", b"") + b"\n"


@target(_answer_seeds, mutate.repaired(mutate.document, _one_line), refusals=(NydusErofsError,))
def control_answer(data: bytes) -> object:
    """What a client makes of what a service says: another version's, or one that dies meanwhile."""
    return len(client.understood(data))
