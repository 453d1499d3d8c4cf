"""Breaks images at random and reads them.  Run by test_fuzz.py in a process with limits; not a test itself.

    fuzz_child.py BOOTSTRAP BLOB SEED COUNT

Any exception but a NydusErofsError, more memory than the limit or an image that takes too long ends it with
the seed of the image, from which that image can be made again.
"""

import random
import resource
import signal
import struct
import sys
import traceback
from contextlib import suppress
from itertools import islice
from pathlib import Path

from nydus_erofs.erofs.check import MAX_FINDINGS, examine
from nydus_erofs.erofs.errors import NydusErofsError, UnsupportedError
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.source import BufferSource

MEMORY = 768 << 20  # address space; the interpreter with its libraries takes some 250 MB of it
SECONDS = 10  # for one image
VALUES = [0, 1, 2, 0xB, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def broken(data: bytes, rng: random.Random) -> bytes:
    """`data` after some of what may happen to it."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 30])):
        # Headers and tables are a small part of the file, and the most interesting one.
        span = rng.choice([1408, 1536, 8192, len(out), len(out)])
        at = rng.randrange(max(1, min(span, len(out))))
        match rng.choice(["flip", "flip", "number", "number", "number", "copy", "noise", "cut"]):
            case "flip":
                out[at] ^= 1 << rng.randrange(8)
            case "number":
                form = rng.choice(["<B", "<H", "<I", "<Q"])
                size = struct.calcsize(form)
                at -= at % size
                if at + size <= len(out):
                    (old,) = struct.unpack_from(form, out, at)
                    value = rng.choice([*VALUES, old + 1, old - 1, old * 2, old + 4096, rng.getrandbits(64)])
                    struct.pack_into(form, out, at, value % (1 << 8 * size))
            case "copy":
                length = rng.choice([12, 32, 64, 4096])
                source = rng.randrange(len(out))
                piece = out[source : source + length]
                out[at : at + len(piece)] = piece
            case "noise":
                length = rng.choice([4, 32, 4096])
                out[at : at + length] = rng.randbytes(min(length, len(out) - at))
            case "cut":
                if rng.random() < 0.2:
                    del out[rng.choice([at, at - at % 4096]) :]
                    if not out:
                        return b""
    return bytes(out)


def read(boot: bytes, blob: bytes) -> None:
    """Everything the reader offers."""
    bootstrap = Bootstrap(BufferSource(boot))
    image = Image(bootstrap, lambda _: BufferSource(blob))
    for path, inode in bootstrap.walk():
        try:
            bootstrap.xattrs(inode.nid)
            if inode.is_symlink:
                bootstrap.readlink(inode.nid)
            elif inode.is_regular:
                for _ in islice(image.stream(inode.nid), 4):
                    pass
                image.read_at(inode.nid, inode.size // 2, 100)
            if path.endswith(b"1"):
                bootstrap.lookup(path)
        except NydusErofsError:
            pass
    list(islice(bootstrap.prefetch_nids(), 100))


def main(boot_path: str, blob_path: str, seed: int, count: int) -> None:
    boot, blob = Path(boot_path).read_bytes(), Path(blob_path).read_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = 0
    for number in range(seed, seed + count):
        rng = random.Random(number)
        bad_boot, bad_blob = boot, blob
        if rng.random() < 0.8:
            bad_boot = broken(boot, rng)
        else:
            bad_blob = broken(blob, rng)
        signal.alarm(SECONDS)
        try:
            with suppress(NydusErofsError):
                read(bad_boot, bad_blob)
            try:
                report = examine(BufferSource(bad_boot), lambda _, bad=bad_blob: BufferSource(bad))
                assert len(report.findings) <= MAX_FINDINGS + 1
                found += bool(report.findings)
            except UnsupportedError:
                found += 1
        except BaseException:
            traceback.print_exc()
            sys.exit(f"seed {number}")
        signal.alarm(0)
    print(f"{count} images, {found} found broken")


def too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, too_slow)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
