"""Where the service keeps its files, and the law of these folders.

State (survives reboots, one filesystem: ext4, xfs or btrfs; root only)::

    lock                    flock: one service on a state folder
    images/<id>/            prepared images: boot, image.json (state/image.py)
    images/.new-*           being prepared; removed at start
    .../.gone-*             to be removed
    bootstraps/             bootstraps from afar (images/bootstraps.py)
    store/<key>/plan        what fills which segment (state/plan.py); owner root
    store/<key>/<segment>   segment files; owner the worker
    cachefiles/             the kernel's cache (cachefiles engine)
    objects.json            what that holds: it is not believed without (engine/names.py)
    .../epoch               present while data may not be on disk (epoch.py)

Run (gone after a reboot; root only)::

    control.sock            control socket
    mounts/<n>/mount.json   one served mount: image, target, blob folders
    mounts/<n>/through      private bind mount of store/, the way the kernel takes to the segments
    names.json              images by fsid (cachefiles engine)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from ...erofs.errors import ServiceError
from ..config.defaults import control_socket
from ..kernel import statx
from ..kernel.fd import Fd
from ..kernel.mount import bind_private, unmount
from ..state.layout import MOUNT_RECORD
from .trouble import report

NEW, _GONE = ".new-", ".gone-"  # names of folders that are being made, and that are to be removed


def new_name(prefix: str) -> str:
    """A name that nobody has. ``tempfile`` and ``secrets`` would load ``random``, seeded anew in each fork."""
    return prefix + os.urandom(8).hex()


def away(path: str) -> str:
    """Where to move a folder that is to be removed."""
    return os.path.join(os.path.dirname(path), new_name(_GONE))


class StatePaths:
    """The state folder, locked for this process until it ends."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)  # as mountinfo spells it
        self.images = os.path.join(self.root, "images")
        self.store = os.path.join(self.root, "store")
        self.bootstraps = os.path.join(self.root, "bootstraps")
        self.cachefiles = os.path.join(self.root, "cachefiles")
        for path in (self.root, self.images, self.store, self.bootstraps):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self._lock = Fd(os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            fcntl.flock(self._lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                f"another service uses the state folder {self.root}",
                hint="stop it, or choose another folder with --state-dir",
            ) from None

    def image(self, image_id: str) -> str:
        return os.path.join(self.images, image_id)

    def store_of(self, key: str) -> str:
        return os.path.join(self.store, key)

    def gone(self) -> list[str]:
        """Folders that are to be removed."""
        return self._named(_GONE)

    def left_over(self) -> list[str]:
        """The same, and what a service before was making when it ended."""
        return self._named(_GONE, NEW)

    def _named(self, *prefixes: str) -> list[str]:
        folders = filter(os.path.isdir, (self.images, self.store, self.bootstraps, self.cachefiles))
        return [os.path.join(f, name) for f in folders for name in os.listdir(f) if name.startswith(prefixes)]


class RunPaths:
    """The run folder. ``mounts`` is a private mount, so that bind mounts below it stay in this namespace."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)  # as mountinfo spells it
        self.mounts = os.path.join(self.root, "mounts")
        for path in (self.root, self.mounts):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self._fresh = statx.mount_id(self.mounts) == statx.mount_id(self.root)
        if self._fresh:
            bind_private(self.mounts, self.mounts)
        self._next = 1 + max((int(name) for name in os.listdir(self.mounts) if name.isdecimal()), default=-1)

    @property
    def socket(self) -> str:
        return control_socket(self.root)

    def new_mount(self) -> str:
        """A new folder for one mount; ServiceError when there is no room for it."""
        path = os.path.join(self.mounts, str(self._next))
        self._next += 1
        with self.writing():
            os.mkdir(path, mode=0o700)
            try:
                os.mkdir(os.path.join(path, "through"))
            except OSError:
                os.rmdir(path)
                raise
        return path

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """ServiceError, instead of an OSError, when something cannot be written to the run folder."""
        try:
            yield
        except OSError as error:
            raise ServiceError(
                f"the run folder {self.root} cannot be written to: {error.strerror}",
                hint="make room there, or choose another folder with --run-dir",
            ) from None

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
        try:
            if not os.listdir(self.mounts):
                unmount(self.mounts, lazy=True)
        except OSError as error:
            report("the run folder is left as it is", error, folder=self.mounts)
