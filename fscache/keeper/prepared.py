"""The keeper's side of ``prepare``: run it on a bootstrap and take over what it made."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ...erofs.errors import FormatError, NydusErofsError
from ...erofs.ids import BlobId, blob_id
from ..kernel import channel
from ..proto import prepare as proto
from ..proto.fault import Fault
from ..state import image
from ..state.layout import PLAN, STORES, segment_name
from . import epoch
from .paths import StatePaths
from .spawn import exited, spawn, write_out

_PATIENCE = 300.0  # seconds
_SETTLE_AFTER = 15.0  # seconds
_FAILED = "preparing the image failed: "


# Bytes of a blob, from an offset: a descriptor for the receiver to close, and the blob offset of its file's start.
Provide = Callable[[BlobId, int, int], Awaitable[tuple[int, int]]]


class Images:
    """Prepared images by id: taken from disk, or made, once however many want one at the same time."""

    def __init__(self, paths: StatePaths, segment_size: int, uid: int, *, localize: bool) -> None:
        self._paths, self._uid = paths, uid
        self._request = proto.Prepare(segment_size, localize)
        self._locks: dict[str, asyncio.Lock] = {}
        self._settling: set[asyncio.Task[None]] = set()

    async def _settle(self, image_id: str, record: image.ImageRecord) -> None:
        """Have a fresh image outlive a crash of the machine, once its mount has what it needs of the disk."""
        await asyncio.sleep(_SETTLE_AFTER)
        directory = self._paths.image(image_id)
        names = [image.RECORD, image.BOOT] if record.boot_size else [image.RECORD]
        files = [os.path.join(directory, name) for name in names]
        folders = [self._paths.store_of(ref.key) for ref in record.stores]
        plans = [os.path.join(folder, PLAN) for folder in folders]
        if await write_out([*files, *plans, directory, *folders, self._paths.store, self._paths.images]):
            epoch.settle(directory)

    def id_of(self, bootstrap_fd: int) -> str:
        return image.image_id(bootstrap_fd, self._request.segment_size)

    async def get(self, image_id: str, bootstrap_fd: int, provide: Provide) -> image.ImageRecord:
        """The prepared image of an open bootstrap whose blobs ``provide`` gives the bytes of."""
        lock = self._locks.setdefault(image_id, asyncio.Lock())
        try:
            async with lock:
                found = self._find(image_id)
                if found is not None:
                    return found
                record = await prepare(self._paths, image_id, bootstrap_fd, self._request, self._uid, provide)
                self._settling.add(task := asyncio.create_task(self._settle(image_id, record)))
                task.add_done_callback(self._settling.discard)
                return record
        finally:
            if not lock.locked():
                self._locks.pop(image_id, None)

    def known(self, image_id: str) -> bool:
        """Whether an image is prepared already."""
        return self._find(image_id) is not None

    def _find(self, image_id: str) -> image.ImageRecord | None:
        directory = self._paths.image(image_id)
        if not os.path.isdir(directory) or not epoch.trusted(directory):
            return None
        try:
            record = image.load(directory)
        except FormatError:
            return None
        if self._request.localize and not record.boot_size:
            return None
        if not all(os.path.exists(os.path.join(self._paths.store_of(ref.key), PLAN)) for ref in record.stores):
            return None
        return record


async def prepare(
    paths: StatePaths,
    image_id: str,
    bootstrap_fd: int,
    request: proto.Prepare,
    uid: int,
    provide: Provide,
) -> image.ImageRecord:
    """Prepare a bootstrap: ``images/<id>``, and its stores in ``store/<key>``.

    Args:
        provide: asked for the chunk-info arrays of the blobs; its errors pass through.
    """
    work = os.path.join(paths.images, f".new-{image_id}")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(os.path.join(work, STORES))
    for folder in (work, os.path.join(work, STORES)):
        os.chown(folder, uid, uid)
    try:
        await _run(work, bootstrap_fd, request, uid, provide)
        stores = os.path.join(work, STORES)
        _claim(work, files=[image.RECORD, *([image.BOOT] if request.localize else [])], folders=[STORES])
        record = image.load(work)
        _claim(stores, folders=[ref.key for ref in record.stores])
        for ref in record.stores:
            files = ref.segments if request.localize else 0
            _adopt_store(os.path.join(stores, ref.key), paths.store_of(ref.key), ref.key, files)
        os.rmdir(stores)
        epoch.begin(work)
        shutil.rmtree(paths.image(image_id), ignore_errors=True)
        os.rename(work, paths.image(image_id))
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return record


async def _run(work: str, bootstrap_fd: int, request: proto.Prepare, uid: int, provide: Provide) -> None:
    """One prepare process, from request to result."""
    pid, sock = spawn("prepare", uid)
    with sock:
        try:
            folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                channel.send(sock, proto.encode(request), [bootstrap_fd, folder])
            finally:
                os.close(folder)
            sock.setblocking(False)
            result = await asyncio.wait_for(_converse(sock, provide), _PATIENCE)
        except TimeoutError:
            raise FormatError(f"preparing the image took more than {_PATIENCE:.0f} s") from None
        except ConnectionError:
            raise FormatError(_FAILED + "the process died", hint="see the log") from None
        finally:
            # It has nothing more to say; whatever it still does is not wanted.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await exited(pid)
    if isinstance(result, proto.NotPrepared):
        raise result.fault.error()


async def _converse(sock: socket.socket, provide: Provide) -> proto.ToKeeper:
    """Answer its requests for bytes until it says how it went."""
    while True:
        packet = await _receive(sock)
        if not packet:
            raise ConnectionResetError
        try:
            message = proto.decode_for_keeper(packet)
        except msgspec.DecodeError:
            raise FormatError(_FAILED + "the process sent nonsense") from None
        if not isinstance(message, proto.NeedBytes):
            return message
        try:
            fd, base = await provide(blob_id(message.blob_id), message.offset, message.length)
        except NydusErofsError as error:
            channel.send(sock, proto.encode(proto.NoBytes(Fault.of(error))))
            continue
        try:
            channel.send(sock, proto.encode(proto.Bytes(base)), [fd])
        finally:
            os.close(fd)


async def _receive(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, proto.MAX_MESSAGE)


def _claim(folder: str, *, files: Sequence[str] = (), folders: Sequence[str] = (), segments: int = 0) -> None:
    """Make a folder that an unprivileged process has filled root's own; segment files stay the worker's.

    It must hold plain files of these names, ``segments`` segment files, and nothing else: what root then writes or
    the kernel opens there must not be led elsewhere by a link.
    """
    os.chown(folder, 0, 0, follow_symlinks=False)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise FormatError(f"{_FAILED}{os.path.basename(folder)} is not a folder")
    os.chmod(folder, 0o755)  # noqa: S103 - the worker looks for its segments here
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    expected = {*files, *folders, *map(segment_name, range(segments))}
    if found.keys() != expected:
        raise FormatError(f"{_FAILED}it left {len(found)} names in {os.path.basename(folder)}, not {len(expected)}")
    for name, status in found.items():
        if name in folders:
            plain = stat.S_ISDIR(status.st_mode)
        else:
            plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not plain:
            raise FormatError(f"{_FAILED}{name} is not a plain file")
    for name in files:
        os.chown(os.path.join(folder, name), 0, 0, follow_symlinks=False)


def _adopt_store(new: str, final: str, key: str, files: int) -> None:
    """Move a fresh store to its place, or keep the one that is there with what it has fetched.

    The folder and its plan become root's, so that a worker gone wrong can only spoil segments; and the key is looked
    at, so that a ``prepare`` gone wrong cannot give another image's store another plan.
    """
    _claim(new, files=[PLAN], segments=files)
    with open(os.path.join(new, PLAN), "rb") as plan:
        if hashlib.file_digest(plan, "sha256").hexdigest() != key:
            raise FormatError(f"{_FAILED}the plan of store {key[:12]} is another")
    if os.path.isdir(final):
        there = sum(name.isdecimal() for name in os.listdir(final))
        if there == files or not files:
            # The same key, the same plan; but the one here may have been damaged by a power cut.
            os.replace(os.path.join(new, PLAN), os.path.join(final, PLAN))
            shutil.rmtree(new)
            return
        shutil.rmtree(final)
    epoch.begin(new)
    os.rename(new, final)
