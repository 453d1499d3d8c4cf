"""The compiled declarations of the C library are those of their source."""

from pathlib import Path

from nydus_erofs.fscache.kernel import libc, libc_cdef


def test_compiled_from_its_source(tmp_path: Path) -> None:
    libc_cdef.compile_to(str(tmp_path / "_libc.py"))
    advice = "run 'python -m nydus_erofs.fscache.kernel.libc_cdef'"
    assert Path(libc_cdef.COMPILED).read_bytes() == (tmp_path / "_libc.py").read_bytes(), advice


def test_it_calls() -> None:
    assert libc.lib.prctl(3, 0, 0, 0, 0) in (0, 1, 2)  # PR_GET_DUMPABLE
    assert libc.lib.umount2(b"/nonexistent", 0) == -1
