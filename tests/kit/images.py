"""Images: those that Nydus built, and what our builder makes of a tree."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import NamedTuple

import zstandard

from tests.kit.command import cli

NYDUS_IMAGES = Path(__file__).parents[1] / "data" / "nydus-v2.4-images.tar.zst"


def unpack_nydus_images(folder: Path) -> None:
    """What the fixture ``nydus_images`` holds."""
    tar_bytes = zstandard.ZstdDecompressor().stream_reader(NYDUS_IMAGES.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        # The default changes with Python's version; these are plain files and folders of our own.
        tar.extraction_filter = staticmethod(lambda member, path: member)
        tar.extractall(folder)


class Built(NamedTuple):
    """An image that the builder made of a tree."""

    tree: Path
    bootstrap: Path
    blob: Path


def build(tree: Path, out: Path, *options: str) -> Built:
    """An image of a tree with one blob, in a folder of its own."""
    out.mkdir(exist_ok=True)
    cli("build", tree, "-o", out, *options, check=True)
    (blob,) = json.loads((out / "output.json").read_text())["blobs"]
    return Built(tree, next(out.glob("*.meta")), out / blob)


def build_apart(folder: Path, files: int) -> Built:
    """An image of which each file is a segment, and whose blob is in a folder of its own."""
    (folder / "tree").mkdir()
    for number in range(files):
        (folder / "tree" / f"{number}").write_bytes(random.Random(number).randbytes(4096) * 256)
    image = build(folder / "tree", folder / "image")
    (folder / "blobs").mkdir()
    return image._replace(blob=image.blob.rename(folder / "blobs" / image.blob.name))


def plant(tree: Path) -> None:
    """A tree of about 24 MB: programs, many small files, some large ones."""
    rng = random.Random(7)
    for name in ("bin", "lib/deep/er", "small", "large"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/cat", tree / "bin")
    (tree / "bin/script").write_text("#!/bin/sh\necho out of the image\n")
    (tree / "bin/script").chmod(0o755)
    for number in range(400):
        path = tree / ("small" if number % 2 else "lib/deep/er") / f"{number}"
        path.write_bytes(rng.randbytes(rng.randrange(1, 9000)))
    for number in range(8):
        # Half compresses well, half not at all.
        data = b"".join(rng.randbytes(32768) + b"%d" % number * 30000 for _ in range(40))
        (tree / "large" / f"{number}").write_bytes(data)
    os.symlink("../large/0", tree / "lib/link")
    os.link(tree / "large/1", tree / "lib/hard")
