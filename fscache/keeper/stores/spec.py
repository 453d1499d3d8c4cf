"""What a store is made of, and what verifier and worker must be told and given: one type for each kind of store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ....erofs.errors import FormatError
from ...config.backend import Remote
from ...kernel.fd import Fd
from ...kernel.plain import open_plain, pass_on_unless_damage
from ...proto import verifier, worker
from ...state.layout import PLAN, segment_name
from ...state.plan import Plan
from . import epoch


class StoreSpec(Protocol):
    """Owns its descriptors."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each segment."""
        ...

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        """What a verifier is told, and the descriptors that go with it; the caller's. ``files``: of its blob."""
        ...

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[worker.ToWorker, list[Fd]]:
        """The same for a worker; the blob's own descriptors come behind. ``remotes``: where else its blob is."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FolderSpec:
    """A folder of segment files (fanotify engine)."""

    directory: str
    sizes: Sequence[int]
    have: list[int]  # bytes of each segment that count
    inodes: dict[int, int]  # inode number of a segment file -> segment
    begun: bool  # its epoch is noted: not all of it may be on disk
    plan: Fd  # held (O_PATH), as the folder: somebody may remove it, and a new worker must still be told of it
    folder: Fd

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        return verifier.OpenFolder(number), [self.plan.reopen(), self.folder.reopen()]

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[worker.ToWorker, list[Fd]]:
        return worker.OpenStore(number, filled, True, remotes), [self.plan.reopen(), self.folder.reopen()]

    def close(self) -> None:
        self.plan.close()
        self.folder.close()


@dataclass(frozen=True, slots=True)
class BlobSpec:
    """A blob's object in the kernel's cache, and one plan that fills it (cachefiles engine)."""

    sizes: Sequence[int]
    cache_object: Fd
    plan: Fd

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        return verifier.OpenObject(number), [self.cache_object.dup(), self.plan.dup()]

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[worker.ToWorker, list[Fd]]:
        return worker.OpenStore(number, filled, False, remotes), [self.plan.dup()]

    def close(self) -> None:
        self.cache_object.close()
        self.plan.close()


@dataclass(frozen=True, slots=True)
class BootstrapSpec:
    """A bootstrap's object in the kernel's cache: ``raw_size`` bytes served as they are, ``segment_size`` at a time;
    from a file (among the sources), or from where it is ``published``."""

    sizes: Sequence[int]
    cache_object: Fd
    raw_size: int
    segment_size: int
    published: worker.PublishedBootstrap | None

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        identity = self.published.identity if self.published is not None else ""
        message = verifier.OpenObject(number, self.raw_size, self.segment_size, identity)
        return message, [self.cache_object.dup(), *(file.dup() for file in files)]

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[worker.ToWorker, list[Fd]]:
        return worker.OpenBootstrap(number, filled, self.raw_size, self.segment_size, self.published), []

    def close(self) -> None:
        self.cache_object.close()


def load_plan(path: str) -> tuple[list[int], Fd]:
    """Bytes of each segment of a plan, and its open file; FormatError when it is damaged, OSError when it
    cannot be read now."""
    try:
        file = open_plain(path)
    except OSError as error:
        pass_on_unless_damage(error)
        raise FormatError(f"plan {path} is damaged: {error.strerror}") from None
    return [segment.size for segment in Plan(file.dup()).segments], file


def load_folder(directory: str, uid: int, *, mounted: bool = False) -> FolderSpec:
    """Read a store's folder, which keeps the law (``restore.py``); FormatError when it is damaged, OSError when it
    cannot be read now.

    Args:
        uid: the verifier's, to whom segment files belong.
        mounted: it has kept the law since something was mounted from it, in whatever era that was.
    """
    try:
        return _load_folder(directory, uid, mounted)
    except OSError as error:
        pass_on_unless_damage(error)
        raise FormatError(f"store {directory} is damaged: {error.strerror}") from None


def _load_folder(directory: str, uid: int, mounted: bool) -> FolderSpec:
    folder = Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    plan = open_plain(PLAN, folder)
    sizes = [segment.size for segment in Plan(plan.dup()).segments]
    if not mounted and not epoch.trusted(directory):
        raise FormatError(f"store {directory} may have lost data in a crash")
    begun = epoch.begun(directory)
    segments = {segment_name(number): number for number in range(len(sizes))}
    inodes: dict[int, int] = {}
    have = [0] * len(sizes)
    with os.scandir(folder.fd) as entries:
        for entry in entries:
            segment = segments.get(entry.name)
            if segment is not None and entry.is_file(follow_symlinks=False):
                inodes[entry.inode()] = segment
                have[segment] = min(entry.stat(follow_symlinks=False).st_size, sizes[segment])
    if len(inodes) != len(sizes):
        raise FormatError(f"store {directory} is damaged: {len(inodes)} of {len(sizes)} segment files")
    _give(folder, len(sizes), uid)
    return FolderSpec(directory, sizes, have, inodes, begun, plan.as_path(), folder.as_path())


def _give(folder: Fd, segments: int, uid: int) -> None:
    """Make segment files the verifier's, of a store that is in use (``taking_over.py``) since another user was
    configured; what is not in use is verified again (``restore.py``)."""
    if segments and os.stat(segment_name(0), dir_fd=folder.fd, follow_symlinks=False).st_uid == uid:
        return
    for number in reversed(range(segments)):  # the first one last: it says that all are done
        os.chown(segment_name(number), uid, uid, dir_fd=folder.fd, follow_symlinks=False)
