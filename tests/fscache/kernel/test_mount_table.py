"""mountinfo: whatever anybody has mounted wherever, what can be read of it is read."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.fscache.kernel import mount
from nydus_erofs.fscache.kernel.mount import mounts
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.mounts import unmount_all
from tests.kit.reading import read
from tests.kit.service import MakeService

GOOD = b"36 35 98:0 /root /mnt ro,nosuid,nodev shared:1 - erofs /state/boot ro,user_xattr,cache_strategy=readaround"
PIECES = [GOOD, b" ", b"\n", b" - ", b"\\", b"\\0", b"x"]
SetTable = Callable[[bytes], None]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> SetTable:
    """`table(raw)`: these bytes are mountinfo."""
    content = b""

    def opened(path: str, mode: str, buffering: int = -1) -> io.BytesIO:
        assert (path, mode) == ("/proc/self/mountinfo", "rb")
        return io.BytesIO(content)

    def put(raw: bytes) -> None:
        nonlocal content
        content = raw

    monkeypatch.setattr(mount, "open", opened, raising=False)
    return put


def test_a_line(table: SetTable) -> None:
    table(GOOD + b"\n")
    (entry,) = mounts()
    assert entry == mount.MountEntry(
        36,
        "/mnt",
        2 | 4,
        "erofs",
        "/state/boot",
        {"ro": "", "user_xattr": "", "cache_strategy": "readaround"},
        os.makedev(98, 0),
    )


@pytest.mark.parametrize(
    ("field", "target"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b", "/a\tb"),
        (rb"/a\012b", "/a\nb"),
        (rb"/a\134b", "/a\\b"),
        (rb"/a\134040b", "/a\\040b"),
        (b"/a\rb", "/a\rb"),
        (b"/a\x0b\x0c\x1c\x85b", "/a\x0b\x0c\x1c\udc85b"),  # more that counts as the end of a line elsewhere
        ("/ä\u2028b".encode(), "/ä\u2028b"),
        (b"/\xff\xfe", "/\udcff\udcfe"),
    ],
)
def test_names(field: bytes, target: str, table: SetTable) -> None:
    """Spelled as the kernel spells them; the lines around are as they were."""
    lines = [GOOD, GOOD.replace(b"/mnt", field), GOOD]
    table(b"\n".join(lines) + b"\n")
    assert [entry.target for entry in mounts("erofs")] == ["/mnt", target, "/mnt"]


@pytest.mark.parametrize(
    "line",
    [b"", b" - ", b" - erofs ", GOOD[:40], GOOD.replace(b"36", b"x"), GOOD.replace(b"/mnt", rb"/\777"),
     GOOD.replace(b"/mnt", b"/\\"), GOOD.replace(b"/mnt", rb"/\9zz"), b"\0" * 100, b"\xff" * 100,
     GOOD.partition(b" ro,user")[0]],
)  # fmt: skip
def test_lines_that_make_no_sense_are_left_out(line: bytes, table: SetTable) -> None:
    table(b"%b\n%b\n%b\n" % (GOOD, line, GOOD))
    assert [entry.target for entry in mounts()] == ["/mnt", "/mnt"]
    assert [entry.target for entry in mounts("erofs")] == ["/mnt", "/mnt"]


@pytest.mark.parametrize("options", [b"", b",", b"=", b"a=b=c,,=x", b"lowerdir=/a\\040b:/c - erofs d", b"\xff"])
def test_options_of_odd_shape(options: bytes, table: SetTable) -> None:
    table(GOOD.replace(b"erofs /state/boot ro,user_xattr,cache_strategy=readaround", b"overlay o " + options) + b"\n")
    (entry,) = mounts()
    assert (entry.target, entry.fs_type, entry.source) == ("/mnt", "overlay", "o")


def test_a_type_is_no_word_among_others(table: SetTable) -> None:
    table(b"36 35 98:0 / /mnt ro - tmpfs erofs ro\n")
    assert not list(mounts("erofs"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=300)
    | st.lists(st.sampled_from([GOOD, b" ", b"\n", b" - ", b"\\", b"\\0", b"x"])).map(b"".join)
)
def test_any_bytes(raw: bytes, table: SetTable) -> None:
    table(b"%b\n%b\n" % (raw, GOOD))
    assert "/mnt" in [entry.target for entry in mounts()]


# --- the kernel's own -----------------------------------------------------------------------------------

HOSTILE = [
    b"cr\rlf\n", b"\n- erofs x ro\n", b"b l a n k - erofs \\ x", b"back\\slash\\040", b"\xff\xfe\x80",
    b"tab\t\x0b\x0c\x1c\x85", "\u2028\u0085".encode(),
]  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[list[str]]:
    """Filesystems mounted on folders with names that nobody would choose, sources likewise."""
    folder = os.fsencode(tmp_path / "hostile")
    os.mkdir(folder)
    targets = [os.path.join(folder, name) for name in HOSTILE]
    try:
        for target, name in zip(targets, HOSTILE, strict=True):
            os.mkdir(target)
            subprocess.run(["mount", "-i", "-t", "tmpfs", b"s" + name, target], check=True, timeout=20)
        yield [os.fsdecode(target) for target in targets]
    finally:
        for target in targets:
            subprocess.run(["umount", "-l", target], check=False, timeout=20, capture_output=True)


@pytest.mark.root
def test_what_the_kernel_tells_of_hostile_names(hostile: list[str]) -> None:
    sources = {entry.target: entry.source for entry in mounts("tmpfs")}
    assert [sources.get(target) for target in hostile] == ["s" + os.fsdecode(name) for name in HOSTILE]


@pytest.mark.root
def test_a_service_among_hostile_mounts(hostile: list[str], make_service: MakeService, built: Built) -> None:
    """It starts, mounts, notices what is unmounted, and takes over what is there."""
    service = make_service(FANOTIFY)
    target = service.mount(built.bootstrap)
    service.umount(service.mount(built.bootstrap))
    service.kill_all()
    service.start()
    assert "error" not in read(target / "large/0")
    unmount_all(target)
    assert service.stop() == 0
