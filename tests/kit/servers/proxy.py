"""A forward proxy for tests: absolute requests and tunnels."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class ForwardProxy:
    """Passes requests on; ``status`` makes it answer that itself. ``requests``: method, target, headers.

    Args:
        upstream_tls: fetch plain requests over TLS, as Dragonfly does.
    """

    def __init__(self, upstream_tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.upstream_tls = upstream_tls
        self.status = 0
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: ForwardProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def _seen(self) -> bool:
            proxy.requests.append(
                (self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            )
            if proxy.status:
                self.send_response(proxy.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            return not proxy.status

        def do_CONNECT(self) -> None:
            if not self._seen():
                return
            host, _, port = self.path.partition(":")
            with socket.create_connection((host, int(port)), 5) as server:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_pump, args=(server, self.connection), daemon=True)
                back.start()
                _pump(self.connection, server)
                back.join(10)
            self.close_connection = True

        def do_GET(self) -> None:
            if not self._seen():
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
            tls = proxy.upstream_tls
            connection = (
                http.client.HTTPSConnection(parts.netloc, context=tls, timeout=5)
                if tls
                else http.client.HTTPConnection(parts.netloc, timeout=5)
            )
            with contextlib.closing(connection):
                connection.request(self.command, target, body or None, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
