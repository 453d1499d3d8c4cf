"""The contract battery: what a mount is, tested on this guest's kernel by the tests that run on the host too.

Each test of ``tests/fscache`` named here is a line of the support matrix. A guest is slow: where several tests
show the same, the one that shows most is chosen.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from . import report

_PATIENCE = 180  # seconds
_AFAR, _CONTRACT, _CRASH = "backend/test_service.py", "service/test_contract.py", "service/test_crash.py"
_COMPROMISED = "service/test_compromised.py"
_PATIENT = "service/test_patience.py"
_TESTS = Path(__file__).resolve().parent.parent / "tests/fscache"

# test -> what it verifies, as the matrix says it
BOTH = {
    f"{_CONTRACT}::test_several_images_at_once": "five images of Nydus and one of ours: every file and attribute",
    f"{_CONTRACT}::test_nothing_is_fetched_before_it_is_read": "names and attributes cost no data",
    f"{_CONTRACT}::test_eight_readers_at_once": "eight readers at once, each byte fetched once",
    f"{_CONTRACT}::test_mmap": "every file through mmap",
    f"{_CONTRACT}::test_programs_run_from_it": "programs run from it",
    f"{_CONTRACT}::test_one_blob_in_two_images_is_fetched_once": "one blob in two images is fetched once",
    f"{_CONTRACT}::test_a_busy_mount_is_named_and_works_on": "unmounting what is in use is refused",
    f"{_CONTRACT}::test_prefetch_completes_by_itself": "prefetched: no read waits any more",
    f"{_CONTRACT}::test_after_a_restart_nothing_is_fetched_twice": "restarted: nothing is fetched twice",
    f"{_CONTRACT}::test_a_damaged_blob_gives_eio_and_heals": "damaged blob: EIO; repaired: right bytes",
    f"{_AFAR}::test_reads_as_it_was_and_is_fetched_once": "from a server: each byte once, and right",
    f"{_AFAR}::test_what_is_here_mounts_and_reads_without_the_network": "once fetched: needs no network",
    f"{_AFAR}::test_readers_wait_while_the_server_is_away": "server away: readers wait, then right bytes",
    f"{_AFAR}::test_a_server_away_for_good_is_an_error_in_time_and_heals": "server gone: EIO; back: right bytes",
    f"{_CRASH}::test_killed_again_and_again": "verifier killed, and with it the worker: no error, no wrong byte",
    f"{_CRASH}::test_the_keeper_killed_alone": "service killed: EIO or right bytes; served again after",
    f"{_CRASH}::test_a_reader_killed_while_it_waits": "a waiting reader can be killed",
    f"{_PATIENT}::test_a_server_that_holds_its_readers": "server drips: EIO in time, others do not notice",
    f"{_PATIENT}::test_workers_that_are_not_what_they_should_be": "each worker dies: EIO in time; a sound one: bytes",
    f"{_PATIENT}::test_a_worker_that_is_stopped": "worker stopped: replaced, no error",
    f"{_CRASH}::test_disk_full": "disk full: EIO; room again: right bytes",
    f"{_COMPROMISED}::test_other_bytes_are_never_served": "a worker that was taken over: right bytes",
}  # fmt: skip
# Of a test's parameters.  Servers of other projects run on the host alone.
ONLY = {
    "test_a_damaged_blob_gives_eio_and_heals": "flipped",
    "test_killed_again_and_again": "verifier",
    "test_other_bytes_are_never_served": "poison",
    "test_reads_as_it_was_and_is_fetched_once": "http-proxy",
    "test_what_is_here_mounts_and_reads_without_the_network": "http-proxy",
    "test_readers_wait_while_the_server_is_away": "http-proxy",
    "test_a_server_away_for_good_is_an_error_in_time_and_heals": "http-proxy",
    "test_a_server_that_holds_its_readers": "drips",
    "test_workers_that_are_not_what_they_should_be": "dies",
}
CACHEFILES = "service/test_cachefiles.py"  # all of it; its docstrings are the lines


class Reporter:
    """Makes each test's outcome a line of the report."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._titles: dict[str, str] = {}
        self._failed: set[str] = set()
        self.skipped: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if ONLY.get(item.name.partition("[")[0], "") in item.name]
        for item in items:
            item.add_marker(pytest.mark.timeout(_PATIENCE * 3), append=False)
            name = item.name.partition("[")[0]
            words = str(getattr(getattr(item, "function", None), "__doc__", None) or name).splitlines()[0]
            self._titles[item.nodeid] = BOTH.get(f"{item.path.relative_to(_TESTS)}::{name}") or words.rstrip(".")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
            print(f"\n{report.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)  # who waits wants to know
            self._write(report, False)
        elif report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in {*self._failed, *self.skipped}:
            self._write(report, True)

    def _write(self, of: pytest.TestReport, passed: bool) -> None:
        detail = "" if passed else f"{of.when}: {str(of.longreprtext).splitlines()[-1] if of.longreprtext else ''}"
        report.write(report.Result(self._engine, self._titles[of.nodeid], passed, detail))


def main(arguments: list[str]) -> int:
    engine = os.environ[report.ENGINE]
    os.environ["NYDUS_EROFS_ENGINES"] = engine
    os.environ.setdefault("NYDUS_EROFS_KILLS", "12")
    os.environ.setdefault("NYDUS_EROFS_PATIENCE", str(_PATIENCE))
    reporter = Reporter(engine)
    tests = [str(_TESTS / name) for name in BOTH]
    if engine == "cachefiles":
        tests.append(str(_TESTS / CACHEFILES))
    base = Path(tempfile.gettempdir()) / "contract"
    options = ["-p", "no:cacheprovider", "-q", "--durations=8", f"--basetemp={base}", "--tb=short"]
    code = int(pytest.main([*options, *(arguments or tests)], plugins=[reporter]))
    for name in reporter.skipped:
        print(f"skipped: {name}")
    return code or bool(reporter.skipped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
