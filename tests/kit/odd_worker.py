"""A worker that is not what it should be: ``odd_worker.py KIND SOCKET START``.

sound      as it should be
deaf       never hears anything
silent     hears, and does nothing for readers
postpones  puts readers off for ever
dies       ends by SIGKILL as soon as a reader waits
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

kind = sys.argv[1]


class OddWorker(Worker):
    def run(self) -> None:
        while kind == "deaf":
            time.sleep(1000)
        super().run()

    def _handle(self, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
        if not isinstance(message, proto.Fill) or kind == "sound":
            super()._handle(message, fds)
        elif kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "postpones":
            threading.Thread(target=self._put_off, args=(message,), daemon=True).start()

    def _put_off(self, message: proto.Fill) -> None:
        while True:
            self._tell(proto.Postponed(message.store, message.segment, "come again tomorrow"))
            time.sleep(0.2)


start = proto.decode_start(sys.argv[3])
for module in start.kinds:
    preload(module)
OddWorker(socket.socket(fileno=int(sys.argv[2])), start.limits).run()
