"""What the service's tests share: stores over real files, and (for root) a real service on every engine there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.engines import CACHEFILES, ENGINES, Engine, hindrances
from tests.kit.images import Built, build, plant
from tests.kit.service import MakeService, Service
from tests.kit.stores import MadeStore, MakeStore, OpenImage, OpenImages, make_store


@pytest.fixture
def open_image(nydus_images: Path) -> OpenImages:
    return lambda name="plain", segment_size=1 << 20: OpenImage(nydus_images / name, segment_size)


@pytest.fixture(name="make_store")
def _make_store(tmp_path: Path) -> MakeStore:
    made = 0

    def make(image: OpenImage, *blobs: bytes, where: Path | None = None) -> MadeStore:
        nonlocal made
        made += 1
        return make_store(where or tmp_path / f"store{made}", image, *blobs)

    return make


# --- a real service on every engine there is --------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `engine` run once for each engine that works on this host."""
    if "engine" in metafunc.fixturenames:
        works = [name for name in ENGINES if not hindrances()[name]]
        metafunc.parametrize("engine", works or [""], indirect=True, scope="session")


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    """One engine, and what tests need to know of it."""
    if not request.param:
        pytest.skip(f"no engine works here: {hindrances()}")
    return ENGINES[request.param]


@pytest.fixture(scope="session")
def cachefiles() -> Engine:
    """The engine that few kernels have."""
    if why := hindrances()["cachefiles"]:
        pytest.skip(f"no cachefiles engine here: {why}")
    return CACHEFILES


@pytest.fixture
def service(engine: Engine, make_service: MakeService) -> Service:
    """A running service on this engine."""
    return make_service(engine)


@pytest.fixture(scope="session")
def built(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image of about 24 MB in 24 segments of 1 MiB."""
    folder = tmp_path_factory.mktemp("built")
    plant(folder / "tree")
    return build(folder / "tree", folder / "image", "--chunk-size", "0x10000")
