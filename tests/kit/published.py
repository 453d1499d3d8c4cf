"""Images that are published on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.kit.servers.relay import Relay
from tests.kit.service import Service


class Place(NamedTuple):
    """An image that is published on a server behind a relay."""

    kind: str
    image: str  # what to mount
    config: Path  # of the backend
    relay: Relay
    blobs: int  # bytes
    secrets: tuple[str, ...]

    def mount(self, service: Service, **fields: Any) -> Path:
        return service.mount_image(self.image, backend_file=str(self.config), **fields)
