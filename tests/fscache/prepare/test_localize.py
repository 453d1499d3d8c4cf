"""Localized bootstraps: accepted by fsck.erofs and the kernel, and broken ones refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.errors import FormatError, NydusErofsError, UnsupportedError
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.ids import BlobId
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.state.layout import segment_name
from tests.fuzz.mutate import NUMBERS
from tests.fuzz.samples import Sample
from tests.fuzz.served import prepared
from tests.kit.oracles import Oracles
from tests.kit.reading import compare_expected
from tests.kit.stores import MadeStore, MakeStore, OpenImage, OpenImages

FIXTURES = ("plain", "lz4", "none-sha256", "toc", "batch")


def localized(image: OpenImage) -> bytes:
    out = io.BytesIO()
    localize.write_localized(image.boot, image.head, [image.map], out)
    return out.getvalue()


@pytest.mark.oracle
@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("segment_size", [1 << 20, 4 << 20])
def test_fsck_accepts_it(
    name: str, segment_size: int, open_image: OpenImages, make_store: MakeStore, oracles: Oracles, tmp_path: Path
) -> None:
    """fsck.erofs reads every byte of every file from the segments."""
    image = open_image(name, segment_size)
    made = filled(image, make_store)
    boot = tmp_path / "boot"
    boot.write_bytes(localized(image))
    devices = [f"--device={made.path(n)}" for n in range(len(image.map.segments))]
    done = subprocess.run(
        [oracles.fsck_erofs, "--extract=" + str(tmp_path / "tree"), "--no-preserve", *devices, boot],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<E>" not in done.stdout + done.stderr


MOUNT = """
import sys
from nydus_erofs.fscache.kernel.mount import mount_erofs
bootstrap, folder, target, *devices = sys.argv[1:]
mount_erofs(bootstrap, folder, devices, target)
"""


def filled(image: OpenImage, make_store: MakeStore) -> MadeStore:
    made = make_store(image)
    for number in range(len(image.map.segments)):
        made.fill(number)
    return made


@pytest.mark.root
@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("segment_size", [256 << 10, 1 << 20])
def test_the_kernel_accepts_it(
    name: str, segment_size: int, open_image: OpenImages, make_store: MakeStore, nydus_images: Path, tmp_path: Path
) -> None:
    """Mounted complete and with nobody serving; every name, attribute and byte is as expected."""
    image = open_image(name, segment_size)
    made = filled(image, make_store)
    boot, target = tmp_path / "boot", tmp_path / "mnt"
    boot.write_bytes(localized(image))
    target.mkdir()
    names = [segment_name(n) for n in range(len(image.map.segments))]
    command = [sys.executable, "-c", MOUNT, str(boot), str(made.folder), str(target), *names]
    subprocess.run(command, check=True, timeout=60)
    try:
        compare_expected(nydus_images / "expected.json", target)
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True, timeout=20)


def test_every_field_of_the_tables(nydus_images: Path) -> None:
    """Each 2, 4 and 8 bytes of superblocks, device slot and blob table, set to each value that may do harm."""
    folder = nydus_images / "batch"
    boot = (folder / "boot").read_bytes()
    blobs = {BlobId(path.name): path.read_bytes() for path in (folder / "blobs").iterdir()}
    (table,) = struct.unpack_from("<Q", boot, 1152 + 8)
    refused = tried = 0
    for start, end in ((1024, 1216), (1408, 1536), (table + 64, table + 256)):
        for form in ("<H", "<I", "<Q"):
            size = struct.calcsize(form)
            for at in range(start, end, size):
                for value in NUMBERS[:: 2 if form == "<I" else 4]:
                    broken = bytearray(boot)
                    struct.pack_into(form, broken, at, value % (1 << 8 * size))
                    tried += 1
                    try:
                        prepared(Sample(bytes(broken), blobs, {}))
                    except NydusErofsError:
                        refused += 1
    assert refused > tried // 10


@pytest.mark.parametrize(
    ("folder", "text"),
    [("tarfs", "512-byte"), ("encrypt", "encrypted blobs"), ("zran", "zran")],
)
def test_what_is_not_supported_is_named(folder: str, text: str, nydus_images: Path) -> None:
    boot = (nydus_images / folder / "boot").read_bytes()
    blobs = [path.read_bytes() for path in (nydus_images / folder / "blobs").iterdir()]
    with pytest.raises(UnsupportedError, match=text):
        head = read_head(BufferSource(boot))
        localize.read_blob_maps(boot, head, lambda _: BufferSource(blobs[0]), 1 << 20)


@pytest.mark.parametrize("raw", [b"", b"x", bytes(1023), bytes(4096), bytes(1 << 20), b"\x7fELF" * 4096])
def test_something_else(raw: bytes) -> None:
    with pytest.raises(FormatError):
        read_head(BufferSource(raw))
