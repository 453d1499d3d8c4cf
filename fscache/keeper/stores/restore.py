"""Back to the law after a crash of the machine: a segment's size is what was verified of it.

A power cut leaves files longer than what reached the disk. The kernel believes sizes, also when no keeper is there to
tell better: so before anything is mounted from such a store, its segments start empty again, on disk. What they held
is set aside; a worker takes back what of it has the right digests.
"""

from __future__ import annotations

import contextlib
import os
import re

from ...kernel.fd import Fd
from ...state.layout import SET_ASIDE
from . import epoch

_SEGMENT = re.compile(r"[0-9]{5,}")


def restore(directory: str, uid: int, reader: int) -> None:
    """Set aside what a store's segments hold. For children: it may be many files.

    May end anywhere: only at its end the store counts as this era's, and until then it is restored again.

    Args:
        uid: the verifier's, to whom segment files belong.
        reader: the worker's, to whom belongs what was set aside.
    """
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        with contextlib.suppress(FileExistsError):
            os.mkdir(SET_ASIDE, 0o700, dir_fd=folder.fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        aside = opened.enter_context(Fd(os.open(SET_ASIDE, flags, dir_fd=folder.fd)))
        os.fchmod(aside.fd, 0o755)
        for name in _filled(folder):
            os.rename(name, name, src_dir_fd=folder.fd, dst_dir_fd=aside.fd)
        # Also of those that were set aside when an earlier try ended.
        for name in filter(_SEGMENT.fullmatch, os.listdir(aside.fd)):
            os.chown(name, reader, reader, dir_fd=aside.fd, follow_symlinks=False)
            with contextlib.suppress(FileExistsError):
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder.fd)
                with Fd(file):
                    os.fchown(file, uid, uid)
    epoch.begin(directory, anew=True)


def _filled(folder: Fd) -> list[str]:
    """Names of segment files that are not empty."""
    with os.scandir(folder.fd) as entries:
        return [
            entry.name
            for entry in entries
            if _SEGMENT.fullmatch(entry.name)
            and entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_size
        ]
