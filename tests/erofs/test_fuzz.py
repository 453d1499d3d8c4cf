"""Images broken at random: the reader raises its own errors, the checker returns; in bounded time and memory.

NYDUS_EROFS_FUZZ=N tries N images of each kind, with other seeds than the usual ones.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MORE = int(os.environ.get("NYDUS_EROFS_FUZZ", "0"))


def fuzz(boot: Path, blob: Path, count: int) -> None:
    child = Path(__file__).with_name("fuzz_child.py")
    seed = random.randrange(1 << 40) if MORE else 0
    command = [sys.executable, str(child), str(boot), str(blob), str(seed), str(MORE or count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280 + MORE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Not all damage is seen (a time, a reserved byte), but most must be.
    found = int(done.stdout.split()[2])
    assert found > (MORE or count) // 4, done.stdout


@pytest.mark.parametrize("name", ["plain", "toc", "batch"])
def test_images_of_nydus(name: str, nydus_images: Path) -> None:
    (blob,) = (nydus_images / name / "blobs").iterdir()
    fuzz(nydus_images / name / "boot", blob, 60)


@pytest.mark.parametrize("compact", [False, True])
def test_small_image(compact: bool, make: Any, nodes: Any, tmp_path: Path) -> None:
    linked = nodes.regular(b"hard" * 100)
    tree = nodes.folder(
        {
            b"a": nodes.folder({b"b": nodes.folder({b"c1": nodes.regular(bytes(range(250)) * 40)})}),
            b"h1": linked,
            b"h2": linked,
            b"l1": nodes.symlink(b"x" * 50),
            b"long1": nodes.symlink(b"y" * 4090),
            b"many": nodes.folder({b"file%03d" % i: nodes.regular(b"%d" % i * (i % 3)) for i in range(150)}),
            b"null": nodes.node(0o020644, rdev=259),
            b"tags": nodes.regular(b"q", xattrs={b"user.a": b"1", b"security.capability": b"zz"}),
        }
    )
    made = make(tree, compact=compact)
    (blob,) = made.blobs.values()
    (tmp_path / "boot").write_bytes(made.boot)
    (tmp_path / "blob").write_bytes(blob)
    fuzz(tmp_path / "boot", tmp_path / "blob", 250)
