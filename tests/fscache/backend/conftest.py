"""Servers that the clients of backends are tested against."""

import importlib.util
import sys
from collections.abc import Iterator
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
