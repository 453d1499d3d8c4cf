"""Run by the keeper as ``python -m nydus_erofs.fscache.worker SOCKET UID LIMIT... [BACKEND KIND...]``."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Sequence

from ..kernel.process import drop_privileges, raise_file_limit
from ..proto.worker import Limits
from .preload import preload
from .service import CRASHED, Worker


def main(arguments: Sequence[str]) -> None:
    fd, uid, *limits = (int(a) for a in arguments[: 2 + len(Limits._fields)])
    sock = socket.socket(fileno=fd)
    raise_file_limit()
    for kind in arguments[2 + len(Limits._fields) :]:
        preload(kind)
    drop_privileges(uid)
    try:
        Worker(sock, Limits(*limits)).run()
    except ConnectionError:
        pass  # the keeper is gone
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
