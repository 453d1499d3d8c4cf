"""A real service: started, asked, killed, and cleaned up after, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.kit import law
from tests.kit.command import CLI
from tests.kit.engines import Engine
from tests.kit.mounts import mounted, unmount_all
from tests.kit.processes import alive, children
from tests.kit.reading import reader
from tests.kit.waiting import PATIENCE, wait_for


class RefusedError(Exception):
    """The service said no."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["error"])
        self.error, self.hint, self.exit_code = answer["error"], answer["hint"], answer["exit_code"]


class Service:
    """``nydus-erofs serve`` in folders of its own below ``work``."""

    def __init__(self, work: Path, engine: Engine, **config: Any) -> None:
        self.work, self.engine = work, engine
        self.state, self.run, self.log = work / "state", work / "run", work / "log"
        self.config = {"engine": engine.name, "segment_size": 1 << 20, **config}
        self.backend: dict[str, Any] = {}  # fields of its table [backend]
        self._keeper: subprocess.Popen[bytes] | None = None
        self.readers: list[subprocess.Popen[str]] = []
        self._targets = 0
        self.program: Sequence[str] = CLI

    @property
    def keeper(self) -> subprocess.Popen[bytes]:
        """Its process."""
        assert self._keeper is not None, "it was never started"
        return self._keeper

    @property
    def socket(self) -> Path:
        return self.run / "control.sock"

    def start(self) -> Service:
        """Start it, and wait until it answers."""
        self.spawn()
        wait_for("the service answers", self.answers)
        return self

    @property
    def config_file(self) -> Path:
        return self.work / "config.toml"

    def configure(self, **config: Any) -> None:
        """Write its configuration file, with these keys too."""
        self.config |= config
        config = {"state_dir": str(self.state), "run_dir": str(self.run), **self.config}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in config.items()]
        if self.backend:
            lines += ["[backend]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in self.backend.items())]
        self.config_file.write_text("".join(lines))

    def spawn(self, *arguments: object, pass_fds: Sequence[int] = (), **environment: str) -> None:
        """Start it with its configuration; it may not come to answer."""
        self.configure()
        self.spawn_with("--config", self.config_file, *arguments, pass_fds=pass_fds, **environment)

    def spawn_with(self, *arguments: object, pass_fds: Sequence[int] = (), **environment: str) -> None:
        """Start it with these arguments alone."""
        with open(self.log, "ab") as log:
            self._keeper = subprocess.Popen(
                [*self.program, "serve", *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment, pass_fds=pass_fds,
            )  # fmt: skip

    def spawn_on_terminal(self, terminal: int) -> None:
        """Start it with its configuration in a session that this terminal controls, with its log there."""
        self.configure()
        self._keeper = subprocess.Popen(
            ["setsid", "--ctty", *self.program, "serve", "--config", str(self.config_file)],
            stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip

    def answers(self) -> bool:
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

    def mount(
        self, bootstrap: Path | str, *blob_dirs: Path, target: Path | None = None, prefetch: bool = False
    ) -> Path:
        """Mount an image; the mountpoint."""
        dirs = [str(path) for path in blob_dirs]
        return self.mount_image(str(bootstrap), target=target, blob_dirs=dirs, prefetch=prefetch)

    def mount_image(
        self, image: str | Path, *, target: Path | None = None, prefetch: bool = False, **fields: Any
    ) -> Path:
        """Mount what has this name somewhere; the mountpoint."""
        target = target or self.target()
        self.request("mount", image=str(image), target=str(target), prefetch=prefetch, **fields)
        return target

    def umount(self, target: Path | str) -> None:
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

    def cache(self) -> list[Path]:
        """The files that hold fetched bytes."""
        return self.engine.cache(self.state)

    def held(self) -> int:
        """Bytes of data in them."""
        return sum(map(self.engine.held, self.cache()))

    # --- how it ends ---

    @property
    def worker(self) -> int:
        """Process id of its worker, as soon as there is one."""
        return int(wait_for("a worker", lambda: self.status()["worker"]["pid"]))

    @property
    def verifier(self) -> int:
        """Process id of its verifier, as soon as there is one."""
        return int(wait_for("a verifier", lambda: self.status()["verifier"]["pid"]))

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)

    def kill_verifier(self) -> None:
        os.kill(self.verifier, signal.SIGKILL)

    def kill_all(self) -> None:
        """All its processes at once, as when memory runs out."""
        pids = [self.worker, self.verifier]
        os.kill(self.keeper.pid, signal.SIGSTOP)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.keeper.kill()
        self.keeper.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.keeper.terminate()
        try:
            code = self.keeper.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the service does not stop: {self.log_text()}") from None
        law.check(self.state)
        return code

    def end_well(self) -> None:
        """If it lives, have it end with nothing mounted."""
        if self._keeper is None or self._keeper.poll() is not None:
            return
        for process in self.readers:
            process.kill()
        self._unmount_images()
        wait_for("it notices", lambda: not self.status()["mounts"])
        assert self.stop() == 0

    def _unmount_images(self) -> None:
        """Not through the service: it may be what is broken."""
        for target, kind, _ in reversed(mounted(self.work)):
            if kind == "erofs":
                subprocess.run(["umount", "-l", target], check=False, timeout=20, capture_output=True)

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
        if self._keeper is not None and self._keeper.poll() is None:
            helpers = children(self._keeper.pid)
            self._unmount_images()
            self._keeper.terminate()
            try:
                self._keeper.wait(10)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait(10)
        unmount_all(self.work)
        for pid in helpers:
            wait_for("the worker ends with its keeper", partial(_gone, pid), 20)


def _gone(pid: int) -> bool:
    return not alive(pid)


class MakeService(Protocol):
    """``make_service(engine, **config)``: a running service in folders of its own; it ends with the test."""

    def __call__(
        self, engine: Engine = ..., *,
        start: bool = ..., work: Path | None = ..., state: Path | None = ..., **config: Any,
    ) -> Service: ...  # fmt: skip
