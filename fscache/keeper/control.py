"""The control socket's server side: for root alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ...erofs.errors import KernelError, NydusErofsError, ServiceError
from ..proto import control as proto
from .tasks import background
from .trouble import refusal, report

MAX_CLIENTS = 256  # at a time: the descriptors are needed for other things
MAX_SOCKET_PATH = 107  # bytes (sockaddr_un, less its final NUL)
_PEER_CREDENTIALS = struct.Struct("3i")

Handler = Callable[[proto.Request], Awaitable[msgspec.Struct | dict[str, Any]]]


class ControlServer:
    """Listens on a unix socket that only root can reach."""

    def __init__(self, path: str, handle: Handler) -> None:
        self._path, self._handle = path, handle
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen; ServiceError when another service does."""
        if len(os.fsencode(self._path)) > MAX_SOCKET_PATH:
            raise ServiceError(
                f"the path of the control socket is too long: {self._path}",
                hint=f"choose a --run-dir with a shorter path: the socket's may have {MAX_SOCKET_PATH} bytes",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(self._path) == 0:
                raise ServiceError(
                    f"another service listens on {self._path}", hint="choose another folder with --run-dir"
                )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            _listen(sock, self._path)
            self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=proto.MAX_LINE)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(mask)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        # A task of our own, to be ended with the server: asyncio's would complain in the log.
        task = background(self._serve(reader, writer), "a client cannot be served")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            sock = writer.get_extra_info("socket")
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
            if _PEER_CREDENTIALS.unpack(raw)[1] != 0:
                return
            while line := await reader.readline():
                writer.write(await self._answer(line))
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the client went away, or sent a line without end
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            return proto.reply(await self._handle(proto.decode(line)))
        except NydusErofsError as error:
            if isinstance(error, KernelError):  # not what was asked for is wrong
                report("request failed", error)
            return _refused(error)
        except (msgspec.MsgspecError, ValueError) as error:  # ValueError: a zero byte in a path
            return proto.refusal(f"the service does not understand this: {error}", None, 2)
        except OSError as error:
            report("request failed", error)
            return _refused(refusal(error))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        with contextlib.suppress(OSError):  # then it is one that nobody answers
            os.unlink(self._path)


def _refused(error: NydusErofsError) -> bytes:
    return proto.refusal(error.message, error.hint, error.exit_code)


def _listen(sock: socket.socket, path: str) -> None:
    """Bind and listen under another name first: where there is a socket, somebody answers."""
    unborn = os.path.join(os.path.dirname(path), ".new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unborn)
    sock.bind(unborn)
    sock.listen()
    os.rename(unborn, path)
