"""A real service for tests: started, asked, killed, and cleaned up after, whatever happens.

Loaded by the fixture ``service_kit`` of tests/conftest.py. Nothing in this process touches a mount it serves:
readers are children with a time limit, because a read that nobody answers can only be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
READER = Path(__file__).with_name("reader.py")
COMPARE = ROOT / "scripts" / "compare_trees.py"
PYTHON = [sys.executable, "-I"]
CLI = [*PYTHON, "-m", "nydus_erofs"]
# Seconds; far more than anything takes on a loaded machine. An emulated one needs more.
PATIENCE = float(os.environ.get("NYDUS_EROFS_PATIENCE", "60"))


def cli(*arguments: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``nydus-erofs``; its output is text."""
    done = subprocess.run(
        [*CLI, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    assert "Traceback" not in done.stderr, done.stderr
    if check:
        assert done.returncode == 0, done.stderr
    return done


class RefusedError(Exception):
    """The service said no."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["error"])
        self.error, self.hint, self.exit_code = answer["error"], answer["hint"], answer["exit_code"]


# --- what may serve -------------------------------------------------------------------------------------------


class Fanotify:
    """What only tests need to know of the fanotify engine: where its cache is, and what it promises."""

    name = "fanotify"
    keeps_mounts = True  # a mount outlives keeper and worker, and is served again

    def metadata_fetched(self, bootstrap: Path) -> int:
        """Bytes that may be fetched before any file is read."""
        return 0

    def cache(self, service: Service) -> list[Path]:
        """The files that hold fetched bytes."""
        return sorted((service.state / "store").glob("*/[0-9]*"))


class Cachefiles:
    """The same of the cachefiles engine."""

    name = "cachefiles"
    keeps_mounts = False

    def metadata_fetched(self, bootstrap: Path) -> int:
        return -(-bootstrap.stat().st_size // (128 << 10)) * (128 << 10)

    def cache(self, service: Service) -> list[Path]:
        return sorted(path for path in (service.state / "cachefiles").rglob("*") if path.is_file())


ENGINES = {engine.name: engine for engine in (Fanotify(), Cachefiles())}


# --- mounts -------------------------------------------------------------------------------------------------


def mounted(below: Path | None = None) -> list[tuple[str, str, str]]:
    """(target, filesystem, source) of what is mounted, oldest first; all, or what lies below a folder."""
    out = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        target, (kind, source) = left.split(" ")[4], right.split(" ")[:2]
        target, source = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), text) for text in (target, source))
        if below is None or target == str(below) or target.startswith(f"{below}/"):
            out.append((target, kind, source))
    return out


def filesystem_of(path: Path) -> str:
    """Type of the filesystem a folder is on."""
    real = os.path.realpath(path)
    found = [(len(t), kind) for t, kind, _ in mounted() if t == "/" or real == t or real.startswith(f"{t}/")]
    return max(found)[1]


def unmount_all(below: Path) -> None:
    for target, _, _ in reversed(mounted(below)):
        subprocess.run(["umount", "-l", target], check=False, timeout=20, capture_output=True)


def wait_for(what: str, condition: Callable[[], Any], patience: float = PATIENCE, pause: float = 0.02) -> Any:
    """The first true result of a condition; AssertionError when it takes too long."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {patience:.0f} s"
        time.sleep(pause)
    return result


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- readers ------------------------------------------------------------------------------------------------


def reader(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PYTHON, str(READER), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process: subprocess.Popen[str], patience: float = PATIENCE) -> dict[str, Any]:
    """What a reader found. AssertionError when it hangs, or died of anything."""
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=20)
        raise AssertionError(f"a reader hangs: {process.args}") from None
    assert out, f"a reader ended with {process.returncode}: {err}"
    return dict(json.loads(out.splitlines()[-1]))


def read(*arguments: object) -> dict[str, Any]:
    return result_of(reader("read", *arguments))


def compare_expected(expected: Path, target: Path) -> None:
    """The mounted tree is the one that the images of tests/data were built from."""
    result = result_of(reader("expected", expected, target))
    assert not result["wrong"], result
    assert result["entries"] > 1000


def compare(tree: Path, target: Path) -> None:
    """Two trees are the same in every name, attribute and byte."""
    command = [*PYTHON, str(COMPARE), "--time-limit", str(PATIENCE), str(tree), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE + 20, check=False)
    except subprocess.TimeoutExpired:
        raise AssertionError("comparing hangs") from None
    assert done.returncode == 0, done.stdout + done.stderr


# --- the service --------------------------------------------------------------------------------------------


class Service:
    """``nydus-erofs serve`` in folders of its own below ``work``."""

    def __init__(self, work: Path, engine: Any, **config: Any) -> None:
        self.work, self.engine = work, engine
        self.state, self.run, self.log = work / "state", work / "run", work / "log"
        self.config = {"engine": engine.name, "segment_size": 1 << 20, **config}
        self.backend: dict[str, Any] = {}  # fields of its table [backend]
        self.keeper: subprocess.Popen[bytes] | None = None
        self.readers: list[subprocess.Popen[str]] = []
        self._targets = 0

    @property
    def socket(self) -> Path:
        return self.run / "control.sock"

    def start(self) -> Service:
        """Start it, and wait until it answers."""
        self.spawn()
        wait_for("the service answers", self._answers)
        return self

    def spawn(self, *arguments: object, **environment: str) -> None:
        path = self.work / "config.toml"
        config = {"state_dir": str(self.state), "run_dir": str(self.run), **self.config}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in config.items()]
        if self.backend:
            lines += ["[backend]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in self.backend.items())]
        path.write_text("".join(lines))
        with open(self.log, "ab") as log:
            self.keeper = subprocess.Popen(
                [*CLI, "serve", "--config", str(path), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment,
            )  # fmt: skip

    def _answers(self) -> bool:
        assert self.keeper is not None
        assert self.keeper.poll() is None, f"the service ended: {self.log_text()}"
        with contextlib.suppress(OSError):
            self.status()
            return True
        return False

    def request(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Ask it directly, without the command line."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.socket))
            sock.sendall(json.dumps({"verb": verb, **fields}).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline()
        if not line:
            raise ConnectionResetError("no answer")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise RefusedError(answer)
        return answer

    def target(self) -> Path:
        """A new mountpoint."""
        self._targets += 1
        path = self.work / f"mnt{self._targets}"
        path.mkdir()
        return path

    def mount(self, bootstrap: Path, *blob_dirs: Path, target: Path | None = None, prefetch: bool = False) -> Path:
        """Mount an image; the mountpoint."""
        dirs = [str(path) for path in blob_dirs]
        return self.mount_image(str(bootstrap), target=target, blob_dirs=dirs, prefetch=prefetch)

    def mount_image(self, image: str, *, target: Path | None = None, prefetch: bool = False, **fields: Any) -> Path:
        """Mount what has this name somewhere; the mountpoint."""
        target = target or self.target()
        self.request("mount", image=image, target=str(target), prefetch=prefetch, **fields)
        return target

    def umount(self, target: Path) -> None:
        self.request("umount", target=str(target))

    def status(self, target: Path | None = None) -> dict[str, Any]:
        """All of it, or what it says of one mount."""
        whole = self.request("status")
        if target is None:
            return whole
        (one,) = (mount for mount in whole["mounts"] if mount["target"] == str(target))
        return dict(one)

    def fetched(self, target: Path) -> int:
        """Bytes of an image that came from its blobs since its stores were opened, uncompressed."""
        status = self.status(target)
        return sum(status[f"bytes_{how}"] for how in ("on_demand", "ahead", "prefetched"))

    def complete(self, target: Path) -> None:
        """Wait until everything of an image is fetched."""
        wait_for("everything is fetched", lambda: self.status(target)["complete"])

    # --- how it ends ---

    @property
    def worker(self) -> int:
        """Process id of its worker, as soon as there is one."""
        return int(wait_for("a worker", lambda: self.status()["worker"]["pid"]))

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)

    def kill_all(self) -> None:
        """Keeper and worker at once, as when memory runs out."""
        assert self.keeper is not None
        worker = self.worker
        os.kill(self.keeper.pid, signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        self.keeper.kill()
        self.keeper.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.keeper is not None
        self.keeper.terminate()
        try:
            return self.keeper.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the service does not stop: {self.log_text()}") from None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log records of one kind."""
        lines = [line for line in self.log_text().splitlines() if line.startswith("{")]
        return [record for record in map(json.loads, lines) if record["event"] == name]

    def reader(self, *arguments: object) -> subprocess.Popen[str]:
        """A reader that ends with the service at the latest."""
        process = reader(*arguments)
        self.readers.append(process)
        return process

    def close(self) -> None:
        """Whatever state it is in: no process, no mount stays."""
        for process in self.readers:
            process.kill()
        for process in self.readers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
        helpers: list[int] = []
        if self.keeper is not None and self.keeper.poll() is None:
            helpers = children(self.keeper.pid)
            # Not through the service: it may be what is broken.
            for target, kind, _ in reversed(mounted(self.work)):
                if kind == "erofs":
                    subprocess.run(["umount", "-l", target], check=False, timeout=20, capture_output=True)
            self.keeper.terminate()
            try:
                self.keeper.wait(10)
            except subprocess.TimeoutExpired:
                self.keeper.kill()
                self.keeper.wait(10)
        unmount_all(self.work)
        for pid in helpers:
            wait_for("the worker ends with its keeper", lambda pid=pid: not alive(pid), 20)


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def pss(pid: int) -> int:
    """Bytes of memory that count for a process: its own, and its share of what others have mapped too."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1]) << 10  # type: ignore[index]


@contextlib.contextmanager
def mounted_disk(work: Path, megabytes: int) -> Iterator[Path]:
    """A small ext4 of its own."""
    image, target = work / "disk.img", work / "disk"
    target.mkdir()
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True, timeout=PATIENCE)
    with contextlib.suppress(FileNotFoundError):  # it may be built in, and there no modprobe
        subprocess.run(["modprobe", "-q", "loop"], check=False, timeout=PATIENCE)
    subprocess.run(["mount", "-o", "loop", image, target], check=True, timeout=PATIENCE)
    try:
        yield target
    finally:
        unmount_all(target)
