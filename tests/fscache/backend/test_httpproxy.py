"""The http-proxy client: files behind HTTP, over TCP and over a unix socket."""

from __future__ import annotations

import contextlib
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError
from nydus_erofs.fscache.backend.httpproxy import HttpProxyClient
from nydus_erofs.fscache.config import backend as config
from nydus_erofs.fscache.credentials.basic import encode
from tests.kit.servers.proxy import ForwardProxy
from tests.kit.servers.stub import Reply, Request, Seen, Stub

DATA = os.urandom(200_000)


def client(addr: str, **fields: Any) -> HttpProxyClient:
    backend = config.HttpProxy(addr=addr, path="/blobs", **{"timeout": 2.0, "connect_timeout": 2.0, **fields})
    checked = config.check(backend)
    assert isinstance(checked, config.HttpProxy)
    return HttpProxyClient(checked, 2)


def files(request: Request) -> None:
    if request.path != "/blobs/b1":
        request.send(404, b"no such file")
    elif request.command == "HEAD":
        request.send(200, b"", Content_Length=len(DATA), ETag='"x"')
    else:
        first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
        part = DATA[int(first) : int(last) + 1]
        request.send(206, part, Content_Range=f"bytes {first}-{last}/{len(DATA)}")


def check(reader: HttpProxyClient, name: str = "/blobs/b1") -> None:
    assert reader.stat(name) == (len(DATA), '"x"')
    for offset, length in ((0, 1), (0, len(DATA)), (777, 5000)):
        assert reader.read(name, offset, length) == DATA[offset : offset + length]
    with pytest.raises(BlobNotFoundError, match="/blobs/b2"):
        reader.stat("/blobs/b2")
    with pytest.raises(BlobNotFoundError, match="no such file"):
        reader.read("/blobs/b2", 0, 1)


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`unix(reply)`: the path of a socket behind which a stub answers."""

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        reply: Reply
        requests: list[Seen]

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with contextlib.ExitStack() as closing:

        def make(reply: Reply) -> str:
            path = str(tmp_path / "sock")
            server = Server(path, Request)
            server.reply, server.requests = reply, []
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            closing.callback(server.server_close)
            closing.callback(server.shutdown)
            return path

        yield make


def test_tcp() -> None:
    with Stub(files) as stub:
        check(client(f"http://{stub.endpoint}"))
        check(client(f"http://{stub.endpoint}/"))


def test_unix(unix: Callable[..., Any], tmp_path: Path) -> None:
    path = unix(files)
    check(client(path))
    with pytest.raises(BackendError, match="/none") as info:
        client(str(tmp_path / "none")).stat("/blobs/b1")
    assert info.value.retryable


def test_unix_stalls(unix: Callable[..., Any]) -> None:
    stop = threading.Event()
    reader = client(unix(lambda request: stop.wait(3)), timeout=0.3)
    with pytest.raises(BackendError, match="nothing more") as info:
        reader.read("/blobs/b1", 0, 1)
    stop.set()
    assert info.value.retryable


def test_unusual_names() -> None:
    with Stub(lambda request: request.send(200, b"", Content_Length=1)) as stub:
        client(f"http://{stub.endpoint}").stat("/blobs/a b?c#d%é/../x")
        assert stub.requests[0].path in ("/blobs/a%20b%3Fc%23d%25%C3%A9/../x", "/blobs/x")


def test_credentials_in_the_address() -> None:
    def reply(request: Request) -> None:
        if request.headers["Authorization"] == f"Basic {encode('me', 'pass:word')}":
            files(request)
        else:
            request.send(401, b"not with pass:ward")

    with Stub(reply) as stub:
        reader = client(f"http://me:pass%3Aword@{stub.endpoint}")
        assert reader.read("/blobs/b1", 0, 9) == DATA[:9]
        wrong = client(f"http://me:pass%3Award@{stub.endpoint}")
        with pytest.raises(DeniedError) as info:
            wrong.read("/blobs/b1", 0, 9)
        for text in (str(info.value), repr(info.value), repr(wrong), wrong.label):
            assert "pass" not in text


def test_redirects_are_not_followed() -> None:
    with Stub(lambda request: request.send(302, Location="/elsewhere?secret")) as stub:
        with pytest.raises(BackendError, match="302") as info:
            client(f"http://{stub.endpoint}").read("/blobs/b1", 0, 9)
        assert not info.value.retryable
        assert "secret" not in str(info.value)
        assert len(stub.requests) == 1


def test_size_must_be_told() -> None:
    for length in ("", "-1", "9" * 30):
        reply = lambda request, n=length: request.send(200, Content_Length=n)  # noqa: E731
        with Stub(reply) as stub, pytest.raises(BackendError, match="does not tell its size"):
            client(f"http://{stub.endpoint}").stat("/blobs/b1")


def test_proxy() -> None:
    with Stub(files) as stub, contextlib.closing(ForwardProxy()) as proxy:
        check(client(f"http://{stub.endpoint}", proxy=config.Proxy(url=proxy.url)))
        assert {target.partition("/blobs")[0] for _, target, _ in proxy.requests} == {f"http://{stub.endpoint}"}
