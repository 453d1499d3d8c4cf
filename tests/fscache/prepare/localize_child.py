"""Breaks bootstraps at random and prepares them. Run by test_localize.py with limits; not a test itself.

    localize_child.py BREAKER BOOTSTRAP BLOB SEED COUNT

BREAKER is a Python file with ``broken(data, rng)``. What ``prepare`` does with a bootstrap (localize, make plans) and
what keeper and worker read of that must give NydusErofsError or a result, in bounded time and memory.
"""

import io
import os
import random
import resource
import runpy
import signal
import sys
import traceback
from pathlib import Path

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.errors import NydusErofsError
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.segments import segment_size_for
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.state.plan import Plan

MEMORY = 1 << 30  # address space
SECONDS = 10  # for one bootstrap
SEGMENT = 1 << 20


def prepare(boot: bytes, blob: bytes) -> None:
    head = read_head(BufferSource(boot))
    size = segment_size_for(sum(blob.entry.uncompressed_size for blob in head.blobs), SEGMENT)
    maps = localize.read_blob_maps(boot, head, lambda _: BufferSource(blob), size)
    out = io.BytesIO()
    localize.write_localized(boot, head, maps, out)
    # Nothing of it is longer than it was, but for the device table.
    assert out.tell() <= len(boot) + 128 * sum(len(m.segments) for m in maps) + 8192
    for blob_map in maps:
        fd = os.memfd_create("plan")
        with open(fd, "wb", closefd=False) as file:
            file.write(pack_plan(blob_map))
        check(Plan(Fd(fd)), len(blob), blob_map.entry.chunk_size)


def check(plan: Plan, blob_size: int, chunk_size: int) -> None:
    """What the worker relies on: segments tile the space, chunks tile their segments, units lie in the blob."""
    at = 0
    for number, segment in enumerate(plan.segments):
        assert segment.start == at, (number, segment, at)
        at += segment.size
        assert segment.size % 4096 == 0
        position = segment.start
        for chunk in plan.chunks(number):
            assert chunk.uncompressed_offset == position
            assert 0 < chunk.uncompressed_size <= chunk_size
            if chunk.unit_size:
                assert chunk.unit_offset + chunk.uncompressed_size <= chunk.unit_size
            assert chunk.unit_size <= chunk_size
            position += -(-chunk.uncompressed_size // 4096) * 4096
        assert position == segment.start + segment.size, (number, segment, position)


def main(breaker: str, boot_path: str, blob_path: str, seed: str, count: str) -> None:
    broken = runpy.run_path(breaker)["broken"]
    boot, blob = Path(boot_path).read_bytes(), Path(blob_path).read_bytes()
    prepare(boot, blob)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    refused = 0
    for number in range(int(seed), int(seed) + int(count)):
        rng = random.Random(number)
        bad_boot, bad_blob = boot, blob
        if rng.random() < 0.8:
            bad_boot = broken(boot, rng)
        else:
            # The end of the blob, where the chunk-info array is, is what counts here.
            start = max(0, len(blob) - 16384)
            bad_blob = blob[:start] + broken(blob[start:], rng)
        signal.alarm(SECONDS)
        try:
            prepare(bad_boot, bad_blob)
        except NydusErofsError as error:
            assert "\n" not in error.message
            refused += 1
        except BaseException:
            traceback.print_exc()
            sys.exit(f"seed {number}")
        signal.alarm(0)
    print(f"{count} bootstraps, {refused} refused")


def too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, too_slow)
    main(*sys.argv[1:])
