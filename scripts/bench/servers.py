"""The ways of serving one image that read_bench compares, all with the same four steps.

`start` runs what has to run, `mount` mounts (and returns the seconds that took), `umount` and `stop` undo
them.  Each keeps what it fetched in a folder of its own; `forget` empties it, so that nothing is local.
"""

import environment  # noqa: F401

# isort: split
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nydus_erofs.fscache import client

READY_WITHIN = 60  # seconds


class Server:
    """What the measurements see of a server."""

    name: str

    def __init__(self, work: Path) -> None:
        self.work = work
        self.cache = work / "cache"
        self.mountpoint = work / "mnt"
        self.log = work / "log"
        self.process: subprocess.Popen[bytes] | None = None
        work.mkdir()
        self.mountpoint.mkdir()

    def start(self) -> float:
        """Seconds until it can be asked to mount."""
        return 0.0

    def mount(self, *, prefetch: bool) -> float:
        raise NotImplementedError

    def umount(self) -> None:
        if os.path.ismount(self.mountpoint):
            subprocess.run(["umount", str(self.mountpoint)], check=True, timeout=60)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def forget(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def clean_up(self) -> None:
        """Whatever state it is in."""
        if os.path.ismount(self.mountpoint):
            subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, timeout=60)
        self.stop()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        return self.process

    def _wait(self, what: str, ready: Callable[[], bool]) -> float:
        started = time.monotonic()
        while not ready():
            if self.process and self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended while waiting for {what}; see {self.log}: {self._last_line()}")
            if time.monotonic() > started + READY_WITHIN:
                raise RuntimeError(f"{self.name}: no {what} after {READY_WITHIN} s; see {self.log}")
            time.sleep(0.002)
        return time.monotonic() - started

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Ours(Server):
    """`nydus-erofs serve` and `nydus-erofs mount`, the fanotify engine."""

    def __init__(
        self, work: Path, program: str, image: Path | str, name: str = "nydus-erofs", backend: Path | str = ""
    ) -> None:
        super().__init__(work)
        self.name = name
        self.program = program
        self.image = image
        self.backend = backend  # configuration file, for an image from afar
        self.run_dir = work / "run"

    def start(self) -> float:
        folders = ["--state-dir", str(self.cache), "--run-dir", str(self.run_dir)]
        self._spawn([self.program, "serve", *folders])
        return self._wait("control socket", (self.run_dir / "control.sock").exists)

    def mount(self, *, prefetch: bool) -> float:
        """Asks through the control socket, as the command does, so that starting Python is not counted."""
        started = time.monotonic()
        where = {"image": str(self.image), "target": str(self.mountpoint), "backend_file": str(self.backend)}
        client.request(str(self.run_dir / "control.sock"), "mount", prefetch=prefetch, **where)
        return time.monotonic() - started

    def mount_by_command(self) -> float:
        """What somebody at a shell waits for."""
        started = time.monotonic()
        self._call("mount", str(self.image), str(self.mountpoint), "--no-prefetch")
        return time.monotonic() - started

    def umount(self) -> None:
        self._call("umount", str(self.mountpoint))

    def _call(self, verb: str, *arguments: str) -> None:
        command = [self.program, verb, *arguments, "--run-dir", str(self.run_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Complete(Server):
    """The same EROFS filesystem from the segments `Ours` filled, mounted by the kernel with nobody serving.

    The limit of what any server can reach.  Mounted through our own package, as mount(8) cannot pass
    hundreds of devices.
    """

    name = "EROFS, complete, unmarked"

    _MOUNT = """
import os, sys
from nydus_erofs.fscache.kernel.mount import mount_erofs
from nydus_erofs.fscache.state import image
state, target = sys.argv[1:]
(folder,) = (entry.path for entry in os.scandir(f"{state}/images") if not entry.name.startswith("."))
mount_erofs(f"{folder}/boot", f"{state}/store", image.devices(image.load(folder)), target, read_ahead_kib=%s)
"""

    def __init__(self, work: Path, filled: Ours, read_ahead: int | None) -> None:
        super().__init__(work)
        self.filled = filled
        self.code = self._MOUNT % read_ahead

    def mount(self, *, prefetch: bool) -> float:
        started = time.monotonic()
        command = [sys.executable, "-c", self.code, str(self.filled.cache), str(self.mountpoint)]
        subprocess.run(command, check=True, timeout=60)
        return time.monotonic() - started

    def forget(self) -> None:
        raise NotImplementedError("it has nothing of its own")


class Nydusd(Server):
    """nydusd's FUSE server with a local blob folder and a blob cache."""

    def __init__(
        self,
        work: Path,
        program: str,
        image: Path,
        name: str,
        *,
        validate: bool,
        backend: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(work)
        self.name = name
        self.program = program
        self.image = image
        self.validate = validate
        self.backend = backend or {"type": "localfs", "config": {"dir": str(image.parent)}}

    def mount(self, *, prefetch: bool) -> float:
        """Starting and mounting are one here."""
        self.cache.mkdir(exist_ok=True)
        config = self.work / "config.json"
        cache = {"type": "blobcache", "config": {"work_dir": str(self.cache)}}
        wanted = {
            "device": {"backend": self.backend, "cache": cache},
            "mode": "direct",
            "digest_validate": self.validate,
            "iostats_files": False,
            "enable_xattr": True,
            "fs_prefetch": {"enable": prefetch, "threads_count": 4, "merging_size": 1 << 20, "prefetch_all": True},
        }
        config.write_text(json.dumps(wanted))
        # It insists on a limit below the hard one.
        options = ["--bootstrap", str(self.image), "--log-level", "error", "--rlimit-nofile", "10000"]
        self._spawn([self.program, "--config", str(config), "--mountpoint", str(self.mountpoint), *options])
        return self._wait("mount", lambda: os.path.ismount(self.mountpoint))

    def umount(self) -> None:
        self.stop()  # it unmounts when it ends
