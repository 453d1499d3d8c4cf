"""A server that keeps a client waiting: each way that it knows is one never to finish an answer.

It gives up after ``LONGEST`` seconds, so that a client which does wait is a test that fails, and not one that hangs.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

LONGEST = 20.0
PAUSE = 0.02  # seconds between two drops
LATE = 1.0  # seconds until the answer of a server that is late
DATA = bytes(range(256)) * 2048

_PART = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}\r\n"
_WHOLE = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
Way = Callable[["Hostile", socket.socket], Iterator[bytes]]


def _part(first: int, last: int, framing: str) -> bytes:
    return (_PART.format(first=first, last=last, size=len(DATA)) + framing + "\r\n\r\n").encode()


def _drops(drop: bytes) -> Iterator[bytes]:
    while True:
        yield drop
        time.sleep(PAUSE)


def status_line(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    yield b"HTTP/1.1 206 "
    yield from _drops(b"a")


def headers(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-A: "
    yield from _drops(b"a")


def body(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    yield _part(*server.asked, f"Content-Length: {server.length}")
    yield from _drops(b"a")


def chunks(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    yield _part(*server.asked, "Transfer-Encoding: chunked")
    yield from _drops(b"1\r\na\r\n")


def chunk_extension(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    yield _part(*server.asked, "Transfer-Encoding: chunked")
    yield b"1;"
    yield from _drops(b"a")


def interim(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    yield from _drops(b"HTTP/1.1 100 Continue\r\n\r\n")


def interim_flood(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n" * 1000


def silent(server: Hostile, sock: socket.socket) -> Iterator[bytes]:
    sock.recv(1)
    yield from ()


def late(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    time.sleep(LATE)
    yield _part(*server.asked, f"Content-Length: {server.length}") + DATA[server.asked[0] : server.asked[1] + 1]


def redirects(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    """Each a little later: a few are more than a deadline."""
    time.sleep(0.2)
    yield f"HTTP/1.1 307 Elsewhere\r\nLocation: /{time.monotonic_ns()}\r\nContent-Length: 0\r\n\r\n".encode()


def steady(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    """Honest, 200 KiB in a second."""
    first, last = server.asked
    yield _part(first, last, f"Content-Length: {server.length}")
    for offset in range(first, last + 1, 4096):
        time.sleep(4096 / (200 << 10))
        yield DATA[offset : min(offset + 4096, last + 1)]


def handshake(server: Hostile, _: socket.socket) -> Iterator[bytes]:
    """A TLS record that does not end."""
    yield b"\x16\x03\x03\x40\x00"
    yield from _drops(b"a")


def tunnel(server: Hostile, sock: socket.socket) -> Iterator[bytes]:
    """The way through a proxy is open, and nothing comes out of it but that."""
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    yield from handshake(server, sock)


class Hostile:
    """Answers HEAD right, and all else in its way. ``connections`` counts those on which something was asked.

    Args:
        path: of a unix socket, instead of a port on loopback.
        tls: how it speaks TLS, if it does.
    """

    def __init__(self, way: Way, path: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._way, self._tls = way, tls
        self.asked, self.connections = (0, 0), 0
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(path or ("127.0.0.1", 0))
        self._listener.listen(16)
        self.endpoint = path or f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def length(self) -> int:
        return self.asked[1] + 1 - self.asked[0]

    @property
    def busy(self) -> int:
        """Connections that are open."""
        return sum(thread.is_alive() for thread in self._threads)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        until = time.monotonic() + LONGEST
        sock.settimeout(LONGEST)
        with contextlib.suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._open.add(sock)
            self._talk(sock, until)
        self._open.discard(sock)
        sock.close()

    def _talk(self, sock: socket.socket, until: float) -> None:
        if self._way is handshake:
            self.connections += 1
            self._answer(sock, until)
            return
        counted = False
        while head := self._head(sock):
            if head.startswith(b"HEAD") and self._way is not redirects:
                sock.sendall(_WHOLE)
                continue
            self.connections += not counted
            counted = True
            if span := re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head):
                self.asked = int(span[1]), int(span[2])
            self._answer(sock, until)

    def _answer(self, sock: socket.socket, until: float) -> None:
        for piece in self._way(self, sock):
            sock.sendall(piece)
            if time.monotonic() > until:
                raise TimeoutError

    @staticmethod
    def _head(sock: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = sock.recv(65536)
            if not piece:
                return b""
            head += piece
        return head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LONGEST)
