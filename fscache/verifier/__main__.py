"""Run by the keeper as ``python -m nydus_erofs.fscache.verifier SOCKET START`` (``proto.verifier.Start``)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from ..kernel.confine import confine
from ..kernel.landlock import FILL, Rule
from ..kernel.process import raise_file_limit, until_gone
from ..processes import VERIFIER
from ..proto.verifier import decode_start
from .service import Verifier
from .syscalls import PROFILE


def main(arguments: Sequence[str]) -> None:
    fd, start = int(arguments[0]), decode_start(arguments[1])
    sock = socket.socket(fileno=fd)
    raise_file_limit()
    missing = confine(VERIFIER, start.uid, [fd], [Rule(start.store, FILL)], PROFILE, start.connections)
    sys.stderr.writelines(f"sandbox: {what}\n" for what in missing)
    until_gone(lambda: Verifier(sock, start.connections).run())


if __name__ == "__main__":
    main(sys.argv[1:])
