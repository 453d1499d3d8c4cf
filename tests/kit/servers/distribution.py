"""A real registry for tests: distribution 3. REGISTRY names the program, else it is on PATH."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

USER, PASSWORD = "someone", "correct horse"
HTPASSWD = f"{USER}:$2b$05$wPGPDgu5U8PK2jgoELlWXONBSkCdLAhkoa/wRXA1yDFDE1M.fT9he\n"
REPO = "team/app"


def program() -> str:
    """The registry's path; a test that needs it fails where it is missing."""
    found = os.environ.get("REGISTRY") or shutil.which("registry")
    if not found:
        raise FileNotFoundError("no registry: run scripts/oracles, or set REGISTRY to distribution's program")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Registry:
    """A registry on 127.0.0.1 with its storage in ``folder``; ``host`` is its ``host:port``.

    Args:
        auth: "" for everyone, "basic" for USER and PASSWORD, or the options of token authentication.
        tls: certificate chain and key, as files.
        program: the registry, if not the one that is found.
    """

    def __init__(
        self,
        folder: Path,
        auth: str | dict[str, Any] = "",
        tls: tuple[Path, Path] | None = None,
        program: Path | None = None,
    ) -> None:
        self._program = program
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        http: dict[str, Any] = {"addr": self.host, "secret": "the same after a restart"}
        if tls:
            http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        document: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": http,
        }
        if auth == "basic":
            (folder / "htpasswd").write_text(HTPASSWD)
            document["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
        elif isinstance(auth, dict):
            document["auth"] = {"token": auth}
        (folder / "config.yml").write_text(json.dumps(document))  # JSON is YAML
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program or program(), "serve", str(self._folder / "config.yml")],
                env={"OTEL_TRACES_EXPORTER": "none", "HOME": str(self._folder)},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"the registry does not answer: {self.log()}")

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def add(self, data: bytes, repo: str = REPO) -> str:
        """Put a blob into the storage; its name."""
        digest = hashlib.sha256(data).hexdigest()
        root = self._folder / "data" / "docker" / "registry" / "v2"
        blob = root / "blobs" / "sha256" / digest[:2] / digest / "data"
        link = root / "repositories" / repo / "_layers" / "sha256" / digest / "link"
        for path, content in ((blob, data), (link, f"sha256:{digest}".encode())):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return f"sha256:{digest}"


class Relay:
    """Connections to a port, passed on; ``cut_after`` bytes from the client, the one that sends them is reset.

    ``connections`` counts those that came.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.cut_after: int | None = None
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self.connections += 1
                server = socket.create_connection(("127.0.0.1", self._to), 5)
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if counts and self.cut_after is not None and passed > self.cut_after:
                    self.cut_after = None
                    break
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
