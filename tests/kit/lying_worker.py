"""A worker that tells lies: ``lying_worker.py KIND SOCKET START``. Asked to fill a segment, it says this, and nothing
else. Otherwise it is the real one, in its real sandbox."""

import os
import sys
from collections.abc import Callable, Sequence

from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import verifier
from nydus_erofs.fscache.proto import worker as proto
from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.worker import __main__ as program
from nydus_erofs.fscache.worker.service import Worker

_FAR = 1 << 30


def _fds(liar: Worker, fill: proto.Fill) -> None:
    channel.send(liar._sock, proto.encode(proto.Fetched(fill.store, 1)), [_null])


def _say(make: Callable[[proto.Fill], proto.ToKeeper]) -> Callable[[Worker, proto.Fill], None]:
    return lambda liar, fill: liar._tell(make(fill))


def _send(packet: bytes) -> Callable[[Worker, proto.Fill], None]:
    return lambda liar, _: channel.send(liar._sock, packet)


_null = Fd(os.open("/dev/null", os.O_RDONLY))  # while it may open anything
LIES: dict[str, Callable[[Worker, proto.Fill], None]] = {
    "more than there can be": _say(lambda f: proto.Fetched(f.store, 1 << 60)),
    "what only the verifier may say": lambda liar, f: channel.send(
        liar._sock, verifier.encode(verifier.Progress(f.store, f.segment, 4096, False, FillReason.DEMAND))
    ),
    "a segment that is not there": _say(lambda f: proto.Failed(f.store, _FAR, "no")),
    "a store that never was": _say(lambda f: proto.Failed(_FAR, 0, "no")),
    "an answer to nothing": _say(lambda f: proto.RangeFetched(_FAR)),
    "no JSON": _send(b"\xff{"),
    "no message": _send(b'{"op":"progress"}'),
    "a number that is none": _send(b'{"op":"traffic","backend":"x","slowest":1e999}'),
    "a packet too long": _send(b" " * (proto.MAX_MESSAGE + 1)),
    "descriptors": _fds,
}


class Liar(Worker):
    """Says what it is told to."""

    def _handle(self, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
        if isinstance(message, proto.Fill):
            LIES[kind](self, message)
        else:
            super()._handle(message, fds)


if __name__ == "__main__":
    kind = sys.argv[1]
    program.Worker = Liar  # type: ignore[attr-defined]
    program.main(sys.argv[2:])
