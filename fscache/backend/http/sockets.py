"""Sockets and connections that know the deadline of what they are used for.

Before each call that may wait, a socket's time-out becomes what is left of it, if that is less. Python and OpenSSL
count a time-out from the beginning of one call, so a TLS handshake or record that comes in drops is cut, too. The
resolver alone waits as long as it is configured to (resolv.conf); what is left is looked at after it.
"""

from __future__ import annotations

import math
import socket
import ssl
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from .deadline import Deadline, current

_PIECE = 1 << 18  # bytes that are sent with one time-out
_Address = tuple[int, int, int, Any]  # family, kind, protocol, what connect() takes


class Socket(socket.socket):
    """Waits no longer than its thread's deadline. Time-outs that are set are those between two pieces."""

    _idle = _now = math.inf  # time-outs: the one that was set, and the one in force

    def settimeout(self, value: float | None) -> None:
        super().settimeout(value)
        self._idle = self._now = math.inf if value is None else value

    def _hurry(self) -> Deadline | None:
        """To be called before what may wait. It is cheap: TLS comes in pieces of 16 KiB."""
        deadline = current()
        if deadline is not None:
            left = deadline.left()
            wait = left if left < self._idle else self._idle
            if wait != self._now:
                super().settimeout(wait)
                self._now = wait
        return deadline

    def connect(self, address: Any) -> None:
        self._hurry()
        super().connect(address)

    def recv(self, size: int = 1024, flags: int = 0) -> bytes:
        deadline = self._hurry()
        data = super().recv(size, flags)
        if deadline is not None:
            deadline.received(len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        deadline = self._hurry()
        size = super().recv_into(buffer, nbytes or 0, flags)
        if deadline is not None:
            deadline.received(size)
        return size

    def send(self, data: Any, flags: int = 0) -> int:
        self._hurry()
        return super().send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        for offset in range(0, len(view), _PIECE):
            self._hurry()
            super().sendall(view[offset : offset + _PIECE], flags)


class TlsSocket(Socket, ssl.SSLSocket):
    """The same, encrypted: ``SSLContext.sslsocket_class``."""

    def do_handshake(self, block: bool = False) -> None:
        self._hurry()
        super().do_handshake(block)


class _Connection(HTTPConnection):
    """Connects such a socket. A name may have any number of addresses: all are within the deadline."""

    def addresses(self) -> list[_Address]:
        """Where the server may be; OSError."""
        host = self._dns_host.strip("[]")
        try:
            host.encode("idna")
        except UnicodeError:
            raise LocationParseError("the host's name is not valid") from None
        try:
            found = socket.getaddrinfo(host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]

    def _new_conn(self) -> socket.socket:
        failure = OSError("no address")
        for *kind, address in self.addresses():
            sock = Socket(*kind)
            try:
                for option in self.socket_options or () if sock.family != socket.AF_UNIX else ():
                    sock.setsockopt(*option)
                sock.settimeout(self.timeout)
                sock.connect(address)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "timed out") from failure
        raise NewConnectionError(self, "failed") from failure


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def unix_pool(path: str, common: dict[str, Any]) -> HttpPool:
    """Connections to the server behind a unix socket."""
    pool = HttpPool("localhost", **common)
    address = (socket.AF_UNIX, socket.SOCK_STREAM, 0, path)
    kind: type[_Connection] = type("_UnixConnection", (_Connection,), {"addresses": lambda _: [address]})
    pool.ConnectionCls = kind
    return pool
