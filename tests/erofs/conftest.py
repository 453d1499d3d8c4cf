"""What the format's tests share: images made from trees, and an editor that breaks images on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs import dirent, ondisk, rafs
from nydus_erofs.erofs.ids import BlobId
from tests.kit.maker import BLOCK, Made, Maker, Node, folder, regular, symlink


class Editor:
    """Changes an image in memory, field by field; `made` is what came of it."""

    def __init__(self, made: Made) -> None:
        self.original = made.bootstrap()
        self.boot = bytearray(made.boot)
        self.blobs = {name: bytearray(blob) for name, blob in made.blobs.items()}

    @property
    def made(self) -> Made:
        return Made(bytes(self.boot), {name: bytes(blob) for name, blob in self.blobs.items()})

    @property
    def blob(self) -> bytearray:
        """The only blob's bytes."""
        (blob,) = self.blobs.values()
        return blob

    def record(self, kind: type[Any], offset: int, /, **fields: Any) -> None:
        """Change fields of the record at `offset` of the bootstrap; a function changes the old value."""
        old = kind.unpack(self.boot, offset)
        new = {name: value(getattr(old, name)) if callable(value) else value for name, value in fields.items()}
        self.boot[offset : offset + kind.size()] = replace(old, **new).pack()

    def superblock(self, **fields: Any) -> None:
        self.record(ondisk.SuperBlock, ondisk.SUPERBLOCK_OFFSET, **fields)

    def ext(self, **fields: Any) -> None:
        self.record(rafs.ExtSuperBlock, rafs.EXT_SUPERBLOCK_OFFSET, **fields)

    def device(self, **fields: Any) -> None:
        self.record(ondisk.DeviceSlot, rafs.DEVICE_TABLE_OFFSET, **fields)

    def blob_entry(self, **fields: Any) -> None:
        self.record(rafs.BlobEntry, self.original.head.ext.blob_table_offset, **fields)

    def row(self, number: int, **fields: Any) -> None:
        self.record(rafs.ChunkRow, self.original.head.chunk_rows[0] + number * rafs.ChunkRow.size(), **fields)

    def row_of(self, path: bytes) -> int:
        """Number of the row of a file's first chunk."""
        first = next(self.original.chunk_indexes(self.original.lookup(path)))
        number = self.original.row_number(first)
        assert number is not None
        return number

    def inode(self, path: bytes, **fields: Any) -> None:
        self.record(ondisk.ExtendedInode, self.original.lookup(path).offset, **fields)

    def tail(self, path: bytes, at: int, data: bytes) -> None:
        """Overwrite bytes behind the xattrs of a file: its inline tail or (aligned) its chunk indexes."""
        found = self.original.lookup(path)
        start = (found.chunk_index_offset if found.is_regular else found.tail_offset) + at
        self.boot[start : start + len(data)] = data

    def dirent(self, folder: bytes, name: bytes, *, nid: int | None = None, kind: int | None = None,
               start: int | None = None, new_name: bytes | None = None) -> None:  # fmt: skip
        """Change one entry of an inline directory."""
        found = self.original.lookup(folder)
        assert found.size < BLOCK
        at = found.tail_offset
        block = bytes(self.boot[at : at + found.size])
        entries = dirent.parse_block(block)
        number = [entry.name for entry in entries].index(name)
        head = at + number * 12
        old = list(ondisk.DIRENT.unpack_from(self.boot, head))
        if new_name is not None:
            assert len(new_name) == len(name)
            self.boot[at + old[1] : at + old[1] + len(name)] = new_name
        changed = [old[0] if nid is None else nid, old[1] if start is None else start,
                   old[2] if kind is None else kind, old[3]]  # fmt: skip
        ondisk.DIRENT.pack_into(self.boot, head, *changed)


@pytest.fixture(scope="session")
def edit() -> Callable[[Made], Editor]:
    """`edit(made)` opens a copy of an image for changes."""
    return Editor


@pytest.fixture(scope="session")
def make() -> Callable[..., Made]:
    """`make(tree, chunk_size=, compact=)` makes an image of a tree built with `nodes`."""
    return lambda root, **options: Maker(root, **options).make()


class Nodes:
    regular = staticmethod(regular)
    folder = staticmethod(folder)
    symlink = staticmethod(symlink)
    node = Node


@pytest.fixture(scope="session")
def nodes() -> type[Nodes]:
    """Makers of tree nodes: `nodes.folder({b"a": nodes.regular(b"...")})`."""
    return Nodes


@pytest.fixture(scope="session")
def load(nydus_images: Path) -> Callable[[str], Made]:
    """`load("plain")`: one of the images built by Nydus, in memory."""

    def load(name: str) -> Made:
        place = nydus_images / name
        blobs = {BlobId(path.name): path.read_bytes() for path in (place / "blobs").iterdir()}
        return Made((place / "boot").read_bytes(), blobs)

    return load
