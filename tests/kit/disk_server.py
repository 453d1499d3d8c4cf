"""A disk that writes down what happens to it: a file that the kernel reads and writes through FUSE, to loop-mount.

    disk_server.py IMAGE LOG FAIL PLACE

The file PLACE becomes IMAGE. Each write and each flush goes to the end of LOG before it is answered: a header
(``ENTRY``), and the bytes. While there is a file FAIL, writes that hold its content somewhere fail with EIO. Says
"ready" when the file is there, and ends when it is unmounted.

A program of its own: who writes to the disk may have to wait for it. Numbers: include/uapi/linux/fuse.h, 7.31.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import sys

ENTRY = struct.Struct("<BxxxIQ")  # kind, bytes, offset
WRITE, FLUSH = 1, 2

HEADER = struct.Struct("<IIQQIIIHH")  # length, operation, unique, node, uid, gid, pid, extensions, padding
ANSWER = struct.Struct("<IiQ")  # length, error, unique
# Major, minor, read-ahead, flags, background, congestion, largest write, granularity of times, pages, alignment.
INIT = struct.Struct("<IIIIHHIIHH32x")
ATTRIBUTES = struct.Struct("<QIIQQQQQQIIIIIIIIII")
OPENED = struct.Struct("<QIi")
SPAN = struct.Struct("<QQIIQII")  # handle, offset, bytes, flags, lock owner, flags, padding
WRITTEN = struct.Struct("<II")
STATFS = struct.Struct("<QQQQQIIII24x")

# Operations.
GET, SET, OPEN, READ, PUT, STATS, RELEASE, SYNC, CLOSE, INITIALIZE = 3, 4, 14, 15, 16, 17, 18, 20, 25, 26
SILENT = (2, 36, 42)  # forget, interrupt, forget many: nobody waits for an answer
MOST = 1 << 20  # bytes in one request
ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
DIRECT_IO = 1  # nothing is kept in the page cache: what comes here is what the loop device does


class Disk:
    """Answers the kernel's requests."""

    def __init__(self, image: str, log: str, fail: str) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._fail = fail
        self._size = os.fstat(self._image).st_size

    def answer(self, operation: int, body: memoryview) -> bytes:
        """The body of an answer; OSError for an error."""
        if operation == INITIALIZE:
            flags = (ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES) & int.from_bytes(body[12:16], "little")
            return INIT.pack(7, 31, 0, flags, 64, 48, MOST, 1, MOST >> 12, 0)
        if operation in (GET, SET):
            times, kind = (0,) * 6, stat.S_IFREG | 0o600
            return ATTRIBUTES.pack(3600, 0, 0, 1, self._size, self._size >> 9, *times, kind, 1, 0, 0, 0, 4096, 0)
        if operation == OPEN:
            return OPENED.pack(0, DIRECT_IO, 0)
        if operation == READ:
            _, offset, length, *_ = SPAN.unpack_from(body)
            return os.pread(self._image, length, offset)
        if operation == PUT:
            return self._write(body)
        if operation == SYNC:
            os.write(self._log, ENTRY.pack(FLUSH, 0, 0))
            return b""
        if operation == STATS:
            return STATFS.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if operation in (RELEASE, CLOSE):  # nothing is on disk by that
            return b""
        raise OSError(errno.ENOSYS, "not done here")

    def _write(self, body: memoryview) -> bytes:
        _, offset, length, *_ = SPAN.unpack_from(body)
        data = body[SPAN.size : SPAN.size + length]
        if os.path.exists(self._fail):
            with open(self._fail, "rb") as file:
                lost = file.read()
            if lost in bytes(data):
                raise OSError(errno.EIO, "as it was told")
        os.writev(self._log, [ENTRY.pack(WRITE, length, offset), data])
        os.pwrite(self._image, data, offset)
        return WRITTEN.pack(length, 0)


def serve(disk: Disk, fuse: int) -> None:
    buffer = bytearray(MOST + (1 << 16))
    while True:
        try:
            length = os.readv(fuse, [buffer])
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):  # a request that was taken back
                continue
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        _, operation, unique, *_ = HEADER.unpack_from(buffer)
        if operation in SILENT:
            continue
        number, body = 0, b""
        try:
            body = disk.answer(operation, memoryview(buffer)[HEADER.size : length])
        except OSError as error:
            number = error.errno or errno.EIO
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
            os.writev(fuse, [ANSWER.pack(ANSWER.size + len(body), -number, unique), body])


def main(image: str, log: str, fail: str, place: str) -> None:
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0".encode()
    if libc.mount(b"recorded-disk", os.fsencode(place), b"fuse", ctypes.c_ulong(0), options):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")
    print("ready", flush=True)
    serve(Disk(image, log, fail), fuse)


if __name__ == "__main__":
    main(*sys.argv[1:])
