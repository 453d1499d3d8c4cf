"""A blob that is uploaded while it is built: to a real S3 server and a real registry, with nothing left on disk."""

from __future__ import annotations

import hashlib
import json
import random
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError
from nydus_erofs.fscache.push.stream import BlobStream
from tests.kit.command import cli
from tests.kit.servers import s3
from tests.kit.servers.relay import Fault, Relay


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MB that do not compress: several pieces."""
    folder, rng = tmp_path_factory.mktemp("tree"), random.Random(9)
    for number in range(50):
        (folder / f"{number}").write_bytes(rng.randbytes(1_000_000))
    return folder


@pytest.fixture
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`target(kind)`: (file that names a backend, what else `push` needs, `blob(id)`: its bytes there)."""

    def make(kind: str) -> tuple[Path, Callable[..., Any], Callable[..., Any]]:
        config = tmp_path / f"{kind}.json"
        if kind == "s3":
            server = request.getfixturevalue("s3_server")
            prefix = uuid.uuid4().hex
            fields = {
                "endpoint": server.endpoint, "scheme": "http", "bucket_name": s3.BUCKET,
                "access_key_id": s3.KEY, "access_key_secret": s3.SECRET,
                "blob_prefix": f"{prefix}/blobs/", "meta_prefix": f"{prefix}/meta/",
            }  # fmt: skip
            folder = server.bucket / prefix
            found = lambda blob: (folder / "blobs" / blob).read_bytes()  # noqa: E731
            left = lambda: sorted(path.name for path in folder.rglob("*") if path.is_file())  # noqa: E731
        else:
            server = request.getfixturevalue("registry_make")()
            fields = {"host": server.host, "repo": "team/app", "scheme": "http"}
            data = server._folder / "data/docker/registry/v2/blobs/sha256"
            found = lambda blob: (data / blob[:2] / blob / "data").read_bytes()  # noqa: E731
            left = lambda: [path.name for path in server._folder.glob("data/**/_manifests/tags/*")]  # noqa: E731
        config.write_text(json.dumps({"type": kind, **fields}))
        return config, found, left

    return make


@pytest.mark.parametrize("kind", ["s3", "registry"])
def test_built_there(kind: str, target: Callable[..., Any], tree: Path, tmp_path: Path) -> None:
    config, found, left = target(kind)
    options = ["--backend-push", "--backend-config-file", config, "--name", "app"]
    streamed, plain = tmp_path / "streamed.boot", tmp_path / "plain"
    for _ in range(2):  # the second time it is there already
        done = cli("build", tree, "-B", streamed, *options, check=True)
        assert "app" in done.stdout
        cli("build", tree, "-o", plain, check=True)
        (blob,) = json.loads((plain / "output.json").read_text())["blobs"]
        data = found(blob)
        assert hashlib.sha256(data).hexdigest() == blob
        assert streamed.read_bytes() == next(plain.glob("*.meta")).read_bytes()
        here = {path.name for path in tmp_path.iterdir() if path.name != "registry0"}
        assert here == {config.name, "plain", "streamed.boot"}
        assert left() == (["app"] if kind == "registry" else sorted([blob, "app.meta", "app.meta.verity"]))


@pytest.mark.parametrize("kind", ["s3", "registry"])
def test_without_any_place_here(kind: str, target: Callable[..., Any], tree: Path, tmp_path: Path) -> None:
    """As the documentation of Nydus has it: a file without a type, and no output at all."""
    config, found, left = target(kind)
    fields = json.loads(config.read_text())
    del fields["type"]
    config.write_text(json.dumps(fields))
    for folder in ("here", "tmp"):
        (tmp_path / folder).mkdir()
    done = cli(
        "build", "--name", "app", "--source-dir", tree, "--backend-push", "--backend-type", kind,
        "--backend-config-file", config, check=True, cwd=tmp_path / "here", env={"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    cli("build", tree, "-o", tmp_path / "plain", "--name", "app", check=True)
    (blob,) = json.loads((tmp_path / "plain" / "output.json").read_text())["blobs"]
    assert hashlib.sha256(found(blob)).hexdigest() == blob
    assert left() == (["app"] if kind == "registry" else sorted([blob, "app.meta", "app.meta.verity"]))
    where = fields["bucket_name"] if kind == "s3" else f"{fields['host']}/team/app"
    assert re.search(f"{where}.*: app(.meta)? published", done.stdout)
    assert str(tmp_path) not in done.stdout
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("kind", ["s3", "registry"])
def test_a_server_that_goes_away_ends_the_build(
    kind: str, target: Callable[..., Any], tree: Path, tmp_path: Path
) -> None:
    config, _, left = target(kind)
    fields = json.loads(config.read_text())
    where = "endpoint" if kind == "s3" else "host"
    relay = Relay(int(fields[where].rpartition(":")[2]))
    try:
        config.write_text(json.dumps({**fields, where: relay.endpoint, "timeout": 2, "retry_limit": 0}))
        relay.fault = Fault("reset", after=400, times=1000)
        done = cli(
            "build", tree, "-B", tmp_path / "boot", "--backend-push", "--backend-config-file", config, "--name", "app"
        )
    finally:
        relay.close()
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("\n") <= 3
    assert not (tmp_path / "boot").exists()
    assert left() == []


def test_only_a_folder_needs_a_place(tree: Path, tmp_path: Path) -> None:
    config = tmp_path / "localfs.json"
    config.write_text(json.dumps({"type": "localfs", "dir": str(tmp_path)}))
    done = cli("build", tree, "-B", tmp_path / "boot", "--backend-push", "--backend-config-file", config)
    assert done.returncode == 4
    assert "--output-dir" in done.stderr


class Way:
    piece, parallel = 10, 2

    def __init__(self, fails_at: int = 0) -> None:
        self.pieces: dict[int, bytes] = {}
        self.kept: tuple[str, int] | None = None
        self.dropped, self.fails_at = False, fails_at

    def send(self, number: int, data: bytes) -> None:
        if number == self.fails_at:
            raise BackendError("no")
        self.pieces[number] = data

    def keep(self, sha256: str, size: int) -> None:
        self.kept = sha256, size

    def drop(self) -> None:
        self.dropped = True


def test_pieces_are_whole_and_in_order() -> None:
    way = Way()
    seen: list[int] = []
    stream = BlobStream(way, seen.append)
    for size in (1, 25, 3, 0, 8):
        stream.write(bytes(range(size)))
    stream.finish("ab", 37)
    stream.close()
    assert [len(data) for _, data in sorted(way.pieces.items())] == [10, 10, 10, 7]
    assert b"".join(data for _, data in sorted(way.pieces.items())) == b"".join(
        bytes(range(size)) for size in (1, 25, 3, 0, 8)
    )
    assert (way.kept, way.dropped, sum(seen)) == (("ab", 37), False, 37)


def test_an_error_is_raised_soon_and_nothing_is_kept() -> None:
    way = Way(fails_at=2)
    stream = BlobStream(way, lambda _: None)
    with pytest.raises(BackendError, match="no"):
        for _ in range(100):
            stream.write(bytes(10))
    stream.close()
    assert (way.kept, way.dropped) == (None, True)
    assert max(way.pieces) < 10
