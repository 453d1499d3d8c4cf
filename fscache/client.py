"""The control socket's client side. It imports little: ``mount`` has milliseconds."""

from __future__ import annotations

import json
import socket

from ..erofs.errors import NydusErofsError, ServiceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class NoServiceError(ServiceError):
    """Nobody listens."""


class RefusedError(NydusErofsError):
    """The service said no; the exit code is the service's."""


def request(path: str, verb: str, **fields: Any) -> dict[str, Any]:
    """Ask the service behind the control socket at ``path``; its answer, or the error that it gave.

    Raises NoServiceError when no service listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoServiceError(f"no service at {path}", hint="start one with 'nydus-erofs serve'") from None
        except PermissionError:
            raise ServiceError(f"{path}: permission denied", hint="run as root") from None
        sock.sendall(json.dumps({"verb": verb, **fields}).encode() + b"\n")
        with sock.makefile("rb") as file:
            line = file.readline()
    return understood(line)


def understood(line: bytes) -> dict[str, Any]:
    """What a service's answer says; the error that it is."""
    if not line.endswith(b"\n"):
        raise ServiceError("the service went away before it answered", hint="see its log")
    try:
        answer: dict[str, Any] = json.loads(line.decode())
        if answer.pop("ok"):
            return answer
        error = RefusedError(str(answer["error"]), hint=answer["hint"] and str(answer["hint"]))
        error.exit_code = int(answer["exit_code"])  # type: ignore[misc]
    except NONSENSE:
        raise not_understood() from None
    raise error


def not_understood() -> ServiceError:
    """For an answer that lacks something, or has something else in its place (``NONSENSE``)."""
    return ServiceError("the service's answer is not understood", hint="is it of another version?")
