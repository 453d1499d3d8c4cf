#!/usr/bin/env python3
"""Compare two directory trees completely: every name, every attribute that counts, every byte.

Compared: names, types, mode, uid, gid, mtime (ns), link count of regular files, device numbers, size, link
target, extended attributes, contents.  Not compared, because RAFS images do not carry them:

- the mtime of the two roots: nydus-image sets the root's to 0, and a bind mount or mkdir makes another one
- the link count of anything but regular files: hard-linked symlinks, devices and fifos become separate inodes.
  B's link count of a file may be A's own or the number of its names in the tree (A may have more outside).
- sizes and link counts of directories, which each filesystem counts in its own way, and access times

Exit status: 0 when equal, 1 at any difference (the first ones are printed), 2 when it could not be compared.
"""

import argparse
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator

BLOCK = 1 << 20  # bytes read at a time


class Comparison:
    """One walk over two trees; counts what it saw, and keeps the first differences."""

    def __init__(self, a: str, b: str, *, deadline: float, shown: int, ignored: set[str]) -> None:
        self.roots = os.fsencode(a), os.fsencode(b)
        self.deadline = deadline
        self.shown = shown
        self.ignored = ignored
        self.differences = 0
        self.counts = dict.fromkeys(("files", "directories", "symlinks", "others", "bytes"), 0)
        self._buffers = bytearray(BLOCK), bytearray(BLOCK)
        # Inode numbers seen under A -> under B, to check that the same names are links to one file.
        self._links: dict[tuple[int, int], tuple[int, int]] = {}
        # Inode under A -> path, link counts in A and B, names seen: where the two counts are not the same.
        self._link_counts: dict[tuple[int, int], tuple[bytes, int, int, int]] = {}

    def run(self) -> None:
        pending = [b""]
        while pending:
            directory = pending.pop()
            self._guarded(directory)
            try:
                pending.extend(self._common(directory))
            except OSError as error:
                self.differ(directory, f"cannot be listed: {error.strerror}")
        for path, a, b, seen in self._link_counts.values():
            if b != seen:
                self.differ(path, f"nlink {a} in A ({seen} in this tree), {b} in B")

    def differ(self, path: bytes, what: str) -> None:
        self.differences += 1
        if self.differences <= self.shown:
            print(f"{os.fsdecode(path) or '.'!r}: {what}")

    def _common(self, directory: bytes) -> Iterator[bytes]:
        """Compare the entries of a directory; yield the subdirectories that both have."""
        a, b = (self._list(root + directory) for root in self.roots)
        for name in sorted(a.keys() | b.keys()):
            path = directory + b"/" + name
            if name not in a or name not in b:
                self.differ(path, f"only in {'A' if name in a else 'B'}")
            elif a[name] and b[name]:
                yield path
            else:
                self._guarded(path)

    def _guarded(self, path: bytes) -> None:
        """Seldom the source, mostly a mount that answers EIO: a difference, and the walk goes on."""
        try:
            self._entry(path)
        except TimeoutError:
            raise
        except OSError as error:
            self.differ(path, f"cannot be read: {error.strerror}")

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError

    @staticmethod
    def _list(path: bytes) -> dict[bytes, bool]:
        """Name -> whether it is a directory."""
        with os.scandir(path) as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}

    def _entry(self, path: bytes) -> None:
        """Compare one entry, and all it holds if it is not a directory."""
        self._check_time()
        a_path, b_path = (root + path for root in self.roots)
        a, b = os.lstat(a_path), os.lstat(b_path)
        kind = stat.S_IFMT(a.st_mode)
        regular, directory = stat.S_ISREG(kind), stat.S_ISDIR(kind)
        self._count(kind)
        for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev", "st_size"):
            if (name == "st_mtime_ns" and not path) or (name == "st_size" and directory):
                continue
            x, y = getattr(a, name), getattr(b, name)
            if x != y and name not in self.ignored:
                text = oct if name == "st_mode" else str
                self.differ(path, f"{name[3:]} {text(x)} in A, {text(y)} in B")
        if stat.S_IFMT(b.st_mode) != kind:
            return
        if "xattrs" not in self.ignored:
            self._xattrs(path, a_path, b_path)
        if stat.S_ISLNK(kind) and os.readlink(a_path) != os.readlink(b_path):
            self.differ(path, f"target {os.readlink(a_path)!r} in A, {os.readlink(b_path)!r} in B")
        if regular and "st_nlink" not in self.ignored:
            self._link_count(path, a, b)
        if regular and a.st_size == b.st_size and not self._known_link(path, a, b):
            self._bytes(path, a_path, b_path)

    def _count(self, kind: int) -> None:
        names = {stat.S_IFREG: "files", stat.S_IFDIR: "directories", stat.S_IFLNK: "symlinks"}
        self.counts[names.get(kind, "others")] += 1

    def _link_count(self, path: bytes, a: os.stat_result, b: os.stat_result) -> None:
        if a.st_nlink != b.st_nlink:
            inode = (a.st_dev, a.st_ino)
            seen = self._link_counts.get(inode, (path, 0, 0, 0))[3]
            self._link_counts[inode] = (path, a.st_nlink, b.st_nlink, seen + 1)

    def _known_link(self, path: bytes, a: os.stat_result, b: os.stat_result) -> bool:
        """True for a further name of a file whose bytes were compared; checks that it is one in B as well."""
        if a.st_nlink == 1:
            return False
        here, there = (a.st_dev, a.st_ino), (b.st_dev, b.st_ino)
        known = self._links.setdefault(here, there)
        if known is there:
            return False
        if known != there and "st_nlink" not in self.ignored:
            self.differ(path, "hard link to one file in A, to another in B")
        return known == there

    def _xattrs(self, path: bytes, a_path: bytes, b_path: bytes) -> None:
        a, b = _xattrs_of(a_path), _xattrs_of(b_path)
        if a != b:
            names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
            self.differ(path, f"extended attributes differ: {', '.join(names)}")

    def _bytes(self, path: bytes, a_path: bytes, b_path: bytes) -> None:
        # Unbuffered and into the same two buffers: nothing is allocated per file.
        a_buffer, b_buffer = (memoryview(buffer) for buffer in self._buffers)
        offset = 0
        with open(a_path, "rb", 0) as a, open(b_path, "rb", 0) as b:
            while length := a.readinto(a_buffer):
                self._check_time()
                filled = 0
                while filled < length and (got := b.readinto(b_buffer[filled:length])):
                    filled += got
                if filled != length or a_buffer[:length] != b_buffer[:length]:
                    at = offset + _first_difference(a_buffer, b_buffer, min(length, filled))
                    self.differ(path, f"contents differ from byte {at:,} on")
                    return
                offset += length
            self.counts["bytes"] += offset


