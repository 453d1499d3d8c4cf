"""What all tests share: independent judges, images built by Nydus, and the law on skipping.

A skipped test proves nothing.  With NYDUS_EROFS_NO_SKIPS=1 (set in CI) every skip is a failure, but for
those in ALLOWED_SKIPS.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.kit import failures
from tests.kit.engines import FANOTIFY, Engine
from tests.kit.images import unpack_nydus_images
from tests.kit.mounts import filesystem_of, mounted
from tests.kit.oracles import Oracles
from tests.kit.service import MakeService, Service

# A loaded machine is slow, not wrong: time limits are pytest's alone.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

_PASSED = pytest.StashKey[bool]()
NO_SKIPS = os.environ.get("NYDUS_EROFS_NO_SKIPS") == "1"

# Pattern of test ids -> the one reason for which they may be skipped even in CI.  Keep it short.
ALLOWED_SKIPS = {
    # tests/vm boots kernels that have it, and runs them there.
    "tests/fscache/service/test_cachefiles.py::*": "no cachefiles engine here",
}


# --- skipping -------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `root` need root: they mount, and set fanotify marks."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: run scripts/test as root"))


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn an unexplained skip into a failure.  An expected failure (xfail) also counts as skipped: leave it."""
    if not (NO_SKIPS and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if any(fnmatch.fnmatch(report.nodeid, which) and why in reason for which, why in ALLOWED_SKIPS.items()):
        return
    report.outcome = "failed"
    report.longrepr = f"{reason}\nNYDUS_EROFS_NO_SKIPS=1: a test that did not run counts as failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    item.stash[_PASSED] = report.when == "call" and report.passed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


# --- what all rooms test with ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def oracles() -> Oracles:
    """Real fsck.erofs, dump.erofs, mkfs.erofs, nydus-image, nydusd: `oracles.fsck_erofs` is a Path."""
    return Oracles()


@pytest.fixture(scope="session")
def nydus_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that nydus-image 2.4.4 built, one folder an option set, and expected.json.

    Each has `boot` (the bootstrap), `out.json` and `blobs/`: plain, lz4, none-sha256, toc, inline-toc,
    batch, encrypt, tar, zran, tar-ref, tarfs; `merge/` holds layers.  Shared by the session: read only.
    """
    folder = tmp_path_factory.mktemp("nydus-images")
    unpack_nydus_images(folder)
    return folder


@pytest.fixture(scope="session")
def cache_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on a filesystem that can hold the service's cache."""
    base = tmp_path_factory.getbasetemp()
    kind = filesystem_of(base)
    if kind not in ("ext4", "xfs", "btrfs"):
        pytest.skip(f"the cache needs ext4, xfs or btrfs, and {base} is on {kind}: name a folder with --basetemp")
    return base


def _aftermath(name: str, services: Sequence[Service]) -> None:
    ours = [service for service in services if service.engine is FANOTIFY]
    lines = failures.rows().get(name)
    if lines and any(service.events("ready") for service in ours):  # else it did not start
        assert any(service.events(event) for service in ours for event in lines), (name, lines)
    for service in ours:
        service.end_well()


@pytest.fixture
def make_service(
    cache_disk: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[MakeService]:
    """`make_service(engine, **config)`: a running service in folders of its own; it ends with the test.

    No test may leave a traceback in its log. After one marked as a failure of the table in docs/serving.md, the log
    says what that table says, and a service that lives ends well.
    """
    services = []

    def make(
        engine: Engine = FANOTIFY, *,
        start: bool = True, work: Path | None = None, state: Path | None = None, **config: Any,
    ) -> Service:  # fmt: skip
        made = Service(work or tmp_path_factory.mktemp("s"), engine, **config)
        made.state = state or made.state
        services.append(made)
        closing.callback(made.close)
        return made.start() if start else made

    with contextlib.ExitStack() as closing:
        yield make
        if request.node.stash.get(_PASSED, False):
            for row in request.node.iter_markers("failure"):
                _aftermath(row.args[0], services)
    for made in services:
        assert "Traceback" not in made.log_text(), made.log_text()[-4000:]
        assert not mounted(made.work)
