"""Work in the background: trouble of the host is logged and ends nothing else, a bug ends the process."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from nydus_erofs.erofs.errors import FormatError, KernelError, NydusErofsError
from nydus_erofs.fscache.keeper import tasks, trouble
from nydus_erofs.fscache.kernel.plain import pass_on_unless_damage
from tests.kit.command import PYTHON

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/state/file")
_BUGS = [
    OSError(errno.EBADF, "x"),
    OSError(errno.EFAULT, "x"),
    OSError(errno.ENOTSOCK, "x"),
    ValueError(),
    KeyError(1),
]


class Log:
    """Lines of the log, as pairs of event and fields."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setattr(trouble, "logger", lambda: made)
    monkeypatch.setattr(trouble, "_said", {})
    return made


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The errors for which the process would have ended."""
    errors: list[BaseException] = []
    monkeypatch.setattr(tasks, "fatal", lambda _loop, context: errors.append(context["exception"]))
    return errors


def run(error: BaseException) -> None:
    async def work() -> None:
        raise error

    async def main() -> None:
        task = tasks.background(work(), "working")
        await asyncio.wait([task])
        await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize("error", [FULL, KernelError("no"), FormatError("no"), OSError(errno.EMFILE, "x")])
def test_trouble_in_the_background_is_logged(error: NydusErofsError | OSError, log: Log, ended: list[Any]) -> None:
    run(error)
    ((event, fields),) = log.lines
    assert event == "working"
    assert fields["error"]
    assert not ended


@pytest.mark.parametrize("error", _BUGS)
def test_a_bug_in_the_background_ends_the_process(error: Exception, log: Log, ended: list[Any]) -> None:
    run(error)
    assert ended == [error]
    assert not log.lines


@pytest.mark.parametrize("error", [asyncio.CancelledError()])
def test_what_was_cancelled_is_no_error(error: BaseException, log: Log, ended: list[Any]) -> None:
    run(error)
    assert not log.lines
    assert not ended


def test_steps_go_on_after_trouble(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_FIRST_PAUSE", 0.001)
    steps = iter([FULL, FULL, None, KernelError("no"), None, ValueError("a bug")])

    async def step() -> None:
        if (error := next(steps)) is not None:
            raise error

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(tasks.steadily(step, "stepping"))
    assert [fields["error"] for _, fields in log.lines] == ["No space left on device: /state/file", "no"]


@pytest.mark.parametrize(
    ("context", "ends"),
    [({"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "x")}, False),
     ({"message": "in a callback", "exception": OSError(errno.EMFILE, "x"), "handle": object()}, True),
     ({"message": "nobody asked", "exception": ValueError()}, True),
     ({"message": "accept", "exception": OSError(errno.EBADF, "x")}, True)],
)  # fmt: skip
def test_errors_of_the_loop(context: dict[str, Any], ends: bool, log: Log, ended: list[Any]) -> None:
    tasks.on_error(asyncio.new_event_loop(), context)
    assert ended == ([context["exception"]] if ends else [])
    assert bool(log.lines) != ends


# --- what is said ---------------------------------------------------------------------------------------


def test_the_same_is_said_once_a_minute(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for _ in range(100):
        trouble.report("writing", FULL)
    trouble.report("writing", OSError(errno.EIO, os.strerror(errno.EIO)))
    assert [fields["error"] for _, fields in log.lines] == [
        "No space left on device: /state/file",
        "Input/output error",
    ]
    now[0] += 61
    trouble.report("writing", FULL)
    assert log.lines[-1][1]["times"] == 100


def test_no_number_of_kinds_fills_the_memory(log: Log) -> None:
    for number in range(10_000):
        trouble.report(f"{number}", FULL)
    assert len(trouble._said) <= 256


@pytest.mark.parametrize(
    ("error", "what", "message", "hint"),
    [(FULL, "", "No space left on device: /state/file", "--state-dir"),
     (OSError(errno.EROFS, os.strerror(errno.EROFS)), "writing", "writing: Read-only file system", "kernel's log"),
     (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "", "Too many open files", "doctor"),
     (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "", "Resource temporarily unavailable", "TasksMax"),
     (OSError(errno.EPERM, "mounting on /x: no"), "mounting", "mounting on /x: no", None),
     (ConnectionError("cut off"), "", "cut off", None)],
)  # fmt: skip
def test_refusals_name_what_to_do(error: OSError, what: str, message: str, hint: str | None) -> None:
    said = trouble.refusal(error, what)
    assert said.message == message
    assert (hint or "") in (said.hint or "")
    assert bool(said.hint) == bool(hint)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOMEM])
def test_trouble_is_not_taken_for_damage(number: int) -> None:
    """What is damaged is made anew, which needs a host that is well."""
    with pytest.raises(OSError, match="x"):
        pass_on_unless_damage(OSError(number, "x"))


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "x"), OSError(errno.EIO, "x"), ValueError("x")])
def test_damage_is_damage(error: Exception) -> None:
    pass_on_unless_damage(error)


# --- the end --------------------------------------------------------------------------------------------

_FATAL = """
import sys
from nydus_erofs.erofs.errors import KernelError
from nydus_erofs.fscache.keeper import log, tasks
log.configure("info")
tasks.fatal(None, {"message": "m", "exception": eval(sys.argv[1])})
"""


@pytest.mark.parametrize(("error", "traced"), [("KernelError('the end')", False), ("ValueError('the end')", True)])
def test_how_it_ends(error: str, traced: bool) -> None:
    command = [*PYTHON, "-c", _FATAL, error]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70
    assert "the end" in done.stderr
    assert ("the service cannot go on" in done.stderr) != traced


def test_it_ends_also_when_nobody_can_be_told() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PYTHON, "-c", _FATAL, "ValueError(1)"], stderr=writing, timeout=60, check=False)
    os.close(writing)
    assert done.returncode == 70


# --- records --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["write", "write_until_reboot"])
@pytest.mark.parametrize("fails", ["open", "replace", "fsync"])
def test_a_record_that_cannot_be_written_leaves_nothing(
    name: str, fails: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nydus_erofs.fscache.keeper import durable

    write: Callable[[str, bytes], None] = getattr(durable, name)
    path = tmp_path / "record"
    write(str(path), b"before")

    def fail(*_: object, **__: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(f"builtins.{fails}" if fails == "open" else f"os.{fails}", fail)
        if (name, fails) == ("write_until_reboot", "fsync"):
            write(str(path), b"before")  # it does not wait for the disk
        else:
            with pytest.raises(OSError, match="No space"):
                write(str(path), b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["record"]
    write(str(path), b"after")
    assert path.read_bytes() == b"after"
