"""Where the service keeps its files, and the law of these folders.

State (survives reboots, one filesystem: ext4, xfs or btrfs; root only)::

    lock                    flock: one service on a state folder
    images/<id>/            prepared images: boot, image.json (image.py)
    images/.new-*           being prepared; removed at start
    bootstraps/             bootstraps from afar (fetcher.py)
    store/<key>/plan        what fills which segment (plan.py); owner root
    store/<key>/<segment>   segment files; owner the worker
    .../epoch               present while data may not be on disk (epoch.py)

Run (gone after a reboot; root only)::

    control.sock            control socket
    mounts/<n>/mount.json   one served mount: image, target, blob folders
    mounts/<n>/through      private bind mount of store/, the way the kernel takes to the segments
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil

from ...erofs.errors import ServiceError
from ..config.defaults import control_socket
from ..kernel.mount import bind_private, mounts, unmount

MOUNT_RECORD = "mount.json"


class StatePaths:
    """The state folder, locked for this process until it ends."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)  # as mountinfo spells it
        self.images = os.path.join(self.root, "images")
        self.store = os.path.join(self.root, "store")
        self.bootstraps = os.path.join(self.root, "bootstraps")
        for path in (self.root, self.images, self.store, self.bootstraps):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self._lock = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ServiceError(
                f"another service uses the state folder {self.root}",
                hint="stop it, or choose another folder with --state-dir",
            ) from None
        for name in os.listdir(self.images):
            if name.startswith(".new-"):
                shutil.rmtree(os.path.join(self.images, name), ignore_errors=True)

    def image(self, image_id: str) -> str:
        return os.path.join(self.images, image_id)

    def store_of(self, key: str) -> str:
        return os.path.join(self.store, key)


class RunPaths:
    """The run folder. ``mounts`` is a private mount, so that bind mounts below it stay in this namespace."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)  # as mountinfo spells it
        self.mounts = os.path.join(self.root, "mounts")
        for path in (self.root, self.mounts):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self._fresh = not any(entry.target == self.mounts for entry in mounts())
        if self._fresh:
            bind_private(self.mounts, self.mounts)

    @property
    def socket(self) -> str:
        return control_socket(self.root)

    def new_mount(self) -> str:
        """A new folder for one mount."""
        number = 0
        while True:
            path = os.path.join(self.mounts, str(number))
            try:
                os.mkdir(path, mode=0o700)
            except FileExistsError:
                number += 1
                continue
            os.mkdir(os.path.join(path, "through"))
            return path

    def remove_mount(self, folder: str) -> None:
        """Remove the folder of a mount that is gone. Not recursively, whatever happens: what is bound there is the
        cache, and a folder in use stays."""
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if name.startswith(MOUNT_RECORD):
                    os.unlink(os.path.join(folder, name))
            os.rmdir(os.path.join(folder, "through"))
            os.rmdir(folder)

    def give_up(self) -> None:
        """The service does not start: leave the folder as it was. Another service may be using it."""
        if self._fresh:
            self.close()

    def close(self) -> None:
        """Undo the private mount when nothing is mounted below it any more."""
        if not os.listdir(self.mounts):
            unmount(self.mounts, lazy=True)
