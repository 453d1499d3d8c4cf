"""The on-demand protocol as bytes: what the kernel may send, and what it never must."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import ConfigError, KernelError
from nydus_erofs.fscache.config.reference import check_name
from nydus_erofs.fscache.doctor.cachefiles import kernel_floor
from nydus_erofs.fscache.proto import cachefiles as proto
from nydus_erofs.fscache.proto.cachefiles import Close, Open, Read

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
names = st.text("abc.:-_ /\u00e9", min_size=1, max_size=60)


def message(msg_id: int, opcode: int, object_id: int, body: bytes = b"") -> bytes:
    """include/uapi/linux/cachefiles.h: struct cachefiles_msg."""
    return struct.pack("<IIII", msg_id, opcode, 16 + len(body), object_id) + body


def open_body(volume: str, cookie: str, fd: int) -> bytes:
    key = f"erofs,{volume}".encode() + b"\0"
    return struct.pack("<IIII", len(key), len(cookie.encode()), fd, 0) + key + cookie.encode()


opens = st.builds(lambda m, o, v, c, fd: (proto.Open(m, o, v, c, fd), message(m, 0, o, open_body(v, c, fd))),
                  u32, u32, names, names, st.integers(0, (1 << 31) - 1))  # fmt: skip
closes = st.builds(lambda m, o: (proto.Close(m, o), message(m, 1, o)), u32, u32)
reads = st.builds(lambda m, o, at, n: (proto.Read(m, o, at, n), message(m, 2, o, struct.pack("<QQ", at, n))),
                  u32, u32, u64, u64)  # fmt: skip
messages = st.one_of(opens, closes, reads)


@given(messages)
def test_messages(made: tuple[Close, bytes] | tuple[Open, bytes] | tuple[Read, bytes]) -> None:
    expected, packet = made
    assert proto.parse(packet) == expected


@given(messages, st.data())
def test_truncated(made: tuple[Close, bytes] | tuple[Open, bytes] | tuple[Read, bytes], data: st.DataObject) -> None:
    _, packet = made
    with pytest.raises(KernelError):
        proto.parse(packet[: data.draw(st.integers(0, len(packet) - 1))])


@given(u32, st.integers(3, (1 << 32) - 1), u32, st.binary(max_size=64))
def test_unknown_operations(msg_id: int, opcode: int, object_id: int, body: bytes) -> None:
    with pytest.raises(KernelError, match="unknown"):
        proto.parse(message(msg_id, opcode, object_id, body))


@given(st.binary(max_size=600))
def test_noise(packet: bytes) -> None:
    with contextlib.suppress(KernelError):
        proto.parse(packet)


@given(messages, st.data())
def test_flipped_bits(
    made: tuple[Close, bytes] | tuple[Open, bytes] | tuple[Read, bytes], data: st.DataObject
) -> None:
    packet = bytearray(made[1])
    for at in data.draw(st.lists(st.integers(0, len(packet) * 8 - 1), min_size=1, max_size=8)):
        packet[at // 8] ^= 1 << at % 8
    with contextlib.suppress(KernelError):
        proto.parse(bytes(packet))


@given(u32, u32, st.integers(0, 300), st.integers(0, 300), st.binary(max_size=200))
def test_key_sizes_that_lie(msg_id: int, object_id: int, volume: int, cookie: int, keys: bytes) -> None:
    body = struct.pack("<IIII", volume, cookie, 5, 0) + keys
    if volume + cookie > len(keys):
        with pytest.raises(KernelError, match="do not fit"):
            proto.parse(message(msg_id, 0, object_id, body))
    else:
        assert isinstance(proto.parse(message(msg_id, 0, object_id, body)), proto.Open)


@given(st.integers(-5, 105), st.integers(-5, 105), st.integers(-5, 105))
def test_limits_are_never_refused_by_the_kernel(run: int, cull: int, stop: int) -> None:
    """Each command is checked alone against the values of the moment (fs/cachefiles/daemon.c)."""
    limits = proto.CullLimits(run, cull, stop)
    if not 0 <= stop < cull < run < 100:
        with pytest.raises(ConfigError):
            proto.set_up("/cache", "tag", limits)
        return
    commands = [command.decode() for command in proto.set_up("/cache", "tag", limits)]
    assert commands[:2] == ["dir /cache", "tag tag"]
    assert commands[-1] == "bind ondemand"
    for kind in "bf":
        now = {"stop": 1, "cull": 5, "run": 7}
        for command in commands[2:-1]:
            name, value = command.rstrip("%").split(" ")
            if name[0] == kind:
                now[name[1:]] = int(value)
                assert now["stop"] < now["cull"] < now["run"] < 100, commands
        assert now == {"stop": stop, "cull": cull, "run": run}


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a,b", "x" * 64, "ü", "a\n", "a\0"])
def test_names_that_could_crash_a_kernel(name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        check_name("fsid", name)
    assert check_name("fsid", "Az0._:-") == "Az0._:-"


@pytest.mark.parametrize(
    ("release", "version", "ok"),
    [
        ("6.1.0-56-cloud-amd64", "#1 SMP Debian 6.1.192-2 (2026-10-01)", True),
        ("6.1.0-20-amd64", "#1 SMP Debian 6.1.85-1 (2024-04-11)", False),
        ("6.1.105", "#1 SMP", False),
        ("6.1.106", "#1 SMP", True),
        ("6.6.41", "#1", False),
        ("6.6.42", "#1", True),
        ("6.8.12", "#1", False),
        ("5.19.17", "#1", False),
        ("6.9.10", "#1", False),
        ("6.9.11", "#1", True),
        ("6.10.0", "#1", True),
        ("6.12.117+deb12-cloud-amd64", "#1 SMP Debian 6.12.117-1~deb12u1", True),
        ("7.0.1", "#1", True),
    ],
)
def test_floor_of_kernels(release: str, version: str, ok: bool) -> None:
    check = kernel_floor(release, version)
    assert check.ok is ok
    assert ok or "allow_old_kernel" in check.fix
