"""An HTTP server that answers as a test wants it to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Seen(NamedTuple):
    """A request that came."""

    command: str
    path: str
    headers: dict[str, str]
    body: bytes


class Request(BaseHTTPRequestHandler):
    """One request at a ``Stub``; the answer is the stub's."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    server: Server

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):  # clients hang up on answers they do not like
            super().handle_one_request()
            return
        self.close_connection = True

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(Seen(self.command, self.path, dict(self.headers), body))
        self.server.reply(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_CONNECT = _answer  # noqa: N815

    def send(self, status: int, body: bytes = b"", **headers: str | int) -> None:
        """A whole answer; ``_`` in names of headers stands for ``-``. Content_Length may lie."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value != "":
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        """Break the connection."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


Reply = Callable[[Request], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    reply: Reply
    requests: list[Seen]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Stub:
    """A server of which every answer is ``reply(request)``; ``requests`` holds what came."""

    def __init__(self, reply: Reply, tls: ssl.SSLContext | None = None) -> None:
        self._server = Server(("127.0.0.1", 0), Request)
        self._server.reply, self._server.requests = reply, []
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def requests(self) -> list[Seen]:
        return self._server.requests

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
