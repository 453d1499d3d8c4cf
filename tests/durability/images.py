"""The images of the workload, and the trees that they must read as."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nydus_erofs.erofs import merkle
from tests.kit.images import Built, build
from tests.kit.servers import s3
from tests.kit.servers.stub import Request, Stub


class Image(NamedTuple):
    """What to ask a service for, and the tree that is then read."""

    tree: Path
    image: str
    fields: dict[str, Any]


def plant(tree: Path, seed: int) -> None:
    """A few large files and some small ones."""
    rng = random.Random(seed)
    tree.mkdir(parents=True)
    for number in range(8):
        (tree / f"large{number}").write_bytes(rng.randbytes(512 << 10) + b"%d" % number * (256 << 10))
    for number in range(40):
        (tree / f"small{number}").write_bytes(rng.randbytes(rng.randrange(1, 20000)))


def _build(folder: Path, seed: int) -> Built:
    plant(folder / "tree", seed)
    return build(folder / "tree", folder / "image", "--chunk-size", "0x10000")


def _bucket(built: Built) -> Stub:
    """A server that has one image."""
    files = {path.name: s3.objects(path.read_bytes()) for path in (built.bootstrap, built.blob)}

    def reply(request: Request) -> None:
        name = request.path.partition("?")[0].rpartition("/")[2]
        files[name](request) if name in files else request.send(404)

    return Stub(reply)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[dict[str, Image]]:
    """Two that share a blob, two of their own, one of which comes late, one of which the bootstrap is kept
    (`--digest`), and one on a server."""
    built = {
        name: _build(folder / name, seed) for seed, name in enumerate(("first", "other", "late", "kept", "afar"))
    }
    images = {name: Image(one.tree, str(one.bootstrap), {}) for name, one in built.items()}
    twin = built["first"].bootstrap.with_name("twin.meta")
    twin.write_bytes(built["first"].bootstrap.read_bytes())
    images["twin"] = Image(built["first"].tree, str(twin), {})
    identity = merkle.identity(built["kept"].bootstrap.read_bytes())
    images["kept"] = images["kept"]._replace(fields={"digest": identity})
    with _bucket(built["afar"]) as bucket:
        config = folder / "afar.json"
        document = {
            "type": "s3", "endpoint": bucket.endpoint, "scheme": "http", "bucket_name": s3.BUCKET,
            "region": "us-east-1", "access_key_id": s3.KEY, "access_key_secret": s3.SECRET,
        }  # fmt: skip
        config.write_text(json.dumps(document))
        name = f"s3://{s3.BUCKET}/{built['afar'].bootstrap.name}"
        images["afar"] = Image(built["afar"].tree, name, {"backend_file": str(config)})
        yield images
