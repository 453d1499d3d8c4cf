#!/usr/bin/env python3
"""Many images in one service, on a host whose limits nobody changed (Linux: 128 fanotify groups).

  mount           of images never seen, then all of them again: in the service, and as a whole command
  read            one file of each image that nobody has fetched, compared
  memory          of keeper, worker and verifier, for each image mounted and read
  status          as a whole command, with --json
  dead backend    how long readers of unfetched local files wait while others wait for images whose server accepts and
                  says nothing (or sends a byte now and then), against the same without
  restart         keeper killed with SIGKILL: seconds from starting a new one until each image serves a file that
                  nobody has fetched
  umount, stop    one after the other; SIGTERM with all of them mounted

Needs root. What has an aim shows it; the exit code is 1 if one is missed.
"""

import environment

# isort: split
import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeVar

import measure

from nydus_erofs.builder.compose import build
from nydus_erofs.builder.options import BuildOptions
from tests.kit.engines import FANOTIFY
from tests.kit.processes import pss
from tests.kit.servers.files import FileServer
from tests.kit.service import Service

SIZES = [64 << 10, 64 << 10, 1 << 20, 64 << 10]  # bytes of an image's files: chunks, in three segments of 1 MiB
BY_COMMAND = 5  # images, first and last, that are mounted by the command
ENDS = 20  # mounts, first and last, that are compared; where others use the machine too, look at CPU time
PROBES = 200  # reads whose latency is compared
WAITING = [1 << 20] * 12  # bytes that readers of a dead backend wait for, each a segment: more than there are threads
TIMEOUT = 300  # seconds for what a child does
DRIP = 0.5  # seconds between two bytes of a dripping server

AIMS = {
    "mount, s, last / first": 1.2,
    "keeper KB an image": 60.0,
    "status --json s": 0.3,
    "killed keeper serves all s": 2.0,
    "silent backend: local reads + ms": 5.0,
    "silent backend: slowest local read + ms": 50.0,
    "dripping backend: local reads + ms": 5.0,
    "dripping backend: slowest local read + ms": 50.0,
}

T = TypeVar("T")


class Image(NamedTuple):
    """A bootstrap with its blob beside it, and the SHA-256 of each file."""

    bootstrap: Path
    digests: list[bytes]


class _Quiet:
    def update(self, *, files: int, done: int, found: int, walked: bool) -> None:
        pass


