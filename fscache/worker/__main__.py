"""Run by the keeper as ``python -m nydus_erofs.fscache.worker SOCKET START`` (``proto.worker.Start``)."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence

from ..kernel.confine import confine
from ..kernel.landlock import FILL, READ, Rule
from ..kernel.process import raise_file_limit
from ..processes import SYSTEM, WORKER
from ..proto.worker import decode_start
from .preload import preload
from .service import CRASHED, Worker


def main(arguments: Sequence[str]) -> None:
    fd, start = int(arguments[0]), decode_start(arguments[1])
    sock = socket.socket(fileno=fd)
    raise_file_limit()
    for kind in start.kinds:
        preload(kind)
    rules = [Rule(start.store, FILL), *(Rule(path, READ) for path in readable(start.certificates, os.environ))]
    missing = confine(WORKER, start.uid, [fd], rules, start.limits.threads)
    sys.stderr.writelines(f"sandbox: {what}\n" for what in missing)
    try:
        Worker(sock, start.limits).run()
    except ConnectionError:
        pass  # the keeper is gone
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)
    os._exit(0)


def readable(certificates: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Where TLS, names and credentials may need a file of: what an administrator names, and what systems have."""
    named = [value for name, value in environment.items() if name.startswith(("AWS_", "SSL_CERT_"))]
    files = [path for path in (*certificates, *named) if os.path.isabs(path)]
    # Whole folders: a file that is renewed is another file.
    folders = {path if os.path.isdir(path) else os.path.dirname(path) for path in files} - {"/"}
    aws = os.path.join(environment.get("HOME", "/root"), ".aws")
    return sorted({*SYSTEM, sys.prefix, sys.base_prefix, aws, *folders})


if __name__ == "__main__":
    main(sys.argv[1:])
