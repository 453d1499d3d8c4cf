"""Looking for the blobs of what is still mounted: one image that takes too long holds up itself alone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from nydus_erofs.erofs.errors import BlobNotFoundError
from nydus_erofs.erofs.ids import BlobId, blob_id
from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.keeper.engine import taking_over
from nydus_erofs.fscache.keeper.engine.mounted import MountedImage, MountRecord
from nydus_erofs.fscache.keeper.images.files import Own
from nydus_erofs.fscache.keeper.images.origin import ImageRequest, Origin
from nydus_erofs.fscache.kernel.fd import Fd
from tests.kit.processes import run_to_the_end

HANGS, THERE, GONE = (digit * 64 for digit in "abc")


class Table:
    """What is said of stores, which are names of blobs here."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def add_source(self, store: str, source: Fd) -> None:
        source.close()
        self.said.append((store, "found"))

    def sourced(self, store: str) -> None:
        self.said.append((store, "sourced"))


class Bootstraps:
    def require(self, remote: object) -> None:
        assert remote is None


def open_blob(_folders: Sequence[str], blob: BlobId, _own: Own) -> Fd:
    """In a child."""
    if blob == HANGS:
        time.sleep(600)
    if blob == GONE:
        raise BlobNotFoundError("it is gone")
    return Fd(os.open("/dev/null", os.O_RDONLY))


def mounted(*blobs: str, image: str = "/image.meta") -> MountedImage:
    record = MountRecord("0" * 32, ImageRequest(image), "/target", prefetch=False)
    nothing: Any = None
    stores: Any = blobs
    return MountedImage("", record, Origin(image, []), list(map(blob_id, blobs)), stores, nothing, nothing)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """`look(*images)`: all that is said of their stores in the end."""
    monkeypatch.setattr(taking_over, "_IMPATIENCE", 0.3)
    monkeypatch.setattr(taking_over, "_PATIENCE", 0.6)
    monkeypatch.setattr(taking_over, "open_blob", open_blob)

    def look(*images: MountedImage) -> list[tuple[str, str]]:
        table = Table()

        async def work() -> None:
            bootstraps = cast("Any", Bootstraps())
            await taking_over.find_blobs(images, Config(), cast("Any", table), bootstraps, lambda _: False)
            deadline = time.monotonic() + 20
            while sum(what == "sourced" for _, what in table.said) < sum(len(one.stores) for one in images):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

        run_to_the_end(work())
        return table.said

    return look


FOUND = [(THERE, "found"), (THERE, "sourced")]


def test_all_are_there(look: Callable[..., Any]) -> None:
    assert look(mounted(THERE), mounted(THERE, THERE), mounted()) == FOUND * 3


def test_one_is_gone(look: Callable[..., Any]) -> None:
    """Its readers get what is cached, and errors for the rest; they do not wait."""
    assert look(mounted(GONE, THERE), mounted(THERE)) == [(GONE, "sourced"), *FOUND, *FOUND]


@pytest.mark.parametrize("place", range(3))
def test_one_hangs(place: int, look: Callable[..., Any]) -> None:
    """The others are served before its patience ends; then nobody waits for it any more."""
    images = [mounted(THERE), mounted(THERE)]
    images.insert(place, mounted(HANGS, THERE))
    said = look(*images)
    assert said[: 2 * len(FOUND)] == FOUND * 2
    assert said[-2:] == [(HANGS, "sourced"), (THERE, "sourced")]


def test_a_name_that_makes_no_sense(look: Callable[..., Any]) -> None:
    assert look(mounted(THERE, image="s3://"), mounted(THERE)) == [(THERE, "sourced"), *FOUND]


def test_none(look: Callable[..., Any], tmp_path: Path) -> None:
    assert look() == []
