"""Files whose chunk indexes lead elsewhere: refused for either engine, though only one has the index rewritten."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.prepare.__main__ import prepare
from nydus_erofs.fscache.proto import prepare as proto
from tests.kit.maker import Made, Maker, folder, regular


def run(made: Made, *, localize: bool) -> None:
    """Prepare an image in the current folder, with the blob that it asks for."""
    (blob,) = made.blobs.values()
    ours, theirs = channel.pair()

    def answer() -> None:
        while ours.recv(proto.MAX_MESSAGE):
            with Fd(os.memfd_create("blob")) as file:
                os.write(file.fd, blob)
                channel.send(ours, proto.encode(proto.Bytes(0)), [file])

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        with Fd(os.memfd_create("boot")) as bootstrap:
            os.write(bootstrap.fd, made.boot)
            prepare(theirs, bootstrap, proto.Prepare(1 << 20, localize))
    finally:
        theirs.shutdown(socket.SHUT_RDWR)
        answering.join()
        theirs.close()
        ours.close()


@pytest.fixture
def made() -> Made:
    return Maker(folder({b"a": regular(b"a" * 4000), b"b": regular(b"b" * 4000)})).make()


@pytest.mark.parametrize("localize", [True, False])
def test_a_sound_image(localize: bool, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(made, localize=localize)
    assert (tmp_path / "image.json").exists()
    assert (tmp_path / "boot").exists() == localize


@pytest.mark.parametrize("localize", [True, False])
@pytest.mark.parametrize(("at", "form", "value"), [(4, "<I", 1), (2, "<B", 9), (0, "<H", 1)])
def test_a_chunk_index_that_leads_elsewhere(
    at: int, form: str, value: int, localize: bool, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block is another chunk's, its blob none, its number another's."""
    monkeypatch.chdir(tmp_path)
    boot = bytearray(made.boot)
    (place, changed) = min((made.bootstrap().lookup(name).chunk_index_offset, name) for name in (b"a", b"b"))
    first = struct.unpack_from("<I", boot, place + 4)[0] == 0
    assert first, changed
    struct.pack_into(form, boot, place + at, value)
    with pytest.raises(FormatError, match="a chunk that the blob's chunk info or the chunk table has not"):
        run(Made(bytes(boot), made.blobs), localize=localize)
    assert not (tmp_path / "image.json").exists()
