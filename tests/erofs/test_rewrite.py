"""Moving a metadata area by hand-made inodes of every form, among them those that Nydus never writes."""

import struct
import time

import pytest

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.ondisk import DIRENT, CompactInode, ExtendedInode, FileType, Layout
from nydus_erofs.erofs.rewrite import rewrite

BLOCK, CHUNK, SHIFT = 4096, 0x1000, 7
META = BLOCK
DIR, REG, LINK = 0o40755, 0o100644, 0o120777
OLD, NEW = 0x0000_0005_0001_0000, 0x0000_0001_0003_0000  # chunk indexes as words; those of a file differ by 1


def entries(*items):
    """A directory block: (name, nid, type) in the order given."""
    out, names = b"", b""
    for name, nid, kind in items:
        out += DIRENT.pack(nid, DIRENT.size * len(items) + len(names), kind, 0)
        names += name
    return out + names


class Area:
    """A metadata area under construction; ``put`` gives the nid of what it puts."""

    def __init__(self):
        self.data = bytearray()

    def put(self, mode, size, u=0, tail=b"", *, layout=None, compact=False, xattrs=0):
        if layout is None:
            layout = Layout.CHUNK_BASED if mode == REG else Layout.FLAT_INLINE
        nid = len(self.data) // 32
        kind = layout << 1 | (not compact)
        if compact:
            head = CompactInode(kind, xattrs, mode, 1, size, 0xFFFF_FFFF, u, 1, 0, 0, 0).pack()
        else:
            head = ExtendedInode(kind, xattrs, mode, 0, size, u, 1, 0, 0, 0, 0, 1, b"").pack()
        self.data += head + b"x" * (12 + 4 * (xattrs - 1) if xattrs else 0)
        if mode == REG:
            self.data += bytes(-len(self.data) % 8)
        self.data += tail
        self.data += bytes(-len(self.data) % 32)
        return nid

    def word(self, nid, number):
        return struct.unpack_from("<Q", self.data, nid * 32 + number * 8)[0]

    def run(self, root, targets=None, extra=b""):
        area = bytes(self.data) + bytes(-len(self.data) % BLOCK) + extra
        image = bytes(META) + area
        words = rewrite(image, META, len(image), root, CHUNK, SHIFT, targets if targets is not None else TARGETS)
        changed = {
            i: new for i, (new, old) in enumerate(zip(words, memoryview(area).cast("Q"), strict=True)) if new != old
        }
        assert len(words) * 8 == len(area)
        return changed


TARGETS = {OLD + i: (NEW + i, CHUNK if i < 4 else 100) for i in range(5)}
EXTENT = [OLD + 5 + i + (i << 32) for i in range(3)]  # chunks that follow each other
TARGETS |= {old: (NEW + 5 + i, CHUNK if i < 2 else 100) for i, old in enumerate(EXTENT)}


def index(*numbers):
    return b"".join(struct.pack("<Q", OLD + number) for number in numbers)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("xattrs", [0, 1, 2, 3])
def test_every_form(compact, xattrs):
    """Addresses of directories and symlinks move, chunk indexes are replaced, and nothing else changes."""
    area, form = Area(), {"compact": compact, "xattrs": xattrs}
    small = area.put(REG, 100, 0x20, index(4), **form)
    whole = area.put(REG, CHUNK, 0x25, index(1), **form)
    large = area.put(REG, 2 * CHUNK + 100, 0x20, index(0, 3, 4), **form)
    extent = area.put(REG, 2 * CHUNK + 100, 0x25, struct.pack("<3Q", *EXTENT), **form)
    empty = area.put(REG, 0, 0x20, **form)
    link = area.put(LINK, 3, 0, b"abc", **form)
    device = area.put(0o20644, 0, 0x0103, layout=Layout.FLAT_PLAIN, **form)
    listed = [(b"l", large, 1), (b"m", large, 1), (b"s", small, 1), (b"w", whole, 1), (b"x", extent, 1)]
    inline = entries(*listed)
    sub = area.put(DIR, len(inline), 0, inline, **form)
    tail = entries((b"e", empty, FileType.REG))
    # A block of its own with the link, and a tail with the empty file; and one with all in a block.
    first, second = entries((b"k", link, FileType.SYMLINK)), entries((b"d", device, FileType.CHR))
    mixed = area.put(DIR, BLOCK + len(tail), 2, tail, **form)
    plain = area.put(DIR, len(second), 3, layout=Layout.FLAT_PLAIN, **form)
    names = entries((b"a", sub, 2), (b"b", mixed, 2), (b"c", plain, 2))
    root = area.put(DIR, len(names), 0, names)
    assert len(area.data) <= BLOCK
    changed = area.run(root, extra=first.ljust(BLOCK, b"\0") + second.ljust(BLOCK, b"\0"))

    body = (32 if compact else 64) + (12 + 4 * (xattrs - 1) if xattrs else 0)
    place = (body + 7) // 8
    expected = {nid * 4 + 2: area.word(nid, 2) + SHIFT for nid in (sub, mixed, plain, root, link)}
    expected |= {small * 4 + place: NEW + 4, whole * 4 + place: NEW + 1}
    expected |= {large * 4 + place + i: NEW + number for i, number in enumerate((0, 3, 4))}
    expected |= {extent * 4 + place + i: NEW + 5 + i for i in range(3)}
    expected[extent * 4 + 2] = area.word(extent, 2) & ~0xFFFF_FFFF | 0x20
    assert changed == expected


