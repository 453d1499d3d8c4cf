"""Run by the keeper as ``python -m nydus_erofs.fscache.worker SOCKET START`` (``proto.worker.Start``)."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence

from ..kernel.confine import confine
from ..kernel.landlock import READ, Rule
from ..kernel.process import raise_file_limit, until_gone
from ..processes import SYSTEM, WORKER
from ..proto.worker import decode_start
from .preload import preload
from .service import Worker
from .syscalls import PROFILE

_VARIABLES = {"config": "AWS_CONFIG_FILE", "credentials": "AWS_SHARED_CREDENTIALS_FILE"}
_NAMED = re.compile(rb"^[ \t]*\w+[ \t]*=[ \t]*(/[^\n]*?)[ \t\r]*$", re.MULTILINE)
_MOST_CONFIGURATION = 1 << 20  # bytes


def main(arguments: Sequence[str]) -> None:
    fd, start = int(arguments[0]), decode_start(arguments[1])
    sock = socket.socket(fileno=fd)
    raise_file_limit()
    for kind in start.kinds:
        preload(kind)
    rules = [Rule(start.store, READ), *(Rule(path, READ) for path in readable(start.certificates, os.environ))]
    missing = confine(WORKER, start.uid, [fd], rules, PROFILE, start.limits.all_threads)
    sys.stderr.writelines(f"sandbox: {what}\n" for what in missing)
    until_gone(lambda: Worker(sock, start.limits).run())


def readable(certificates: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Where TLS, names and credentials may need a file of: what an administrator names, and what systems have."""
    aws = os.path.join(environment.get("HOME", "/root"), ".aws")
    named = [value for name, value in environment.items() if name.startswith(("AWS_", "SSL_CERT_"))]
    configured = [
        path
        for name in ("config", "credentials")
        for path in _named_in(environment.get(_VARIABLES[name]) or os.path.join(aws, name))
    ]
    files = [path for path in (*certificates, *named, *configured) if os.path.isabs(path)]
    # Whole folders: a file that is renewed is another file. What is a link is renewed here or there.
    ways = {way for path in files for way in (path, os.path.realpath(path))}
    folders = {way if os.path.isdir(way) else os.path.dirname(way) for way in ways} - {"/"}
    return sorted({*SYSTEM, sys.prefix, sys.base_prefix, aws, *folders})


def _named_in(path: str) -> list[str]:
    """Files that a configuration of the AWS tools names: tokens, certificates."""
    try:
        with open(path, "rb") as file:
            return [os.fsdecode(name) for name in _NAMED.findall(file.read(_MOST_CONFIGURATION))]
    except OSError:
        return []


if __name__ == "__main__":
    main(sys.argv[1:])
