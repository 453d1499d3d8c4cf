"""A published bootstrap read in pieces: each verified, whatever the server does to it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs import verity
from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, CorruptError
from nydus_erofs.fscache.backend.assemble import Backends
from nydus_erofs.fscache.backend.lazy import LazyBootstrap, peek
from nydus_erofs.fscache.backend.resilient import Resilient
from nydus_erofs.fscache.config.backend import HttpProxy

DATA = random.Random(5).randbytes(700_001)
TREE = verity.build_tree(DATA)


@pytest.fixture
def published(tmp_path: Path, file_server: Callable[..., Any]) -> tuple[Path, Resilient]:
    (tmp_path / "app.meta").write_bytes(DATA)
    (tmp_path / "app.meta.verity").write_bytes(TREE.pack())
    server = file_server(tmp_path)
    backend = Backends(4, lambda: None).get(HttpProxy(addr=f"http://127.0.0.1:{server.port}", retry_limit=0))
    return tmp_path, backend


def test_in_pieces(published: tuple[Path, Resilient]) -> None:
    _, backend = published
    assert peek(backend, "/app") == ("/app.meta", TREE)
    source = LazyBootstrap(backend, "/app.meta", TREE.identity)
    for offset, length in ((0, 4096), (4095, 2), (128 << 10, 128 << 10), (700_000, 1), (0, len(DATA))):
        assert source.read_at(offset, length) == DATA[offset : offset + length]


def test_without_a_tree_it_is_not_for_pieces(published: tuple[Path, Resilient]) -> None:
    folder, backend = published
    (folder / "app.meta.verity").unlink()
    assert peek(backend, "/app") is None
    with pytest.raises(BlobNotFoundError):
        LazyBootstrap(backend, "/app.meta", TREE.identity).read_at(0, 1)


def test_a_wrong_block_is_an_error_and_the_others_are_not(published: tuple[Path, Resilient]) -> None:
    folder, backend = published
    wrong = bytearray(DATA)
    wrong[9000] ^= 4
    (folder / "app.meta").write_bytes(wrong)
    source = LazyBootstrap(backend, "/app.meta", TREE.identity)
    with pytest.raises(CorruptError, match="byte 8192"):
        source.read_at(8000, 5000)
    assert source.read_at(0, 8192) == DATA[:8192]


def test_another_image_under_the_name(published: tuple[Path, Resilient]) -> None:
    folder, backend = published
    other = DATA[::-1]
    (folder / "app.meta").write_bytes(other)
    with pytest.raises(CorruptError):
        LazyBootstrap(backend, "/app.meta", TREE.identity, TREE).read_at(0, 10)
    (folder / "app.meta.verity").write_bytes(verity.build_tree(other).pack())
    with pytest.raises(CorruptError, match="another image by now"):
        LazyBootstrap(backend, "/app.meta", TREE.identity).read_at(0, 10)


def test_a_tree_that_does_not_fit(published: tuple[Path, Resilient]) -> None:
    folder, backend = published
    (folder / "app.meta").write_bytes(DATA[:-1])
    with pytest.raises(CorruptError, match="700000 bytes, its digest tree 700001"):
        peek(backend, "/app")
    (folder / "app.meta.verity").write_bytes(b"nonsense" * 10)
    with pytest.raises(CorruptError, match=r"app\.meta\.verity"):
        peek(backend, "/app")


def test_nothing_there(published: tuple[Path, Resilient]) -> None:
    folder, backend = published
    shutil.rmtree(folder)
    with pytest.raises(BackendError):
        peek(backend, "/app")
