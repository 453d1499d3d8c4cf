"""A worker that somebody has taken over does what it can with what a worker is given: ``evil_worker.py MODE ...``

    poison    writes to whatever it can reach of a store, and offers the verifier other bytes than the right ones
    liar      tells the keeper that everything is there
    mad       sends the verifier what nobody may send, on as many connections as there are
    thief     keeps the chunks of one segment for another one

Otherwise, and afterwards, it works as any other one does.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Sequence

from nydus_erofs.erofs.record import Buffer
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import verifier
from nydus_erofs.fscache.proto import worker as proto
from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.worker import __main__ as start
from nydus_erofs.fscache.worker.offers import Connection
from nydus_erofs.fscache.worker.service import Worker

MODE = sys.argv[1]
honest_handle, honest_ask = Worker._handle, Connection.ask


def handle(self: Worker, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
    if not isinstance(message, proto.OpenStore):
        honest_handle(self, message, fds)
        return
    folder = fds[1].dup() if message.folder else None
    honest_handle(self, message, fds)
    assert self._link is not None
    segments = len(self._stores[message.store].plan.segments)
    match MODE:
        case "poison":
            if folder is not None:
                for number in range(segments):
                    for way in (f"{number:05d}", f"/proc/self/fd/{folder.fd}/{number:05d}"):
                        with contextlib.suppress(OSError):
                            fd = os.open(way, os.O_WRONLY, dir_fd=folder.fd)
                            os.pwrite(fd, b"POISON" * 10_000, 0)
            connection = self._link.connect()
            for number in range(segments):
                for count in (1, 2, 7):
                    piece = verifier.Piece(message.store, number, 0, count, FillReason.DEMAND)
                    honest_ask(connection, piece, [b"POISON" * 500_000])
        case "liar":
            for number in range(segments):
                for size in (1 << 20, 4096):
                    news = verifier.Progress(message.store, number, size, size == 1 << 20, FillReason.DEMAND)
                    with contextlib.suppress(OSError):
                        self._sock.send(verifier.encode(news))
        case "mad":
            for _ in range(20):
                with contextlib.suppress(OSError):
                    threading.Thread(target=rave, args=(self._link.connect()._sock,), daemon=True).start()


def rave(sock: socket.socket) -> None:
    for packet in (b"x" * 60_000, b'[1,0,0,1000,"demand"]', b'[1,0,4000000,1,"demand"]', b"[" * 9000):
        with contextlib.suppress(OSError):
            sock.send(packet)
    with contextlib.suppress(OSError):
        channel.send(sock, b"x", [Fd(os.dup(0)) for _ in range(30)])


kept: list[bytes] = []


def ask(self: Connection, offer: verifier.Offer, parts: list[Buffer]) -> verifier.Verdict:
    """The right bytes of another segment first."""
    for others in kept[-3:]:
        honest_ask(self, offer, [others])
    verdict = honest_ask(self, offer, parts)
    kept.append(b"".join(parts))
    return verdict


if MODE != "thief":
    Worker._handle = handle  # type: ignore[method-assign]
else:
    Connection.ask = ask  # type: ignore[method-assign]
start.main(sys.argv[2:])
