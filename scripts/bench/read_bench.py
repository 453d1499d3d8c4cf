#!/usr/bin/env python3
"""Mount and read one image through nydus-erofs, through nydusd's FUSE, and with nobody in between.

For each server, as often as --rounds says and in turns:

  ready           from starting the server to its answering
  mount           first: nothing known of the image; again: mounted before
  first read      tar of everything, nothing local, no prefetch; the blob itself is in the page cache
  second read     all local, page cache dropped
  third read      all in the page cache
  prefetch        nothing local: mount with prefetch, and read everything at once
  small files     nothing local: 300 random files of at most 64 KiB, one after the other
  memory          largest sum of the server's processes during the first read, and after the third

nydusd is taken from --nydusd (may be given again), NYDUSD or PATH.  Needs root; drops the page cache of the
whole machine.  Seconds of two machines say nothing: look at the ratios.
"""

import environment

# isort: split
import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import measure
import servers

SMALL_FILES, SMALL_SIZE = 300, 64 << 10
TIMEOUT = 1800  # seconds for one read of everything


@dataclass
class Bench:
    """One tree, one image of it, and what was measured: server -> figure -> values of all rounds."""

    tree: Path
    image: Path
    small: list[bytes]
    validate: bool
    results: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    _lengths: dict[str, int] = field(default_factory=dict)

    def note(self, server: servers.Server, figure: str, value: float) -> None:
        self.results.setdefault(server.name, {}).setdefault(figure, []).append(value)
        print(f"{server.name}: {figure} {value:.3f}", file=sys.stderr)

    def all_of(self, server: servers.Server) -> None:
        """One round; the reads of everything come last, so that all is local when it ends."""
        with self._fresh(server, prefetch=False, figure="first mount s"):
            self.note(server, "small files s", self._read_small(server))
        with self._fresh(server, prefetch=True):
            self.note(server, "read with prefetch s", self._read_all(server))
        with self._fresh(server, prefetch=False) as pid:
            watch = measure.Watch(pid)
            self.note(server, "first read s", self._read_all(server))
            self.note(server, "peak MB", watch.stop() / 1e6)
            drop_caches()
            self.note(server, "second read s", self._read_all(server))
            self.note(server, "third read s", self._read_all(server))
            self.note(server, "MB afterwards", measure.memory(pid) / 1e6)
        with self._running(server, prefetch=False, figure="mount again s"):
            if isinstance(server, servers.Ours):
                server.umount()
                self.note(server, "mount again by command s", server.mount_by_command())

    def local_only(self, server: servers.Server) -> None:
        """For one that has everything from the start."""
        with self._running(server, prefetch=False):
            drop_caches()
            self.note(server, "second read s", self._read_all(server))
            self.note(server, "third read s", self._read_all(server))

    @contextlib.contextmanager
    def _fresh(self, server: servers.Server, *, prefetch: bool, figure: str = "") -> Iterator[int]:
        server.forget()
        drop_caches()
        for blob in filter(Path.is_file, self.image.parent.iterdir()):  # a fast backend, the same for everyone
            read_file(blob)
        with self._running(server, prefetch=prefetch, figure=figure) as pid:
            yield pid

    @contextlib.contextmanager
    def _running(self, server: servers.Server, *, prefetch: bool, figure: str = "") -> Iterator[int]:
        """Started and mounted; gives the process id of the server, or 0."""
        try:
            ready = server.start()
            if figure and ready:
                self.note(server, "ready s", ready)
            took = server.mount(prefetch=prefetch)
            if figure:
                self.note(server, figure, took)
            yield server.process.pid if server.process else 0
            server.umount()
        finally:
            server.clean_up()

    def _read_all(self, server: servers.Server) -> float:
        # Through a pipe: GNU tar does not read files at all when it writes to /dev/null.
        return self._timed("tar -cf - .", server)

    def _read_small(self, server: servers.Server) -> float:
        listing = server.work / "small"
        listing.write_bytes(b"\0".join(self.small))
        return self._timed(f"xargs -0 cat <{listing}", server)

    def _timed(self, command: str, server: servers.Server) -> float:
        """Run in a child: a reader of a mount whose server hangs cannot be killed from within.

        What is read must have the same number of bytes from every server.
        """
        started = time.monotonic()
        pipe = ["bash", "-o", "pipefail", "-c", f"{command} | wc -c"]
        done = subprocess.run(pipe, cwd=server.mountpoint, check=True, timeout=TIMEOUT, stdout=subprocess.PIPE)
        took = time.monotonic() - started
        kind, length = command[:3], int(done.stdout)
        if self._lengths.setdefault(kind, length) != length:
            raise RuntimeError(f"{server.name}: {command} gave {length} bytes, not {self._lengths[kind]} as before")
        return took


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def read_file(path: Path) -> None:
    with open(path, "rb", 0) as file:
        while file.read(1 << 22):
            pass


