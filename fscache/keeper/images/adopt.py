"""Taking over what ``prepare`` left: run in a child of the keeper, as root, on a folder that a stranger filled."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence

from ....erofs.errors import FormatError
from ...kernel.plain import open_plain
from ...state import image
from ...state.layout import BOOT, BOOT_DIGEST, PLAN, RECORD, STORES, segment_name
from ...state.plan import Plan
from .. import durable
from ..children.errands import Say
from ..paths import away
from ..stores import epoch

_FAILED = "preparing the image failed: "


def adopt(work: str, final: str, store: str, uid: int, localized: bool, _: Say) -> None:
    """Move the stores in ``work`` to ``store/<key>``, and the image itself to its place.

    Args:
        final: that of the image.
        store: the folder of all stores.
        uid: the verifier's, to whom segment files belong.
        localized: the image has a localized bootstrap, and its stores have segment files.
    """
    stores = os.path.join(work, STORES)
    _claim(work, files=[RECORD, *([BOOT] if localized else [])], folders=[STORES])
    record = image.load(work)
    _claim(stores, folders=sorted({ref.key for ref in record.stores}))
    for ref in record.stores:
        _check(os.path.join(stores, ref.key), ref)
    for key, segments in {ref.key: ref.segments for ref in record.stores}.items():
        _adopt_store(os.path.join(stores, key), os.path.join(store, key), segments if localized else 0, uid)
    os.rmdir(stores)
    if localized:
        with open(os.path.join(work, BOOT_DIGEST), "x") as file:
            file.write(_digest(os.path.join(work, BOOT)))
    epoch.begin(work)
    with contextlib.suppress(FileNotFoundError):
        os.rename(final, away(final))
    os.rename(work, final)


def _claim(folder: str, *, files: Sequence[str] = (), folders: Sequence[str] = ()) -> None:
    """Make a folder that an unprivileged process has filled root's own.

    It must hold plain files and folders of these names, and nothing else: what root then writes or the kernel opens
    there must not be led elsewhere by a link.
    """
    os.chown(folder, 0, 0, follow_symlinks=False)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise FormatError(f"{_FAILED}{os.path.basename(folder)} is not a folder")
    os.chmod(folder, 0o755)  # noqa: S103 - verifier and worker look for segments here
    expected = {*files, *folders}
    found: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if entry.name in folders:
                plain = stat.S_ISDIR(status.st_mode)
            else:
                plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not plain or entry.name not in expected:
                raise FormatError(f"{_FAILED}it left {ascii(entry.name)[:80]} in {os.path.basename(folder)}")
            found.add(entry.name)
    if found != expected:
        raise FormatError(f"{_FAILED}it left {len(found)} names in {os.path.basename(folder)}, not {len(expected)}")
    for name in files:
        os.chown(os.path.join(folder, name), 0, 0, follow_symlinks=False)


def _check(new: str, ref: image.StoreRef) -> None:
    """Make a fresh store root's, if its name and all that the image's record says of it are what its plan says.

    So a ``prepare`` gone wrong can neither give another image's store another plan, nor have it taken for damaged,
    nor have its bytes looked for in another blob.
    """
    _claim(new, files=[PLAN])
    path = os.path.join(new, PLAN)
    plan = Plan(open_plain(path))
    if ref != image.StoreRef(_digest(path), plan.blob_id, len(plan.segments), plan.size):
        raise FormatError(f"{_FAILED}the plan of store {ref.key[:12]} is another")


def _adopt_store(new: str, final: str, segments: int, uid: int) -> None:
    """Move a fresh store to its place, or keep the one that is there with what it has fetched.

    The folder and its plan are root's, so that a verifier gone wrong can only spoil segments. Segment files are made
    here, empty: nobody else can have put anything into them. Its epoch is for whoever opens it: nothing is written
    before.
    """
    key = os.path.basename(final)
    if os.path.lexists(final):
        if _whole(final, segments, key, os.path.join(new, PLAN)):
            with contextlib.suppress(FileNotFoundError):  # it may have gone in a damaged one's place
                os.unlink(os.path.join(new, PLAN))
            os.rmdir(new)
            return
        os.rename(final, away(final))
    for number in range(segments):
        fd = os.open(
            os.path.join(new, segment_name(number)), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        os.fchown(fd, uid, uid)
        os.close(fd)
    os.rename(new, final)


def _whole(store: str, segments: int, key: str, plan: str) -> bool:
    """Whether a store that is there has all its segment files, and its plan; a damaged one gets ``plan`` instead."""
    try:
        with os.scandir(store) as entries:
            files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        if not files.issuperset(map(segment_name, range(segments))):
            return False
        if _digest(os.path.join(store, PLAN)) != key:  # damaged, by a power cut perhaps
            durable.replace(plan, os.path.join(store, PLAN))
    except (NotADirectoryError, IsADirectoryError):  # the store is no folder, or its plan is one
        return False
    return True


def _digest(path: str) -> str:
    """SHA-256 in hex; empty for what is no file."""
    try:
        with open_plain(path) as fd, open(fd.fd, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
