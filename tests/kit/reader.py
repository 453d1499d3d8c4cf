"""Reads mounts. A program of its own: a read that nobody answers waits for ever, and can only be killed.

    reader.py expected EXPECTED.json MNT      everything is as the file says
    reader.py mapped TREE MNT                 every file, compared through mmap
    reader.py loop TREE MNT STOP SEED [SHARE] compare random pieces of random files until the file STOP exists,
                                              SHARE of them (default 0.1) through mmap
    reader.py whole TREE MNT                  every file, compared; errors are counted by name
    reader.py read FILE [OFFSET LENGTH]       read it; print the SHA-256, or the error's name
    reader.py each NAME MNT...                read NAME below each; print what "read" does, in order
    reader.py touch FILE                      its first byte through mmap; print the signal that this ends with, or ""
    reader.py hold FILE READY                 open it, create READY, and wait to be killed
    reader.py map FILE READY                  the same, with all of it mapped and read

The last line printed is JSON. Exit status 1: something was not as it should be.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import random
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable

PIECE = 1 << 20


def described(root: bytes) -> dict[str, dict[str, object]]:
    """A tree in the form of expected.json."""
    tree: dict[str, dict[str, object]] = {}
    pending = [b"."]
    while pending:
        name = pending.pop()
        path = os.path.join(root, name)
        status = os.lstat(path)
        entry: dict[str, object] = {
            "mode": oct(status.st_mode), "uid": status.st_uid, "gid": status.st_gid, "mtime_ns": status.st_mtime_ns,
        }  # fmt: skip
        if stat.S_ISDIR(status.st_mode):
            pending += [child if name == b"." else name + b"/" + child for child in os.listdir(path)]
        elif stat.S_ISREG(status.st_mode):
            entry |= {"size": status.st_size, "nlink": status.st_nlink, "sha256": sha256(path)}
        elif stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path).hex()
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            entry["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        names = os.listxattr(path, follow_symlinks=False)
        if names:
            entry["xattrs"] = {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in sorted(names)}
        tree[name.hex()] = entry
    return tree


def sha256(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", 0) as file:
        while data := file.read(PIECE):
            digest.update(data)
    return digest.hexdigest()


def expected(json_path: str, root: str) -> dict[str, object]:
    with open(json_path, encoding="utf-8") as file:
        want = json.load(file)
    want[b".".hex()]["mtime_ns"] = 0  # Nydus drops the root's
    have = described(os.fsencode(root))
    wrong = [bytes.fromhex(name) for name in want.keys() | have.keys() if want.get(name) != have.get(name)]
    return {"entries": len(have), "wrong": sorted(map(repr, wrong))[:20]}


def files(tree: bytes) -> list[bytes]:
    """Every regular file with something in it, relative."""
    out = []
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size:
                out.append(os.path.relpath(path, tree))
    return sorted(out)


def mapped(tree: str, root: str) -> dict[str, object]:
    wrong, count = [], 0
    for name in files(os.fsencode(tree)):
        with (
            open(os.path.join(os.fsencode(tree), name), "rb") as a,
            open(os.path.join(os.fsencode(root), name), "rb") as b,
        ):
            size = os.fstat(a.fileno()).st_size
            with mmap.mmap(b.fileno(), 0, prot=mmap.PROT_READ) as seen:
                # Backwards, page by page from the middle: not what read-ahead expects.
                right = a.read()
                middle = size // 2
                if seen[middle:] != right[middle:] or seen[:middle] != right[:middle] or len(seen) != size:
                    wrong.append(repr(name))
            count += 1
    return {"files": count, "wrong": wrong}


def loop(tree: str, root: str, stop: str, seed: str, share: str = "0.1") -> dict[str, object]:
    """Errors are counted by name; a wrong byte ends it."""
    rng = random.Random(int(seed))
    a_root, b_root = os.fsencode(tree), os.fsencode(root)
    names = files(a_root)
    reads = total = 0
    errors: Counter[str] = Counter()
    wrong = []
    while not os.path.exists(stop):
        name = rng.choice(names)
        with open(os.path.join(a_root, name), "rb", 0) as a:
            size = os.fstat(a.fileno()).st_size
            offset = rng.choice([0, 0, rng.randrange(size)])
            length = rng.choice([1, 4096, 65536, 1 << 20, size])
            right = os.pread(a.fileno(), length, offset)
        try:
            seen = read_piece(os.path.join(b_root, name), offset, len(right), mapped=rng.random() < float(share))
        except OSError as error:
            errors[named(error)] += 1
            time.sleep(0.05)
            continue
        reads += 1
        total += len(seen)
        if seen != right:
            wrong.append([repr(name), offset, length])
            break
    return {"reads": reads, "bytes": total, "errors": errors, "wrong": wrong}


def whole(tree: str, root: str) -> dict[str, object]:
    right, errors, wrong = 0, Counter[str](), []
    for name in files(os.fsencode(tree)):
        with open(os.path.join(os.fsencode(tree), name), "rb") as file:
            want = file.read()
        try:
            same = read_piece(os.path.join(os.fsencode(root), name), 0, len(want) + 1, mapped=False) == want
        except OSError as error:
            errors[named(error)] += 1
            continue
        right += same
        if not same:
            wrong.append(repr(name))
    return {"files": right, "errors": errors, "wrong": wrong}


def named(error: OSError) -> str:
    """EIO and the like."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def read_piece(path: bytes, offset: int, length: int, *, mapped: bool) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        # Forget what the kernel has of this filesystem, so that it asks below again.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        parts, done = [], 0
        while done < length and (part := os.pread(fd, length - done, offset + done)):
            parts.append(part)
            done += len(part)
        data = b"".join(parts)
        if mapped and data:
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
                data = view[offset : offset + length]
        return data
    finally:
        os.close(fd)


def read(path: str, offset: str = "0", length: str = "-1") -> dict[str, object]:
    try:
        with open(path, "rb", 0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(int(offset))
            want, parts = int(length), []
            while want and (part := file.read(want if want > 0 else PIECE)):
                parts.append(part)
                want -= len(part) if want > 0 else 0
    except OSError as error:
        return {"error": named(error)}
    data = b"".join(parts)
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def each(name: str, *roots: str) -> dict[str, object]:
    return {"results": [read(os.path.join(root, name)) for root in roots]}


def touch(path: str) -> dict[str, object]:
    pid = os.fork()
    if not pid:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            os._exit(view[0] * 0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"signal": signal.Signals(-code).name if code < 0 else ""}


def hold(path: str, ready: str) -> dict[str, object]:
    with open(path, "rb"):
        open(ready, "w").close()
        time.sleep(600)
    return {}


def keep_mapped(path: str, ready: str) -> dict[str, object]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        bytes(view)
        open(ready, "w").close()
        time.sleep(600)
    return {}


if __name__ == "__main__":
    modes: dict[str, Callable[..., dict[str, object]]] = {
        "expected": expected,
        "mapped": mapped,
        "loop": loop,
        "whole": whole,
        "read": read,
        "each": each,
        "touch": touch,
        "hold": hold,
        "map": keep_mapped,
    }
    with contextlib.suppress(KeyboardInterrupt):
        result = modes[sys.argv[1]](*sys.argv[2:])
        print(json.dumps(result))
        sys.exit(bool(result.get("wrong")))
