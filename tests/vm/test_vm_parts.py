"""What of vm/ can be told without booting: versions, the status protocol, the table it writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vm import matrix, modules, ports, prepare, process, report
from vm.archive import Package, newest
from vm.kernels import KERNELS, kernel, usual


def test_newest_goes_by_debians_order() -> None:
    versions = ("6.12.9-1", "6.12.117-1~deb12u1", "6.12.117-1", "6.12.117-1~bpo12+1")
    assert newest(Package("linux", version) for version in versions) == Package("linux", "6.12.117-1")
    assert newest([]) is None


@pytest.mark.parametrize("version", ["7.2.1-1", "7.3.4-1~bpo13+1", "10.0-1"])
def test_kernels_without_fscache_are_refused(version: str) -> None:
    with pytest.raises(process.VmError, match=r"no EROFS over fscache .*fanotify engine"):
        modules.refuse_gone(version)
    modules.refuse_gone("7.1.13-1")


def test_unknown_kernel_names_those_there_are() -> None:
    with pytest.raises(process.VmError, match=f"there are: {', '.join(KERNELS)}"):
        kernel("2.4")
    assert "custom-6.12" not in usual()


def guest(script: str, *, timeout: float | None = 20, reset_after: float | None = None) -> ports.Outcome:
    """A shell in QEMU's place: it has the write ends of the ports as $status, $stdout, $stderr."""
    owned = ports.Ports(("status", "stdout", "stderr"))
    status, stdout, stderr = (f"/dev/fd/{end}" for end in owned.guest_ends())
    words = ["sh", "-c", f"status={status} stdout={stdout} stderr={stderr}; {script}"]
    process = subprocess.Popen(words, pass_fds=owned.guest_ends(), start_new_session=True)
    return owned.pump(process, timeout, reset_after)


def test_code_and_boot_time_come_in_pieces(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    outcome = guest(
        'printf "up 3." >$status; sleep 0.2; printf "25\\nex" >$status; echo hi >$stdout; echo oh >$stderr;'
        'printf "it 200\\n" >$status'
    )
    assert (outcome.code, outcome.boot, outcome.reason) == (200, 3.25, "")
    assert capfdbinary.readouterr() == (b"hi\n", b"oh\n")


def test_death_before_a_code_is_no_success() -> None:
    assert guest("echo up 3 >$status; printf exit\\ 0 >$status").code == ports.NO_STATUS
    outcome = guest("echo failed the disk is away >$status")
    assert (outcome.code, outcome.reason) == (ports.NO_STATUS, "the disk is away")


def test_limits_end_the_guest() -> None:
    outcome = guest("exec sleep 60", timeout=0.5)
    assert (outcome.code, "before the command could start" in outcome.reason) == (ports.TIMED_OUT, True)
    outcome = guest("echo up 1 >$status; exec sleep 60", timeout=0.5)
    assert (outcome.code, "before" in outcome.reason) == (ports.TIMED_OUT, False)
    outcome = guest("echo up 1 >$status; exec sleep 60", reset_after=0.3)
    assert outcome.code == ports.RESET


def row(name: str, *results: report.Result, failures: tuple[str, ...] = ()) -> matrix.Row:
    ready = prepare.Prepared(Path("/nowhere"), f"{name}.1-cloud-amd64", f"{name}.1-1")
    return matrix.Row(KERNELS[name], ready, list(results), list(failures))


def test_matrix_tells_what_passed_what_failed_and_what_was_not_asked() -> None:
    rows = [
        row("6.1", report.Result("any", "boots", True), report.Result("cachefiles", "binds", False, "a|b")),
        row("7.3", report.Result("any", "boots", True), failures=("smoke: exit code 1",)),
    ]
    text = matrix.document(rows)
    assert "| boots | yes | yes |" in text
    assert "| cachefiles: binds | **no**: a\\|b |  |" in text
    assert "- 7.3: smoke: exit code 1" in text
    assert [each.passed for each in rows] == [False, False]
    assert not row("6.1").passed, "no result is not a success"


def test_battery_reports_every_check_of_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report"
    monkeypatch.setenv(report.PATH, str(path))
    monkeypatch.setenv(report.ENGINE, "fanotify")

    def bad() -> str:
        raise OSError(5, "bad luck")

    checks = {("any", "one"): bad, ("cachefiles", "two"): bad, ("fanotify", "three"): lambda: "seen"}
    assert report.run(checks) == 1
    assert [(each.check, each.passed) for each in report.read(path)] == [("one", False), ("three", True)]
    assert report.read(tmp_path / "absent") == []
