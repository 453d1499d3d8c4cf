#!/usr/bin/env python3
"""Make a deterministic tree to measure with: 134,567 files, 67,678 directories, 808 symlinks, 2.3 GB.

The same scale gives the same names, bytes, modes and times everywhere, so figures can be compared.  The
shape is that of a developer's machine: sources in a deep tree, many small nested packages, shared libraries
with their version links, one crowded directory.  The median file has about 4 KB, a few dozen have several
MB, a few more than 10 MB; one file in sixteen is a copy of another.
"""

import environment  # noqa: F401

# isort: split
import argparse
import hashlib
import os
import sys
import time
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from random import Random

import soup

SEED = 20_230_215
FILES, DIRECTORIES, SYMLINKS, BYTES = 134_567, 67_678, 808, 2_300_000_000
EPOCH = 1_700_000_000  # seconds; every time in the tree is derived from it

# Share of files below a size (bytes), between which sizes are interpolated: measured on unpacked sources.
QUANTILES = [(0.0, 0), (0.01, 1), (0.1, 300), (0.25, 1300), (0.5, 4000), (0.75, 11_000), (0.9, 26_000),
             (0.97, 60_000), (0.995, 180_000), (1.0, 600_000)]  # fmt: skip
# What is left of the total goes into large files of these relative sizes, 88 of them at scale 1.
LARGE = [48, 30, 24, 16] + [12] * 4 + [6] * 12 + [3] * 24 + [1] * 44

