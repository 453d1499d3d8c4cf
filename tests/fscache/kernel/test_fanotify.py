"""The group's descriptor, where the kernel has none left for an event."""

from __future__ import annotations

import errno
import os

import pytest

from nydus_erofs.fscache.kernel.fanotify import Group


@pytest.mark.root
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN])
def test_no_event_is_no_end_of_the_service(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has denied what it could not hand over."""

    def read(_fd: int, _size: int) -> bytes:
        raise OSError(number, os.strerror(number))

    group = Group()
    try:
        monkeypatch.setattr(os, "read", read)
        assert group.read(4096) == b""
    finally:
        group.close()
