"""The control socket: garbage in, one refusal out, and the server lives."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import BusyError, ServiceError
from nydus_erofs.fscache import client
from nydus_erofs.fscache.keeper.control import MAX_CLIENTS, ControlServer
from nydus_erofs.fscache.proto import control as proto

GARBAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"mount"',
    b"{}",
    b'{"verb":1}',
    b'{"verb":"format"}',
    b'{"verb":"status","more":1}',
    b'{"verb":"mount"}',
    b'{"verb":"mount","image":1,"target":"/x"}',
    b'{"verb":"mount","image":"/x","target":"/x","blob_dirs":"/x"}',
    b'{"verb":"umount","target":null}',
    b'{"verb":"umount","target":"\\ud800"}',
    b"\xff\xfe",
    b'{"verb":"umount","target":"\xff"}',
    b'{"x":' + b"[" * 200_000,
    b'{"x":' + b'{"x":' * 100_000,
    b"[" * 200_000,
    b"1e999999",
    b"\0" * 100,
]


@pytest.mark.parametrize("line", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_an_error_of_the_decoder(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        proto.decode(line)


@given(st.binary(max_size=300))
def test_any_bytes(line: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        proto.decode(line)


paths = st.text(st.characters(codec="utf-8"), max_size=40)


@given(paths, paths, st.lists(paths, max_size=3), st.none() | st.booleans())
def test_mount_round_trip(bootstrap: str, target: str, dirs: list[str], prefetch: bool | None) -> None:
    line = json.dumps(
        {"verb": "mount", "image": bootstrap, "target": target, "blob_dirs": dirs, "prefetch": prefetch}
    )
    assert proto.decode(line.encode()) == proto.Mount(bootstrap, target, dirs, prefetch=prefetch)


@given(st.text(max_size=50), st.none() | st.text(max_size=50), st.integers(0, 255))
def test_answers_are_one_line(message: str, hint: str | None, code: int) -> None:
    line = proto.refusal(message, hint, code)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"ok": False, "error": message, "hint": hint, "exit_code": code}


# --- the server, on a real socket ---------------------------------------------------------------------------


async def handle(request: proto.Request) -> dict[str, int]:
    match request:
        case proto.Status():
            return {"answer": 42}
        case proto.Umount(target="busy"):
            raise BusyError("busy is in use", hint="wait")
        case proto.Umount(target="none"):
            raise FileNotFoundError(2, "No such file or directory", "/none")
        case proto.Umount(target="full"):
            raise OSError(errno.EMFILE, "Too many open files")
        case proto.Umount(target=target):
            os.stat(target)
    return {}


def serving(path: Path, work: Callable[..., Any]) -> Any:
    """Run `work` in a thread beside a server; what it returns."""

    async def main() -> Any:
        server = ControlServer(str(path), handle)
        await server.start()
        try:
            return await asyncio.wait_for(asyncio.to_thread(work), 30)
        finally:
            server.close()

    failed: list[dict[str, Any]] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    try:
        result = loop.run_until_complete(main())
    finally:
        loop.close()
    assert not failed, failed  # in the service any of these ends the process
    return result


def exchange(path: Path | str, *lines: bytes) -> list[Any]:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        with sock.makefile("rwb") as file:
            answers = []
            for line in lines:
                file.write(line + b"\n")
                file.flush()
                answers.append(file.readline())
            return [json.loads(answer) if answer else None for answer in answers]


@pytest.mark.root
def test_garbage_is_refused_and_the_next_request_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "sock"

    def work() -> None:
        for line in GARBAGE:
            refusal, answer = exchange(path, line.replace(b"\n", b""), b'{"verb":"status"}')
            assert refusal["ok"] is False
            assert refusal["exit_code"] == 2
            assert "\n" not in refusal["error"]
            assert answer == {"ok": True, "answer": 42}

    serving(path, work)


@pytest.mark.root
@settings(max_examples=5, deadline=None)
@given(lines=st.lists(st.binary(min_size=1, max_size=80).map(lambda b: b.replace(b"\n", b"")), max_size=30))
def test_noise(lines: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "noise-sock"
    answers = serving(path, lambda: exchange(path, *lines, b'{"verb":"status"}'))
    assert answers[-1] == {"ok": True, "answer": 42}
    assert all(answer["ok"] is False for answer in answers[:-1])


@pytest.mark.root
def test_errors_come_with_hint_and_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "sock"

    def work() -> list[Any]:
        return exchange(
            path, b'{"verb":"umount","target":"busy"}', b'{"verb":"umount","target":"none"}',
            b'{"verb":"umount","target":"zero\\u0000byte"}', b'{"verb":"umount","target":"full"}',
        )  # fmt: skip

    busy, none, zero, full = serving(path, work)
    assert busy == {"ok": False, "error": "busy is in use", "hint": "wait", "exit_code": 10}
    assert none["error"] == "No such file or directory: /none"
    assert "null" in zero["error"]
    assert full["error"] == "Too many open files"
    assert "doctor" in full["hint"]


@pytest.mark.root
def test_a_line_without_end(tmp_path: Path) -> None:
    """The sender is cut off; others are served."""
    path = tmp_path / "sock"

    def work() -> dict[str, int]:
        with contextlib.suppress(ConnectionError):
            assert exchange(path, b"x" * (2 << 20)) == [None]
        return client.request(str(path), "status")

    assert serving(path, work) == {"answer": 42}


@pytest.mark.root
def test_more_clients_than_there_are_descriptors_for(tmp_path: Path) -> None:
    """Who comes when there are many is turned away, and answered again when they are gone."""
    import socket

    path = tmp_path / "sock"

    def work() -> dict[str, int]:
        with contextlib.ExitStack() as clients:
            for number in range(MAX_CLIENTS + 1):
                sock = clients.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(20)
                sock.connect(str(path))
                if number < MAX_CLIENTS:
                    sock.sendall(b'{"verb":"status"}\n')
                assert bool(sock.recv(100)) == (number < MAX_CLIENTS)
        while True:
            with contextlib.suppress(ServiceError, ConnectionError):
                return client.request(str(path), "status")

    assert serving(path, work) == {"answer": 42}


@pytest.mark.root
def test_clients_that_leave_early(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "sock"

    def work() -> dict[str, int]:
        for sent in (b"", b'{"verb"', b'{"verb":"status"}\n' * 100):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(sent)
        return client.request(str(path), "status")

    assert serving(path, work) == {"answer": 42}


@pytest.mark.root
def test_only_root_can_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "sock"

    def work() -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert serving(path, work) == 0o600


@pytest.mark.root
def test_others_get_no_answer_even_if_they_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    tmp_path.chmod(0o755)

    def work() -> int:
        path.chmod(0o666)
        pid = os.fork()
        if not pid:
            try:
                for parent in reversed(path.parents):
                    os.chdir(parent)
                os.setresuid(65534, 65534, 65534)
                os._exit(0 if exchange(path.name, b'{"verb":"status"}') == [None] else 1)
            except ConnectionError:
                os._exit(0)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert serving(path, work) == 0


def test_two_servers(tmp_path: Path) -> None:
    path = tmp_path / "sock"

    async def main() -> None:
        first, second = ControlServer(str(path), handle), ControlServer(str(path), handle)
        await first.start()
        with pytest.raises(ServiceError, match="another service"):
            await second.start()
        first.close()
        await second.start()  # nobody listens any more
        second.close()

    asyncio.run(main())


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    asyncio.run(start_and_close(path))
    assert not path.exists()


async def start_and_close(path: Path) -> None:
    server = ControlServer(str(path), handle)
    await server.start()
    server.close()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch()], ids=["missing", "a file"])
def test_client_without_a_service(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "sock")
    with pytest.raises(ServiceError, match="no service at") as caught:
        client.request(str(tmp_path / "sock"), "status")
    assert "nydus-erofs serve" in str(caught.value.hint)