TEXT, BINARY, NOISE = range(3)
TEXT_NAMES = ["{}.c", "{}.h", "{}.rs", "{}.go", "{}.py", "{}.md", "{}.json", "Makefile.{}", "test_{}.py", "{}"]
BINARY_NAMES = ["lib{}.so.1", "{}.o", "lib{}.a", "{}.pyc", "{}"]
NOISE_NAMES = ["{}.gz", "{}.png", "{}.whl"]


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: a slice of a soup.  Two files with equal contents share one of these."""

    kind: int
    size: int  # bytes
    start: int  # of the slice, bytes into the soup
    serial: int  # told in the first line or bytes, so that no two contents are equal by accident


class Plan:
    """Names and contents of the whole tree, decided before anything is written."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.random = Random(SEED)
        self.words = soup.Words(self.random, 1500)
        self.directories: list[str] = []
        self.files: list[tuple[str, Content]] = []
        self.symlinks: list[tuple[str, str]] = []
        self._taken: set[str] = set()
        self._plan_directories(max(12, round(DIRECTORIES * scale)))
        self._plan_files(max(24, round(FILES * scale)))
        self._plan_symlinks(round(SYMLINKS * scale))

    def _below(self, count: int) -> int:
        return int(self.random.random() * count)

    def _name(self, directory: str, pattern: str) -> str:
        """A name not yet taken in `directory`."""
        name = pattern.format(self.words.identifier())
        while (path := f"{directory}/{name}") in self._taken:
            name = pattern.format(f"{self.words.identifier()}{self._below(1000)}")
        self._taken.add(path)
        return path

    def _plan_directories(self, count: int) -> None:
        """Three parts: src (1 in 8, where most files are), lib (1 in 100), and packages nested in packages."""
        self.directories = ["src", "lib", "packages", "share", "share/pool"]
        self._taken.update(self.directories)
        self.sources, self.libraries, packages = ["src"], ["lib"], ["packages"]
        for number in range(count - len(self.directories)):
            if number % 8 == 0:
                group, parent = self.sources, self.sources[self._below(len(self.sources))]
            elif number % 100 == 1:
                group, parent = self.libraries, self.libraries[self._below(len(self.libraries))]
            else:  # near the newest: long chains
                group, parent = packages, packages[-1 - self._below(min(len(packages), 40))]
            if parent.count("/") > 24:
                parent = group[0]
            path = self._name(parent, "{}")
            group.append(path)
            self.directories.append(path)
        self.packages = packages

    def _place(self, kind: int, number: int) -> str:
        """Where file `number` goes: most text among the sources, so that most packages are only folders."""
        if number % 33 == 0:
            return "share/pool"
        among_text = self.packages if number % 6 == 0 else self.sources
        group = among_text if kind == TEXT else self.libraries
        return group[self._below(len(group))]

    def _plan_files(self, count: int) -> None:
        total = round(BYTES * self.scale)
        large_count = max(1, round(len(LARGE) * self.scale))
        sizes = [self._size() for _ in range(count - large_count)]
        copies: dict[int, int] = {}  # number of a file -> number of the earlier one whose content it shares
        for number in range(1, len(sizes)):
            if self.random.random() < 1 / 16:
                original = self._below(number)
                copies[number] = copies.get(original, original)
                sizes[number] = sizes[original]
        weights = LARGE[:large_count]
        spare = max(0, total - sum(sizes))
        large = [spare * weight // sum(weights) for weight in weights]
        large[0] += spare - sum(large)
        contents: list[Content] = []
        for number, size in enumerate(sizes + large):
            if number in copies:
                content = contents[copies[number]]
            else:
                content = Content(self._kind(size), size, self._below(1 << 40), number)
            contents.append(content)
            names = (TEXT_NAMES, BINARY_NAMES, NOISE_NAMES)[content.kind]
            path = self._name(self._place(content.kind, number), names[self._below(len(names))])
            self.files.append((path, content))

    def _size(self) -> int:
        share = self.random.random()
        at = bisect(QUANTILES, share, key=lambda quantile: quantile[0])
        (low_share, low), (high_share, high) = QUANTILES[at - 1], QUANTILES[at]
        return low + int((share - low_share) / (high_share - low_share) * (high - low))

    def _kind(self, size: int) -> int:
        """The larger, the more likely binary."""
        x = self.random.random()
        if x < 0.01:
            return NOISE
        return BINARY if x < (0.06 if size < 32_000 else 0.25 if size < 1_000_000 else 0.55) else TEXT

    def _plan_symlinks(self, count: int) -> None:
        """Version links beside libraries, and links from anywhere to a source, with a relative target."""
        libraries = [path for path, _ in self.files if path.endswith(".so.1")]
        for path in libraries[: count // 2]:
            link = path.removesuffix(".1")
            if link not in self._taken:
                self._taken.add(link)
                self.symlinks.append((link, path.rsplit("/", 1)[1]))
        while len(self.symlinks) < count:
            place = self.directories[self._below(len(self.directories))]
            target, _ = self.files[self._below(len(self.files))]
            self.symlinks.append((self._name(place, "{}.link"), os.path.relpath(target, place)))


class Soups:
    """The bytes of a Content."""

    def __init__(self, scale: float) -> None:
        share = min(1.0, max(0.02, scale * 4))
        self._soups = [soup.text(Random(SEED + 1), int(share * (48 << 20))),
                       soup.binary(Random(SEED + 2), int(share * (24 << 20))),
                       soup.noise(Random(SEED + 3), int(share * (8 << 20)))]  # fmt: skip

    def read(self, content: Content) -> bytes:
        """A file longer than its soup goes on elsewhere in it: no two long runs line up."""
        kind = self._soups[content.kind]
        head = b"/* %d */\n" % content.serial if content.kind == TEXT else content.serial.to_bytes(8, "big")
        pieces, length, start = [head], len(head), content.start % len(kind)
        while length < content.size:
            piece = kind[start : start + content.size - length]
            pieces.append(piece)
            length += len(piece)
            start = (start * 31 + 1_000_003) % (len(kind) // 2)
        return b"".join(pieces)[: content.size]


def write(root: str, plan: Plan, soups: Soups, say: bool) -> str:
    """Write the tree below `root`; returns a fingerprint (hex) of all names and contents."""
    total = hashlib.sha256()
    os.umask(0o022)
    os.mkdir(root)
    for path in plan.directories:
        os.mkdir(f"{root}/{path}")
    for number, (path, content) in enumerate(plan.files):
        data = soups.read(content)
        mode = 0o755 if content.kind == BINARY else 0o644
        fd = os.open(f"{root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            if os.write(fd, data) != len(data):
                sys.exit(f"make_tree: error: short write to {path}: is the disk full?")
            os.utime(fd, ns=_times(content.serial))
        finally:
            os.close(fd)
        total.update(b"%s\0%d\0" % (path.encode(), mode))
        total.update(data)
        if say and number % 20_000 == 19_999:
            print(f"make_tree: {number + 1:,} files written", file=sys.stderr)
    for number, (path, target) in enumerate(plan.symlinks):
        os.symlink(target, f"{root}/{path}")
        os.utime(f"{root}/{path}", ns=_times(number), follow_symlinks=False)
        total.update(f"{path}\0{target}\0".encode())
    # Deepest first, as making an entry touches its directory.
    for number, path in enumerate(reversed(["", *plan.directories])):
        os.utime(f"{root}/{path}", ns=_times(number))
        total.update(f"{path}\0".encode())
    return total.hexdigest()


def _times(number: int) -> tuple[int, int]:
    """Access and change time, ns: within a year before EPOCH, with a sub-second part."""
    ns = EPOCH * 1_000_000_000 - number * 7_919 % 31_536_000 * 1_000_000_000 + number * 104_729 % 1_000_000_000
    return ns, ns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", type=Path, help="made by this program; must not exist")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="share of all counts (default: 1)")
    arguments = parser.parse_args()
    directory, scale = arguments.directory, arguments.scale
    if not 0 < scale <= 10:
        parser.error("--scale must be above 0 and at most 10")
    if os.path.lexists(directory):
        parser.error(f"{directory} exists; remove it first")
    if not directory.absolute().parent.is_dir():
        parser.error(f"{directory.parent} is not a directory")
    started = time.monotonic()
    plan = Plan(scale)
    # Written under another name, so that what has the final name is complete.
    partial = f"{os.fspath(directory).rstrip('/')}.partial-{os.getpid()}"
    fingerprint = write(partial, plan, Soups(scale), sys.stderr.isatty() or scale >= 0.5)
    os.rename(partial, directory)
    size = sum(content.size for _, content in plan.files)
    print(f"{len(plan.files):,} files, {len(plan.directories):,} directories, {len(plan.symlinks):,} symlinks, "
          f"{size:,} bytes in {time.monotonic() - started:.1f} s, fingerprint {fingerprint[:16]}")  # fmt: skip


if __name__ == "__main__":
    main()
