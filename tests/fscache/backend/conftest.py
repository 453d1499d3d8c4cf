"""Servers that the clients of backends are tested against."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SERVERS = Path(__file__).parents[2] / "servers"


def _load(name: str) -> ModuleType:
    """`tests/servers/NAME.py`, under a name of its own: tests are not a package."""
    spec = importlib.util.spec_from_file_location(f"servers_{name}", SERVERS / f"{name}.py")
    assert spec and spec.loader
    if spec.name not in sys.modules:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[spec.name]


@pytest.fixture(scope="session")
def s3_kit() -> ModuleType:
    """`tests/servers/s3.py`."""
    return _load("s3")


@pytest.fixture(scope="session")
def s3_server(s3_kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running versitygw with one bucket (`Gateway`), shared by the session: use names of your own."""
    gateway = s3_kit.Gateway(tmp_path_factory.mktemp("s3"))
    yield gateway
    gateway.close()


@pytest.fixture(scope="session")
def registry_kit() -> ModuleType:
    """`tests/servers/registry.py`, and in it `tokens`, `proxy` and `stub`: the other modules of servers."""
    kit = _load("registry")
    kit.tokens, kit.proxy, kit.stub = _load("tokens"), _load("proxy"), _load("s3")  # type: ignore[attr-defined]
    return kit


@pytest.fixture
def registry_make(registry_kit: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`registry_make(auth, tls)`: a running `Registry`, which ends with the test."""
    made = []

    def make(auth: Any = "", tls: Any = None) -> Any:
        folder = tmp_path / f"registry{len(made)}"
        folder.mkdir()
        made.append(registry_kit.Registry(folder, auth, tls))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def registry_tokens(registry_kit: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`registry_tokens(**options)`: a running `TokenServer`, which ends with the test."""
    made = []

    def make(**options: Any) -> Any:
        made.append(registry_kit.tokens.TokenServer(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