def pick_small(tree: Path) -> list[bytes]:
    """The same files in every run of every machine, relative to the tree."""
    found = []
    for folder, subfolders, names in os.walk(os.fsencode(tree)):
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path) and 0 < os.path.getsize(path) <= SMALL_SIZE:
                found.append(os.path.relpath(path, os.fsencode(tree)))
    return random.Random(1).sample(found, min(SMALL_FILES, len(found)))


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """One line a figure, one column a server, and our median divided by each other's."""
    names = list(results)
    figures = list(dict.fromkeys(figure for result in results.values() for figure in result))
    rows = [["figure", *names, *(f"{names[0]} / {name}" for name in names[1:])]]
    for figure in figures:
        values = [median(results[name][figure]) if figure in results[name] else None for name in names]
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        ratios = [f"{values[0] / value:.2f}" if values[0] is not None and value else "" for value in values[1:]]
        rows.append([figure, *shown, *ratios])
    return measure.table(rows)


def build(program: str, tree: Path, out: Path) -> Path:
    """The image all servers serve; returns the bootstrap's path."""
    measure.run([program, "build", str(tree), "-o", str(out)])
    (bootstrap,) = out.glob("*.meta")
    return bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", metavar="TREE", type=Path, help="for example made by make_tree.py")
    parser.add_argument(
        "--image", type=Path, metavar="BOOTSTRAP", help="of TREE, with its blob beside (default: build)"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--nydus-erofs", default=environment.PROGRAM, metavar="PROGRAM")
    parser.add_argument("--nydusd", action="append", metavar="[LABEL=]PROGRAM", help="may be given again")
    parser.add_argument("--validate", action="store_true", help="let nydusd verify digests too; we always do")
    parser.add_argument("--without", action="append", default=[], choices=["ours", "nydusd", "complete"])
    parser.add_argument("--read-ahead", type=int, metavar="KIB", help="of the unmarked mount (default: the kernel's)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for image and caches (default: TMPDIR or /var/tmp)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to FILE")
    arguments = parser.parse_args()
    if not arguments.tree.is_dir():
        parser.error(f"{arguments.tree} is not a directory")
    if os.geteuid():
        parser.error("needs root: it mounts")
    measure.allow_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    top = arguments.work or Path(os.environ.get("TMPDIR", "/var/tmp"))
    with tempfile.TemporaryDirectory(prefix="read-bench.", dir=top) as name:
        work = Path(name)
        image = arguments.image
        if image is None:
            (work / "image").mkdir()
            image = build(arguments.nydus_erofs, arguments.tree, work / "image")
        bench = Bench(arguments.tree, image.absolute(), pick_small(arguments.tree), arguments.validate)
        steps = contenders(arguments, work, bench)
        try:
            for _ in range(arguments.rounds):
                for step, server in steps:
                    step(server)
        except (RuntimeError, subprocess.SubprocessError) as error:
            sys.exit(f"read_bench: error: {error}")
        finally:
            for _, server in steps:
                server.clean_up()
    print(table(bench.results))
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.results, indent=1) + "\n")


def contenders(
    arguments: argparse.Namespace, work: Path, bench: Bench
) -> list[tuple[Callable[[servers.Server], None], servers.Server]]:
    steps: list[tuple[Callable[[servers.Server], None], servers.Server]] = []
    if "ours" not in arguments.without:
        ours = servers.Ours(work / "ours", arguments.nydus_erofs, bench.image)
        steps.append((bench.all_of, ours))
        if "complete" not in arguments.without:
            steps.append((bench.local_only, servers.Complete(work / "complete", ours, arguments.read_ahead)))
    programs = arguments.nydusd or [os.environ.get("NYDUSD") or shutil.which("nydusd")]
    if "nydusd" not in arguments.without:
        for label, program in measure.labelled(list(filter(None, programs)), "nydusd"):
            folder = work / f"peer{len(steps)}"
            server = servers.Nydusd(folder, program, bench.image, label, validate=bench.validate)
            steps.append((bench.all_of, server))
    return steps


if __name__ == "__main__":
    main()
