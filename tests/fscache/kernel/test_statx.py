"""statx(2), beside what os.stat says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nydus_erofs.fscache.kernel import statx


def test_which_file_it_is(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null"), Path("/proc/self/status")):
        fd = os.open(path, os.O_RDONLY)
        try:
            found, right = statx.identity(fd), os.fstat(fd)
            assert found == (right.st_dev, right.st_ino)
        finally:
            os.close(fd)
    with pytest.raises(OSError, match="statx"):
        statx.identity(fd)
