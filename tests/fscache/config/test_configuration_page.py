"""docs/configuration.md is what the records say, and the records' bounds hold."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from nydus_erofs.erofs.errors import ConfigError
from nydus_erofs.fscache.config import backend
from nydus_erofs.fscache.config.backend_file import convert
from nydus_erofs.fscache.config.service import Config, check

ROOT = Path(__file__).parents[3]
NEEDED: dict[str, dict[str, Any]] = {
    "s3": {"bucket_name": "b"}, "registry": {"host": "h", "repo": "r"}, "http-proxy": {"addr": "http://h"},
}  # fmt: skip


def test_the_page_is_printed_from_the_records() -> None:
    printed = subprocess.run(
        [sys.executable, "scripts/configuration_page.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    page = (ROOT / "docs/configuration.md").read_text()
    assert page == printed, "run scripts/configuration_page.py > docs/configuration.md"
    assert "|  |\n" not in page  # every key has a meaning


def bounded(record: type) -> list[tuple[str, Any]]:
    """(field, value out of its bounds)."""
    found: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        for note in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if note.min_length:
                found.append((name, ""))
            else:
                found += [(name, note.le + 1), (name, -1 if note.gt is None else note.gt)]
    return found


@pytest.mark.parametrize(("name", "value"), bounded(Config))
def test_bounds_of_the_service(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        check(Config(**{name: value}))


@pytest.mark.parametrize("kind", NEEDED)
def test_bounds_of_backends(kind: str) -> None:
    record = {"s3": backend.S3, "registry": backend.Registry, "http-proxy": backend.HttpProxy}[kind]
    for name, value in bounded(record):
        with pytest.raises(ConfigError, match=f"[$].{name}"):
            convert(kind, {**NEEDED[kind], name: value})


def test_limits_of_culling_are_in_order() -> None:
    check(Config(cache_run=3, cache_cull=2, cache_stop=1))
    for limits in ((3, 3, 1), (3, 2, 2), (1, 2, 3)):
        run, cull, stop = limits
        with pytest.raises(ConfigError, match="cache_run"):
            check(Config(cache_run=run, cache_cull=cull, cache_stop=stop))
