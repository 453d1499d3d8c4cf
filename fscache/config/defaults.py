"""Default folders of the service. Apart from everything else, so that a client can know them at no cost."""

from __future__ import annotations

import os

DEFAULT_STATE = "/var/lib/nydus-erofs"
DEFAULT_RUN = "/run/nydus-erofs"


def control_socket(run: str) -> str:
    """Path of the control socket in run folder ``run``."""
    return os.path.join(run, "control.sock")