def make_images(folder: Path, count: int, sizes: Sequence[int] = SIZES) -> list[Image]:
    """Small ones, each of a blob of its own, with a file of each size; other folders get other bytes."""
    images = []
    for number in range(count):
        tree, out = folder / "tree", folder / f"{number}"
        out.mkdir(parents=True)
        tree.mkdir()
        rng = random.Random(f"{folder.name} {number}")
        contents = [rng.randbytes(4096) * (size // 4096) for size in sizes]
        for name, data in enumerate(contents):
            (tree / f"{name}").write_bytes(data)
        built = build(BuildOptions(source=tree, output_dir=out, workers=1), _Quiet())
        images.append(Image(built.bootstrap, [hashlib.sha256(data).digest() for data in contents]))
        shutil.rmtree(tree)
    return images


def in_child(call: Callable[[], T]) -> T:
    """What ``call`` gives, in a child: a read that nobody answers can only be killed."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(call()))
    child.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT):
            raise RuntimeError(f"reads hang: not done within {TIMEOUT} s")
        return ours.recv()
    finally:
        child.kill()
        child.join()


def timed(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


class Many:
    """The service, and what was measured of it."""

    def __init__(self, work: Path, images: Sequence[Image], program: str) -> None:
        self.images, self.program = images, program
        self.service = Service(work, FANOTIFY)
        self.targets = [self.service.target() for _ in images]
        self.results: dict[str, float] = {}

    def note(self, figure: str, value: float) -> None:
        self.results[figure] = value
        print(f"{figure} {value:.4g}", file=sys.stderr, flush=True)

    def command(self, verb: str, *arguments: object) -> None:
        command = [self.program, verb, *map(str, arguments), "--run-dir", str(self.service.run)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

    def start(self) -> float:
        return timed(self.service.start)

    def mount_all(self, figure: str) -> None:
        """The first and the last by the command, all others through the socket, as the command does it."""
        seconds, cpu = [], [self.cpu()]
        for number, (image, target) in enumerate(zip(self.images, self.targets, strict=True), 1):
            if BY_COMMAND < number <= len(self.images) - BY_COMMAND:
                where = {"image": str(image.bootstrap), "target": str(target), "prefetch": False}
                seconds.append(timed(lambda: self.service.request("mount", **where)))  # noqa: B023
            else:
                seconds.append(timed(lambda: self.command("mount", image.bootstrap, target, "--no-prefetch")))  # noqa: B023
            cpu.append(self.cpu())
            if number % 100 == 0:
                print(f"{figure}: {number}, {median(seconds[-100:]):.3f} s each", file=sys.stderr, flush=True)
        inside, spent = seconds[BY_COMMAND:-BY_COMMAND], cpu[BY_COMMAND:-BY_COMMAND]
        self.note(f"{figure}, median s", median(inside))
        self.note_ends(f"{figure}, s", median(inside[:ENDS]), median(inside[-ENDS:]))
        self.note_ends(f"{figure}, CPU s", (spent[ENDS] - spent[0]) / ENDS, (spent[-1] - spent[-1 - ENDS]) / ENDS)
        self.note_ends(f"{figure} command, s", median(seconds[:BY_COMMAND]), median(seconds[-BY_COMMAND:]))

    def note_ends(self, figure: str, first: float, last: float) -> None:
        self.note(f"{figure}, first", first)
        self.note(f"{figure}, last", last)
        self.note(f"{figure}, last / first", last / first)

    def cpu(self) -> float:
        """Seconds of CPU time that the service has used, with all children that it waited for."""
        assert self.service.keeper is not None
        fields = Path(f"/proc/{self.service.keeper.pid}/stat").read_text().rpartition(") ")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def read(self, number: int, name: int) -> float:
        """Seconds that a file takes that has to be right."""
        path = self.targets[number] / f"{name}"
        started = time.monotonic()
        data = path.read_bytes()
        took = time.monotonic() - started
        if hashlib.sha256(data).digest() != self.images[number].digests[name]:
            raise RuntimeError(f"{path}: wrong bytes")
        return took

    def read_each(self, name: int, numbers: Sequence[int]) -> list[float]:
        return in_child(lambda: [self.read(number, name) for number in numbers])

    def memory(self) -> dict[str, int]:
        """Bytes of each process that stays."""
        assert self.service.keeper is not None
        pids = {"keeper": self.service.keeper.pid, "worker": self.service.worker, "verifier": self.service.verifier}
        return {process: pss(pid) for process, pid in pids.items()}

    def note_growth(self, what: str, before: dict[str, int], per: int) -> None:
        after = self.memory()
        for process, now in after.items():
            self.note(f"{process} KB an image{what}", (now - before[process]) / per / 1024)
            self.note(f"{process} MB{what}", now / (1 << 20))
        self.note(f"all processes MB{what}", sum(after.values()) / (1 << 20))

    # --- a backend that is dead ---

    def local_reads(self, name: int, numbers: Sequence[int]) -> tuple[float, float, float]:
        """Milliseconds of reads of unfetched files, one after the other: median, that of the 99th of 100, slowest."""
        took = [1000 * seconds for seconds in self.read_each(name, numbers)]
        return median(took), quantiles(took, n=100)[98], max(took)

    def with_dead_backend(self, kind: str, numbers: Sequence[int], dead: int) -> None:
        """Local reads while ``dead`` images whose backend does not answer have readers, against those without."""
        here = len(numbers) // 2
        folder = self.service.work / kind
        remote = make_images(folder, dead, WAITING)
        for image in remote:  # their blobs are for the server alone
            for path in image.bootstrap.parent.iterdir():
                if path != image.bootstrap:
                    path.rename(folder / path.name)
        before = self.local_reads(1, numbers[:here])
        with contextlib.ExitStack() as cleanup:
            server = FileServer(folder)
            cleanup.callback(server.close)
            config = folder / "backend.json"
            config.write_text(json.dumps({"type": "http-proxy", "addr": f"http://127.0.0.1:{server.port}"}))
            targets = [self.mount_remote(image, config, cleanup) for image in remote]
            if kind == "dripping":
                server.drip = DRIP
            else:
                server.gate.clear()
                cleanup.callback(server.gate.set)
            for path in [target / f"{name}" for target in targets for name in range(len(WAITING))]:
                reader = subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                cleanup.callback(reader.wait)
                cleanup.callback(reader.kill)
            time.sleep(1)
            after = self.local_reads(1, numbers[here:])
        for which, one, other in zip(("median", "99 %", "slowest"), before, after, strict=True):
            self.note(f"{kind} backend: local reads {which} ms, without", one)
            self.note(f"{kind} backend: local reads {which} ms, with", other)
        more = [b - a for a, b in zip(before, after, strict=True)]
        self.note(f"{kind} backend: local reads + ms", max(more[:2]))
        self.note(f"{kind} backend: slowest local read + ms", more[2])

    def mount_remote(self, image: Image, config: Path, cleanup: contextlib.ExitStack) -> Path:
        """Mount an image that has its blob from a server; its own is not beside it."""
        target = self.service.target()
        where = {"image": str(image.bootstrap), "target": str(target), "backend_file": str(config)}
        self.service.request("mount", prefetch=False, **where)
        cleanup.callback(subprocess.run, ["umount", "-l", target], check=True, timeout=TIMEOUT)
        return target

    # --- a keeper that is killed ---

    def restart(self, name: int) -> None:
        """Kill the keeper, start another, and wait until each image serves a file that nobody has fetched."""
        keeper = self.service.keeper
        assert keeper is not None
        keeper.kill()
        keeper.wait()
        started = time.monotonic()
        self.service.spawn()
        served = in_child(lambda: self.until_served(name))
        self.note("killed keeper serves first s", min(served) - started)
        self.note("killed keeper serves all s", max(served) - started)

    def until_served(self, name: int) -> list[float]:
        def serve(number: int) -> float:
            while True:
                try:
                    self.read(number, name)
                except OSError:
                    time.sleep(0.01)
                else:
                    return time.monotonic()

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(serve, range(len(self.images))))

    def run(self, dead: int) -> None:
        everyone = range(len(self.images))
        self.note("ready s", self.start())
        before = self.memory()
        self.mount_all("mount")
        self.note_growth("", before, len(self.images))
        took = self.read_each(0, everyone)
        self.note("read of an unfetched file, median ms", 1000 * median(took))
        self.note_growth(", read", before, len(self.images))
        self.note("status in service s", median(timed(self.service.status) for _ in range(5)))
        self.note("status --json s", median(timed(lambda: self.command("status", "--json")) for _ in range(5)))
        shuffled = random.Random(1).sample(everyone, min(4 * PROBES, len(self.images)))
        middle = len(shuffled) // 2
        self.with_dead_backend("silent", shuffled[:middle], dead)
        self.with_dead_backend("dripping", shuffled[middle:], dead)
        self.restart(3)
        self.note_growth(", restarted", before, len(self.images))
        seconds = [timed(lambda: self.service.umount(target)) for target in self.targets]  # noqa: B023
        self.note("umount, median s", median(seconds))
        self.note("umount of all s", sum(seconds))
        self.mount_all("mount again")
        self.note("SIGTERM with all mounted s", timed(self.stop))

    def stop(self) -> None:
        if code := self.service.stop():
            raise RuntimeError(f"the service ended with {code}")


def table(results: dict[str, float]) -> str:
    rows = [["figure", "value", "aim", ""]]
    for figure, value in results.items():
        aim = AIMS.get(figure)
        shown = [] if aim is None else [f"<= {aim:g}", "" if value <= aim else "MISSED"]
        rows.append([figure, f"{value:.4g}", *(shown or ["", ""])])
    return measure.table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="[1000]")
    parser.add_argument("--dead", type=int, default=1, metavar="N", help="images whose backend does not answer [1]")
    parser.add_argument("--nydus-erofs", default=environment.PROGRAM, metavar="PROGRAM")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for images and cache (default: TMPDIR or /var/tmp)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to FILE")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("needs root: it mounts")
    if arguments.images < 2 * (BY_COMMAND + ENDS):
        parser.error(f"--images: at least {2 * (BY_COMMAND + ENDS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    top = arguments.work or Path(os.environ.get("TMPDIR", "/var/tmp"))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="many-bench.", dir=top) as folder:
        work = Path(folder)
        print(f"making {arguments.images} images", file=sys.stderr, flush=True)
        bench = Many(work, make_images(work / "images", arguments.images), arguments.nydus_erofs)
        try:
            bench.run(arguments.dead)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            sys.exit(f"many_bench: error: {error}")
        finally:
            bench.service.close()
        results = bench.results
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(any(value > AIMS[figure] for figure, value in results.items() if figure in AIMS))


if __name__ == "__main__":
    main()
