"""A worker that is not what it should be: ``odd_worker.py KIND SOCKET START``.

sound      as it should be
deaf       never hears anything
silent     hears, and does nothing for readers
postpones  puts readers off for ever
dies       ends by SIGKILL as soon as a reader waits
dies BLOB  the same when it is to fill anything of this blob
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import worker as proto
from nydus_erofs.fscache.worker.preload import preload
from nydus_erofs.fscache.worker.service import Worker

kind, _, blob = sys.argv[1].partition(" ")


class OddWorker(Worker):
    def run(self) -> None:
        while kind == "deaf":
            time.sleep(1000)
        super().run()

    def _handle(self, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
        if kind == "sound" or not self._to_be_odd(message):
            super()._handle(message, fds)
        elif kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "postpones" and isinstance(message, proto.Fill):
            threading.Thread(target=self._put_off, args=(message,), daemon=True).start()

    def _to_be_odd(self, message: proto.ToWorker) -> bool:
        match message:
            case proto.Fill(store=store):
                return not blob or self._stores[store].plan.blob_id == blob
            case proto.Prefetch(store=store):
                return self._stores[store].plan.blob_id == blob
        return False

    def _put_off(self, message: proto.Fill) -> None:
        while True:
            self._tell(proto.Postponed(message.store, message.segment, "come again tomorrow"))
            time.sleep(0.2)


start = proto.decode_start(sys.argv[3])
for module in start.kinds:
    preload(module)
OddWorker(socket.socket(fileno=int(sys.argv[2])), start.limits).run()
