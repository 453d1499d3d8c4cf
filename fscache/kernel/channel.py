"""Packets with descriptors over a SOCK_SEQPACKET socket."""

from __future__ import annotations

import socket
from array import array
from collections import deque
from collections.abc import Sequence

from .fd import Fd

MOST_FDS = 253  # beside one packet (SCM_MAX_FD of the kernel)


class CutOffError(ConnectionError):
    """A packet was larger, or had more descriptors, than the receiver takes."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, packet: bytes, fds: Sequence[Fd] = ()) -> None:
    """Send one packet; the descriptors stay open here."""
    socket.send_fds(sock, [packet], [fd.fd for fd in fds]) if fds else sock.send(packet)


def receive(sock: socket.socket, size: int, most_fds: int = 16) -> tuple[bytes, list[Fd]]:
    """One packet and its descriptors (close-on-exec); an empty packet means that the other end is gone.

    Raises CutOffError for more than ``size`` bytes or ``most_fds`` descriptors.
    """
    # Not socket.recv_fds: it does not pass flags on (Python 3.11).
    room = socket.CMSG_SPACE(most_fds * array("i").itemsize)
    packet, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    received = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    fds = [Fd(fd) for fd in received]
    # CMSG_SPACE rounds up, so that one descriptor more than asked for may find room.
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > most_fds:
        for fd in fds:
            fd.close()
        raise CutOffError("a packet was cut off")
    return packet, fds


class Outbox:
    """Packets on their way to a peer that may be slow: sending never blocks. Owns the descriptors it is given."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: deque[tuple[bytes, Sequence[Fd]]] = deque()

    def put(self, packet: bytes, fds: Sequence[Fd] = ()) -> bool:
        """Queue a packet and send what can be sent; true when nothing is left waiting."""
        self._waiting.append((packet, fds))
        return self.flush()

    def flush(self) -> bool:
        """Send what can be sent without blocking; true when nothing is left waiting."""
        while self._waiting:
            packet, fds = self._waiting[0]
            try:
                send(self._sock, packet, fds)
            except BlockingIOError:
                return False
            self._waiting.popleft()
            close(fds)
        return True

    def discard(self) -> None:
        """Forget everything that waits."""
        for _, fds in self._waiting:
            close(fds)
        self._waiting.clear()


def close(fds: Sequence[Fd]) -> None:
    for fd in fds:
        fd.close()
