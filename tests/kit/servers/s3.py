"""S3 servers for tests: versitygw, a real one that checks signatures, and one that answers as a test wants it to.

versitygw: `go install github.com/versity/versitygw/cmd/versitygw@v1.8.0`; VERSITYGW names another place than PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

KEY, SECRET, TOKEN = "AKIANYDUSEROFSTEST", "a-secret/that+nobody=prints", "a-session-token-that-nobody-prints"
BUCKET = "images"


def versitygw() -> str:
    found = os.environ.get("VERSITYGW") or shutil.which("versitygw")
    if not found:
        raise FileNotFoundError("no versitygw on PATH: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0")
    return found


class Gateway:
    """A running versitygw with one bucket; ``bucket`` is the folder with its objects as plain files."""

    def __init__(self, folder: Path) -> None:
        self.bucket = folder / "buckets" / BUCKET
        self.bucket.mkdir(parents=True)
        (folder / "meta").mkdir()  # beside the objects: not every filesystem has extended attributes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [versitygw(), "--port", self.endpoint, "--keep-alive", "--quiet",
                 "posix", "--sidecar", folder / "meta", folder / "buckets"],
                env={"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}, stdout=log, stderr=log,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.close()
        raise AssertionError(f"versitygw does not answer: {self._log.read_text()}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


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


def objects(data: bytes) -> Reply:
    """Serves one object under all names, ranges and all."""

    def reply(request: Request) -> None:
        span = request.headers.get("Range")
        if span is None:
            request.send(200, data)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        end = int(first) + len(part) - 1
        request.send(206, part, Content_Range=f"bytes {first}-{end}/{len(data)}")

    return reply


def error(status: int, code: str, message: str = "a message", extra: str = "", **headers: str) -> Reply:
    """An error in S3's XML."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}<RequestId>1</RequestId></Error>"
    return lambda request: request.send(status, body.encode(), Content_Type="application/xml", **headers)


def credentials(lifetime: timedelta, token: str = TOKEN) -> Reply:
    """A container's and an instance's (IMDSv2) source of keys; the ids of the 2nd, 3rd... end in 2, 3..."""
    count = 0

    def reply(request: Request) -> None:
        nonlocal count
        if request.path == "/latest/api/token":
            assert request.command == "PUT"
            request.send(200, b"imds-token", X_aws_ec2_metadata_token_ttl_seconds="60")
        elif request.path.startswith("/latest/") and request.headers["X-aws-ec2-metadata-token"] != "imds-token":
            request.send(401)
        elif request.path.endswith("/security-credentials/"):
            request.send(200, b"a-role")
        else:
            count += 1
            request.send(200, json.dumps({
                "Code": "Success", "AccessKeyId": KEY + (str(count) if count > 1 else ""), "SecretAccessKey": SECRET,
                "Token": token, "Expiration": (datetime.now(UTC) + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }).encode())  # fmt: skip

    return reply
