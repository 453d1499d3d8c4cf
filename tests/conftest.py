"""What all tests share: independent judges, images built by Nydus, and the law on skipping.

The judges, and the servers, are programs of other projects (erofs-utils, Nydus, versitygw, distribution).  They come
from `scripts/oracles`; an environment variable (FSCK_EROFS, DUMP_EROFS, MKFS_EROFS, NYDUS_IMAGE, NYDUSD, VERSITYGW,
REGISTRY) names another one.

A skipped test proves nothing.  With NYDUS_EROFS_NO_SKIPS=1 (set in CI) every skip is a failure, but for
those in ALLOWED_SKIPS.
"""

import contextlib
import fnmatch
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import zstandard

# A loaded machine is slow, not wrong: time limits are pytest's alone.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

NO_SKIPS = os.environ.get("NYDUS_EROFS_NO_SKIPS") == "1"

# Pattern of test ids -> why that test may be skipped even in CI.  Keep it short, and the reasons true.
ALLOWED_SKIPS: dict[str, str] = {}

HERE = Path(__file__).parent
IMAGES = HERE / "data" / "nydus-v2.4-images.tar.zst"


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
    if any(fnmatch.fnmatch(report.nodeid, pattern) for pattern in ALLOWED_SKIPS):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\nNYDUS_EROFS_NO_SKIPS=1: a test that did not run counts as failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


# --- judges ---------------------------------------------------------------------------------------------


def _cache() -> Path:
    """Where `scripts/oracles` keeps what it fetched: the same rule as in scripts/lib.sh."""
    if own := os.environ.get("NYDUS_EROFS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nydus-erofs"


class Oracles:
    """Paths of independent programs.  Asking for one that is missing skips the test that asked."""

    def _find(self, variable: str, kept: str, minimum: tuple[int, int] | None = None) -> Path:
        """The program VARIABLE names, else the one kept in the cache, else one on PATH that is new enough.

        A program named explicitly is believed.  One on PATH must be of the version `minimum` at least: the
        erofs-utils of Debian 12 (1.5) reject valid images.  Nydus programs do not know their version.
        """
        if named := os.environ.get(variable):
            if os.access(named, os.X_OK):
                return Path(named)
            pytest.fail(f"{variable}={named} is not an executable file")
        if os.access(path := _cache() / kept, os.X_OK):
            return path
        name = path.name
        if not (found := shutil.which(name)):
            missing = path.parent.parent / "why-missing"  # left there by a scripts/oracles that failed
            why = f" ({missing.read_text().strip()})" if missing.exists() else ""
            pytest.skip(f"no {name} here{why}: run scripts/oracles, or set {variable}")
        if minimum is None:
            return Path(found)
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=False)
        match = re.search(r"(\d+)\.(\d+)", shown.stdout + shown.stderr)
        if not match or (int(match[1]), int(match[2])) < minimum:
            wanted = ".".join(map(str, minimum))
            have = match[0] if match else "of unknown version"
            pytest.skip(f"{found} is {have}, {wanted} is needed: run scripts/oracles, or set {variable}")
        return Path(found)

    @property
    def fsck_erofs(self) -> Path:
        return self._find("FSCK_EROFS", "erofs-utils/bin/fsck.erofs", (1, 9))

    @property
    def dump_erofs(self) -> Path:
        return self._find("DUMP_EROFS", "erofs-utils/bin/dump.erofs", (1, 9))

    @property
    def mkfs_erofs(self) -> Path:
        return self._find("MKFS_EROFS", "erofs-utils/bin/mkfs.erofs", (1, 9))

    @property
    def nydus_image(self) -> Path:
        return self._find("NYDUS_IMAGE", "nydus-2.2.0/bin/nydus-image")

    @property
    def nydusd(self) -> Path:
        return self._find("NYDUSD", "nydus-2.2.0/bin/nydusd")

    @property
    def versitygw(self) -> Path:
        return self._find("VERSITYGW", "servers/bin/versitygw")

    @property
    def registry(self) -> Path:
        return self._find("REGISTRY", "servers/bin/registry")


@pytest.fixture(scope="session")
def oracles() -> Oracles:
    """Real fsck.erofs, dump.erofs, mkfs.erofs, nydus-image, nydusd: `oracles.fsck_erofs` is a Path."""
    return Oracles()


# --- images ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nydus_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that nydus-image 2.4.4 built, one folder an option set, and expected.json.

    Each has `boot` (the bootstrap), `out.json` and `blobs/`: plain, lz4, none-sha256, toc, inline-toc,
    batch, encrypt, tar, zran, tar-ref, tarfs; `merge/` holds layers.  Shared by the session: read only.
    """
    folder = tmp_path_factory.mktemp("nydus-images")
    tar_bytes = zstandard.ZstdDecompressor().stream_reader(IMAGES.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        # The default changes with Python's version; these are plain files and folders of our own.
        tar.extraction_filter = staticmethod(lambda member, path: member)
        tar.extractall(folder)
    return folder


# --- the service ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def service_kit() -> ModuleType:
    """`tests/fscache/service.py`: a real service to start, ask, kill and clean up after, and readers of mounts."""
    path = HERE / "fscache" / "service.py"
    spec = importlib.util.spec_from_file_location("service_kit", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cache_disk(service_kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on a filesystem that can hold the service's cache."""
    base = tmp_path_factory.getbasetemp()
    kind = service_kit.filesystem_of(base)
    if kind not in ("ext4", "xfs", "btrfs"):
        pytest.skip(f"the cache needs ext4, xfs or btrfs, and {base} is on {kind}: name a folder with --basetemp")
    return base


@pytest.fixture
def make_service(
    service_kit: ModuleType, cache_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """`make_service(engine, **config)`: a running service in folders of its own; it ends with the test.

    No test may leave a traceback in its log.
    """
    services = []

    def make(engine: Any = None, *, start: bool = True, work: Path | None = None, **config: Any) -> Any:
        folder = work or tmp_path_factory.mktemp("s")
        service = service_kit.Service(folder, engine or service_kit.ENGINES["fanotify"], **config)
        services.append(service)
        closing.callback(service.close)
        return service.start() if start else service

    with contextlib.ExitStack() as closing:
        yield make
    for service in services:
        assert "Traceback" not in service.log_text(), service.log_text()[-4000:]
        assert not service_kit.mounted(service.work)
