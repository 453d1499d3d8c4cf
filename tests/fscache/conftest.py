"""What the service's tests share: stores over real files, and (for root) a real service on every engine there is."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.source import BufferSource, FileSource
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.state.layout import segment_name
from nydus_erofs.fscache.state.plan import Plan
from nydus_erofs.fscache.worker.segment_files import SegmentFiles
from nydus_erofs.fscache.worker.store import Store

FIXTURES = ("plain", "lz4", "none-sha256", "toc", "batch")


class OpenImage:
    """An image of `nydus_images`, cut into segments, with its blob in memory."""

    def __init__(self, folder: Path, segment_size: int) -> None:
        self.boot = (folder / "boot").read_bytes()
        (path,) = (folder / "blobs").iterdir()
        self.name, self.blob = path.name, path.read_bytes()
        self.head = read_head(BufferSource(self.boot))
        (self.map,) = localize.read_blob_maps(self.boot, self.head, lambda _: BufferSource(self.blob), segment_size)
        self.plan = pack_plan(self.map)

    def image(self) -> Image:
        """The reader, which knows nothing of segments."""
        return Image(Bootstrap(BufferSource(self.boot)), lambda _: BufferSource(self.blob))


@pytest.fixture
def open_image(nydus_images: Path) -> Callable[..., OpenImage]:
    return lambda name="plain", segment_size=1 << 20: OpenImage(nydus_images / name, segment_size)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Any]:
    """`make_store(image, *blobs, trusted=, where=)`: a worker's store over real files; `.path(n)` is segment n's."""
    made = 0

    def make(image: OpenImage, *blobs: bytes, trusted: bool = True, where: Path | None = None) -> Any:
        nonlocal made
        folder = where or tmp_path / f"store{made}"
        made += 1
        folder.mkdir(exist_ok=True)
        if not (folder / "plan").exists():
            (folder / "plan").write_bytes(image.plan)
            for number in range(len(image.map.segments)):
                (folder / segment_name(number)).touch()
        sources = []
        for number, blob in enumerate(blobs or [image.blob]):
            path = tmp_path / f"blob{made}.{number}"
            path.write_bytes(blob)
            sources.append(FileSource(os.open(path, os.O_RDONLY)))
        plan = Plan(os.open(folder / "plan", os.O_RDONLY))
        target = SegmentFiles(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), trusted=trusted)
        return SimpleNamespace(
            store=Store(plan, target, sources), path=lambda number: folder / segment_name(number), folder=folder
        )

    return make


# --- a real service on every engine there is --------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `engine` run once for each engine that works on this host.

    NYDUS_EROFS_ENGINES=NAME[,NAME] chooses instead of trying.
    """
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", engines(), indirect=True, scope="session")


@cache
def engines() -> tuple[str, ...]:
    if named := os.environ.get("NYDUS_EROFS_ENGINES"):
        return tuple(named.split(","))
    if os.geteuid() != 0:
        return ("fanotify",)  # to be skipped
    where = os.environ.get("TMPDIR", "/var/tmp")
    command = [sys.executable, "-I", "-m", "nydus_erofs", "doctor", "--json", "--state-dir", where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    try:
        found = json.loads(done.stdout)["engines"]
    except ValueError:
        return (f"none: {done.stderr.strip()}",)
    works = tuple(name for name, engine in found.items() if engine["works"])
    return works or (f"none: {[c['detail'] for e in found.values() for c in e['checks'] if not c['ok']]}",)


@pytest.fixture
def engine(request: pytest.FixtureRequest, service_kit: ModuleType) -> Any:
    """One engine, and what tests need to know of it (`service.py`)."""
    if request.param not in service_kit.ENGINES:
        pytest.skip(f"no engine works here: {request.param}")
    return service_kit.ENGINES[request.param]


@pytest.fixture
def service(engine: Any, make_service: Callable[..., Any]) -> Any:
    """A running service on this engine."""
    return make_service(engine)


class Built(NamedTuple):
    """An image that the builder made of a tree."""

    tree: Path
    bootstrap: Path
    blob: Path


@pytest.fixture(scope="session")
def build(service_kit: ModuleType) -> Callable[..., Built]:
    """`build(tree, out, *options)`: an image of a tree."""

    def build(tree: Path, out: Path, *options: str) -> Built:
        out.mkdir(exist_ok=True)
        service_kit.cli("build", tree, "-o", out, *options, check=True)
        (blob,) = json.loads((out / "output.json").read_text())["blobs"]
        return Built(tree, next(out.glob("*.meta")), out / blob)

    return build


@pytest.fixture(scope="session")
def built(cache_disk: Path, build: Callable[..., Built], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image of about 24 MB in 24 segments of 1 MiB: programs, many small files, some large ones."""
    folder = tmp_path_factory.mktemp("built")
    tree, rng = folder / "tree", random.Random(7)
    for name in ("bin", "lib/deep/er", "small", "large"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/cat", tree / "bin")
    (tree / "bin/script").write_text("#!/bin/sh\necho out of the image\n")
    (tree / "bin/script").chmod(0o755)
    for number in range(400):
        path = tree / ("small" if number % 2 else "lib/deep/er") / f"{number}"
        path.write_bytes(rng.randbytes(rng.randrange(1, 9000)))
    for number in range(8):
        # Half compresses well, half not at all.
        data = b"".join(rng.randbytes(32768) + b"%d" % number * 30000 for _ in range(40))
        (tree / "large" / f"{number}").write_bytes(data)
    os.symlink("../large/0", tree / "lib/link")
    os.link(tree / "large/1", tree / "lib/hard")
    return build(tree, folder / "image", "--chunk-size", "0x10000")
