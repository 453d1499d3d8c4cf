"""Filling an object of the kernel's cache; a file opened for direct I/O takes its place, and is as strict."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nydus_erofs.erofs.digest import digest_function
from nydus_erofs.erofs.errors import BackendError, CacheFullError, NydusErofsError
from nydus_erofs.erofs.ondisk import BLOCK_SIZE
from nydus_erofs.erofs.record import round_up
from nydus_erofs.erofs.source import FileSource
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.state.plan import Plan, PlanFlags
from nydus_erofs.fscache.verifier.cache_object import ObjectSink
from nydus_erofs.fscache.verifier.store import Store as CheckedStore
from nydus_erofs.fscache.worker.store import Store
from tests.kit.stores import OpenImages, fill


@pytest.fixture
def make(open_image: OpenImages, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """`make(flags)`: a store that fills the file `object`."""
    image = open_image()
    (tmp_path / "plan").write_bytes(image.plan)
    (tmp_path / "blob").write_bytes(image.blob)
    path = tmp_path / "object"

    def make(flags: int = os.O_WRONLY | os.O_DIRECT) -> SimpleNamespace:
        if not path.exists():
            with open(path, "wb") as file:
                file.truncate(round_up(image.map.segments[-1].start + image.map.segments[-1].size, BLOCK_SIZE))
        plan = Plan(Fd(os.open(tmp_path / "plan", os.O_RDONLY)))
        checked = CheckedStore(plan, ObjectSink(Fd(os.open(path, flags))))
        source = FileSource(os.open(tmp_path / "blob", os.O_RDONLY))
        return SimpleNamespace(store=Store(plan, [source]), checked=checked, plan=plan, path=path)

    return make


def test_filled_to_the_last_block(make: Callable[..., SimpleNamespace]) -> None:
    made = make()
    for number in range(len(made.plan.segments)):
        seen: list[int] = []
        fill(made.store, made.checked, number, seen.append)
        assert seen == sorted(seen)
    data = made.path.read_bytes()
    for number in range(len(made.plan.segments)):
        for chunk in made.plan.chunks(number):
            body = data[chunk.uncompressed_offset :][: chunk.uncompressed_size]
            assert chunk.flags & PlanFlags.UNUSED or digest_function(made.plan.digest_algo)(body) == chunk.digest
            end = chunk.uncompressed_offset + chunk.uncompressed_size
            assert not any(data[end : round_up(end, BLOCK_SIZE)])
    # The next verifier finds it all.
    again = make()
    assert all(again.checked.filled(again.plan))
    assert fill(again.store, again.checked, 0, lambda _: None) == 0


@pytest.mark.parametrize(("number", "error"), [(28, CacheFullError), (105, CacheFullError), (5, BackendError)])
def test_a_write_that_fails_is_one_error_and_not_the_end(
    make: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[NydusErofsError],
) -> None:
    """ENOSPC, ENOBUFS (below the limit of free space), EIO: nothing of it is left behind, and it works again."""
    made = make()

    def fail(fd: int, data: memoryview, at: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("nydus_erofs.fscache.verifier.cache_object.os.pwrite", fail)
        with pytest.raises(error):
            fill(made.store, made.checked, 0, lambda _: None)
    fill(made.store, made.checked, 0, lambda _: None)
    assert made.checked.filled(made.plan)[0]
