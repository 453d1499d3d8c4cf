#!/usr/bin/env python3
"""Figures of the cachefiles engine: what mounting costs, what is asked and fetched, what a hard reset leaves.

Builds three images, boots each kernel, prints JSON; runs itself in the guest for each part. Emulated machines are
slow: seconds compare only with each other.
"""

from __future__ import annotations

import environment  # noqa: F401

# isort: split
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HOME = Path(__file__).resolve().parents[2]
os.environ.setdefault("NYDUS_EROFS_PATIENCE", "200")

# isort: split
from tests.kit.engines import CACHEFILES  # noqa: E402
from tests.kit.reading import compare, read  # noqa: E402
from tests.kit.service import Service  # noqa: E402
from tests.kit.waiting import wait_for  # noqa: E402

_SHARE = Path("/share")
_MANY, _FEW = 100_000, 1000  # files


def make_images(folder: Path) -> None:
    """many and few (small files), data (a few large ones), each NAME.meta and its blob, and data's tree."""
    rng = random.Random(4)
    contents = [rng.randbytes(rng.randrange(1, 4000)) for _ in range(64)]
    for name, count in (("many", _MANY), ("few", _FEW)):
        tree = folder / "trees" / name
        for number in range(count):
            path = tree / f"{number // 5000:03d}" / f"{number // 100 % 50:02d}"
            if number % 100 == 0:
                path.mkdir(parents=True)
            (path / f"file-{number:06d}.txt").write_bytes(contents[number % 64])
    tree = folder / "trees/data"
    tree.mkdir()
    for name, size in (("f1M", 1 << 20), ("f12M", 12 << 20), *((f"s{n}", 9000) for n in range(200))):
        (tree / name).write_bytes(
            b"".join(rng.randbytes(16384) + bytes(16384) for _ in range(size // 32768 + 1))[:size]
        )
    (folder / "images").mkdir()
    for name in ("many", "few", "data"):
        command = [sys.executable, "-m", "nydus_erofs", "build", folder / "trees" / name, "-o", folder / "images"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(tree, folder / "data")


class Guest:
    """A service of its own on the scratch disk, with images by any number of names, each cold."""

    def __init__(self, work: Path, *, prefetch: bool = False) -> None:
        self.images = work / "images"
        if not self.images.exists():
            work.mkdir(exist_ok=True)
            shutil.copytree(_SHARE / "images", self.images)
        self.service = Service(work, CACHEFILES, blob_dirs=[str(self.images)], prefetch=prefetch)
        self.service.start()

    def mount(self, image: str, name: str) -> tuple[Path, float]:
        """Mount an image by a name of its own: nothing of it is cached. Seconds it took."""
        if not (self.images / f"{name}.meta").exists():
            os.link(self.images / f"{image}.meta", self.images / f"{name}.meta")
        target = self.service.work / f"on-{name}"
        target.mkdir(exist_ok=True)
        started = time.monotonic()
        subprocess.run(["mount", "-t", "erofs", "-o", f"fsid={name}", "none", target], check=True, timeout=300)
        return target, time.monotonic() - started

    def seen(self, target: Path) -> dict[str, int]:
        status = self.service.status(target)
        return {"reads": status["events"], "bytes": self.service.fetched(target)}


def measure_mounts() -> dict[str, Any]:
    """Seconds of mount(8), and what was fetched before it returned, against the bootstrap's size."""
    guest, out = Guest(Path("/scratch/figures")), {}
    guest.mount("few", "warm-up")
    for image in ("few", "many"):
        times = []
        for turn in range(3):
            target, seconds = guest.mount(image, f"{image}{turn}")
            first = guest.service.status(target)
            times.append(round(seconds, 3))
            out[image] = {
                "bootstrap": (guest.images / f"{image}.meta").stat().st_size,
                "reads": first["events"],
                "bytes_on_demand_at_return": first["bytes_on_demand"],
                "bytes_in_background_meanwhile": first["bytes_prefetched"],
            }
            # Its metadata, and the plan of its blob: they would slow down the next turn.
            size = out[image]["bootstrap"]
            wait_for("the metadata", lambda t=target, s=size: guest.seen(t)["bytes"] >= s, 200)
            wait_for("the plan", lambda t=target, s=size: guest.service.status(t)["segments"] > -(-s >> 17), 200)
        out[image]["seconds"] = times
    guest.service.close()
    return out


def _whole(target: Path) -> None:
    subprocess.run(["sh", "-c", "cat * >/dev/null"], cwd=target, check=True, timeout=300)


def _random_reads(target: Path) -> None:
    rng = random.Random(9)
    with open(target / "f12M", "rb", 0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(200):
            os.pread(file.fileno(), 4096, rng.randrange((12 << 20) // 4096) * 4096)


def _cat(name: str) -> Callable[[Path], None]:
    return lambda target: (
        subprocess.run(["cat", target / name], stdout=subprocess.DEVNULL, check=True, timeout=300) and None
    )


CASES = {"1 MiB file": _cat("f1M"), "12 MiB file": _cat("f12M"), "200 random 4 KiB": _random_reads, "all": _whole}


def measure_reads(prefetch: bool) -> dict[str, Any]:
    """READ requests and bytes (uncompressed) for each way to read, mounting left out."""
    guest, out = Guest(Path("/scratch/figures"), prefetch=prefetch), {}
    for number, (case, read_it) in enumerate(CASES.items()):
        target, _ = guest.mount("data", f"data{number}{prefetch}")
        before = guest.seen(target)
        if prefetch:
            guest.service.complete(target)
            before["reads"] = guest.seen(target)["reads"]
        started = time.monotonic()
        read_it(target)
        seconds = time.monotonic() - started
        time.sleep(1)
        after = guest.seen(target)
        out[case] = {key: after[key] - before[key] for key in after} | {"seconds": round(seconds, 2)}
    guest.service.close()
    return out


def fill_and_crash() -> None:
    """Two images half fetched, one of them for the second time; then the power goes."""
    guest = Guest(Path("/scratch/crash"))
    target, _ = guest.mount("data", "again")
    read(target / "f1M")
    subprocess.run(["umount", target], check=True)
    targets = [guest.mount("data", name)[0] for name in ("fresh", "again")]
    readers = []
    for target in targets:
        readers += [guest.service.reader("loop", _SHARE / "data", target, "/nowhere", seed) for seed in range(2)]
        wait_for("some of it", lambda t=target: guest.service.fetched(t) > 2 << 20)
    print(json.dumps({t.name: guest.seen(t)["bytes"] for t in targets}), len(readers), flush=True)
    subprocess.run(["sync", "/share"], check=False)
    Path("/proc/sysrq-trigger").write_text("b")
    time.sleep(60)


def compare_after_crash() -> dict[str, Any]:
    guest, out = Guest(Path("/scratch/crash")), {}
    for name in ("again", "fresh"):
        target, _ = guest.mount("data", name)
        compare(_SHARE / "data", target)
        status = guest.service.status(target)
        out[name] = {
            "equal": True,
            "cached_before": status["bytes_cached_before"],
            "fetched": guest.seen(target)["bytes"],
        }
    guest.service.close()
    return out


PARTS: dict[str, Callable[[], Any]] = {
    "mounts": measure_mounts,
    "without prefetch": lambda: measure_reads(False),
    "with prefetch": lambda: measure_reads(True),
}


def run_guest(kernel: str, share: Path, *options: str, part: str) -> Any:
    words = [_HOME / "vm/run", "--timeout", "900", "--share", share, *options, kernel, "--", "sh", "-c"]
    script = f"exec python {Path(__file__).resolve()} --part '{part}'"
    variables = {**os.environ, "NYDUS_EROFS_PYTHON": sys.executable}
    done = subprocess.run([*words, script], stdout=subprocess.PIPE, text=True, env=variables, check=False)
    if part == "crash":
        return done.stdout.strip()
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else f"exit code {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", default=["6.1", "6.12"], help="of vm/kernels.py")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in the guest
    arguments = parser.parse_args()
    if arguments.part:
        if arguments.part == "crash":
            fill_and_crash()
        print(json.dumps(compare_after_crash() if arguments.part == "compare" else PARTS[arguments.part]()))
        return 0
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        share = Path(folder)
        make_images(share)
        for kernel in arguments.kernels:
            for part in PARTS:
                print(json.dumps({kernel: {part: run_guest(kernel, share, part=part)}}), flush=True)
            disk = ["--disk", str(share / f"{kernel}.img")]
            at_reset = run_guest(kernel, share, *disk, part="crash")
            after = run_guest(kernel, share, *disk, part="compare")
            print(json.dumps({kernel: {"hard reset": {"fetched before": at_reset, "after": after}}}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