def test_an_address_that_would_not_fit():
    """It belongs to an inode that is a tail alone, and means nothing."""
    area = Area()
    link = area.put(LINK, 3, 0xFFFF_FFFF, b"abc")
    names = entries((b"k", link, FileType.SYMLINK))
    root = area.put(DIR, len(names), 0xFFFF_FFF9, names)
    changed = area.run(root)
    assert {word & 0xFFFF_FFFF for word in changed.values()} == {0}
    assert changed.keys() == {link * 4 + 2, root * 4 + 2}


@pytest.mark.parametrize(
    ("kind", "mode", "size", "layout", "what"),
    [
        (FileType.DIR, REG, 0, None, "listed as a directory"),
        (FileType.REG, DIR, 40, None, "listed as a regular file"),
        (FileType.REG, REG, 40, Layout.FLAT_INLINE, "listed as a regular file"),
        (FileType.SYMLINK, REG, 0, None, "listed as a symlink"),
        (FileType.UNKNOWN, REG, 0, None, "unknown type"),
        (8, REG, 0, None, "unknown type"),
        (FileType.REG, REG, 100, None, "the kernel would read it"),
        (FileType.REG, REG, 1 << 62, None, "more chunk indexes"),
        (FileType.REG, 0o020644, 0, Layout.FLAT_PLAIN, "listed as a regular file"),
        (FileType.CHR, REG, 0, None, "type 3 and is none"),
        (FileType.FIFO, 0o020644, 0, Layout.FLAT_PLAIN, "type 5 and is none"),
        (FileType.SOCK, 0o140644, 5, Layout.FLAT_PLAIN, "type 6 and is none"),
        (FileType.DIR, DIR, 0, None, "outside the metadata"),
        (FileType.DIR, DIR, 1 << 62, Layout.FLAT_PLAIN, "outside the metadata"),
        (FileType.DIR, DIR, 5000, Layout.FLAT_PLAIN, "outside the metadata"),
        (FileType.SYMLINK, LINK, 0, None, "outside the metadata"),
        (FileType.SYMLINK, LINK, 5000, Layout.FLAT_PLAIN, "outside the metadata"),
        (FileType.DIR, DIR, 200, None, "directory block"),
    ],
)
@pytest.mark.parametrize("compact", [False, True])
def test_not_what_it_should_be(kind, mode, size, layout, what, compact):
    area = Area()
    nid = area.put(mode, min(size, 0xFFFF_F000) if compact else size, layout=layout, compact=compact)
    area.put(REG, 0)
    names = entries((b"x", nid, kind))
    root = area.put(DIR, len(names), 0, names)
    with pytest.raises(FormatError, match=what):
        area.run(root)


@pytest.mark.parametrize(
    ("size", "chunk_format", "chunks"),
    [
        (100, 0x00, index(4)),  # 4 bytes for each chunk
        (100, 0x60, index(4)),
        (2 * CHUNK + 100, 0x21, struct.pack("<3Q", *EXTENT)),
        (2 * CHUNK + 100, 0x22, index(0, 3, 4)),
    ],
    ids=["no indexes", "unknown", "too small for the file", "not one extent"],
)
def test_a_chunk_format_that_means_other_bytes(size, chunk_format, chunks):
    area = Area()
    names = entries((b"x", area.put(REG, size, chunk_format, chunks), FileType.REG))
    root = area.put(DIR, len(names), 0, names)
    with pytest.raises(FormatError, match=r"the kernel would read it|does not follow"):
        area.run(root)


@pytest.mark.parametrize("nid", [1 << 20, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [FileType.DIR, FileType.REG, FileType.SYMLINK, FileType.FIFO])
def test_pointing_outside(nid, kind):
    area = Area()
    names = entries((b"x", nid, kind))
    root = area.put(DIR, len(names), 0, names)
    with pytest.raises(FormatError, match="outside"):
        area.run(root)


def test_a_chunk_of_another_size():
    area = Area()
    names = entries((b"x", area.put(REG, 99, 0x20, index(4)), FileType.REG))
    root = area.put(DIR, len(names), 0, names)
    with pytest.raises(FormatError, match="size"):
        area.run(root)


def test_many_names_of_one_large_file():
    """Its chunk indexes count once, whatever the number of its names."""
    area = Area()
    large = area.put(REG, 4 * CHUNK, 0x20, index(0, 1, 2, 3))
    names = entries(*((b"%03d" % n, large, FileType.REG) for n in range(250)))
    root = area.put(DIR, len(names), 0, names)
    assert len(area.run(root)) == 5  # four indexes, and the root's address; the chunk format was right


def test_a_long_chain_of_directories():
    """One directory a level, in time that grows with the bootstrap alone; and a way back up is no endless walk."""
    area, count = Area(), 20_000
    for n in range(count):
        down = (b"x", min(n + 1, count - 1) * 4, FileType.DIR)
        names = entries((b".", n * 4, FileType.DIR), (b"..", max(0, n - 1) * 4, FileType.DIR), down)
        assert area.put(DIR, len(names), 0, names) == n * 4
    start = time.process_time()
    assert len(area.run(0)) == count
    assert time.process_time() - start < 5
