"""Tell systemd how the service is doing (sd_notify(3)); without systemd it does nothing."""

from __future__ import annotations

import os
import socket

from .trouble import report


def notify(state: str) -> None:
    """Send a state such as ``READY=1`` to the service manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError as error:
        report("the service manager cannot be told", error, state=state)