def _xattrs_of(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # no extended attributes on this filesystem or type
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _first_difference(a: memoryview, b: memoryview, length: int) -> int:
    return next((at for at in range(length) if a[at] != b[at]), length)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="the tree to trust")
    parser.add_argument("b", metavar="B", help="the tree to judge")
    parser.add_argument("--time-limit", type=float, default=3600, metavar="S", help="give up after S seconds")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="differences to print (default: 10)")
    parser.add_argument("--ignore", action="append", default=[], metavar="WHAT",
                        choices=["mtime_ns", "nlink", "xattrs", "uid", "gid"], help="may be given again")  # fmt: skip
    arguments = parser.parse_args()
    for path in (arguments.a, arguments.b):
        if not os.path.isdir(path):
            parser.error(f"{path} is not a directory")
    started = time.monotonic()
    ignored = {what if what == "xattrs" else f"st_{what}" for what in arguments.ignore}
    comparison = Comparison(arguments.a, arguments.b, deadline=started + arguments.time_limit,
                            shown=arguments.show, ignored=ignored)  # fmt: skip
    try:
        comparison.run()
    except TimeoutError:
        print(f"compare_trees: error: not finished after {arguments.time_limit:g} s", file=sys.stderr)
        return 2
    counts = ", ".join(f"{count:,} {what}" for what, count in comparison.counts.items())
    verdict = f"{comparison.differences:,} differences" if comparison.differences else "equal"
    print(f"{verdict}: {counts} compared in {time.monotonic() - started:.1f} s")
    return 1 if comparison.differences else 0


if __name__ == "__main__":
    sys.exit(main())
