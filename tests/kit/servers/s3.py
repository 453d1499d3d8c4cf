"""S3 for tests: versitygw, a real server that checks signatures, and what a stub answers in S3's language.

versitygw: `go install github.com/versity/versitygw/cmd/versitygw@v1.8.0`; VERSITYGW names another place than PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.kit.servers.stub import Reply, Request

KEY, SECRET, TOKEN = "AKIANYDUSEROFSTEST", "a-secret/that+nobody=prints", "a-session-token-that-nobody-prints"
BUCKET = "images"


def versitygw() -> str:
    found = os.environ.get("VERSITYGW") or shutil.which("versitygw")
    if not found:
        raise FileNotFoundError("no versitygw on PATH: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0")
    return found


class Gateway:
    """A running versitygw with one bucket; ``bucket`` is the folder with its objects as plain files."""

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        self.bucket = folder / "buckets" / BUCKET
        self.bucket.mkdir(parents=True)
        (folder / "meta").mkdir()  # beside the objects: not every filesystem has extended attributes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program or versitygw(), "--port", self.endpoint, "--keep-alive", "--quiet",
                 "posix", "--sidecar", folder / "meta", folder / "buckets"],
                env={"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}, stdout=log, stderr=log,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.close()
        raise AssertionError(f"versitygw does not answer: {self._log.read_text()}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def objects(data: bytes) -> Reply:
    """Serves one object under all names, ranges and all."""

    def reply(request: Request) -> None:
        span = request.headers.get("Range")
        if span is None:
            request.send(200, data)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        end = int(first) + len(part) - 1
        request.send(206, part, Content_Range=f"bytes {first}-{end}/{len(data)}")

    return reply


def error(status: int, code: str, message: str = "a message", extra: str = "", **headers: str) -> Reply:
    """An error in S3's XML."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}<RequestId>1</RequestId></Error>"
    return lambda request: request.send(status, body.encode(), Content_Type="application/xml", **headers)


def credentials(lifetime: timedelta, token: str = TOKEN) -> Reply:
    """A container's and an instance's (IMDSv2) source of keys; the ids of the 2nd, 3rd... end in 2, 3..."""
    count = 0

    def reply(request: Request) -> None:
        nonlocal count
        if request.path == "/latest/api/token":
            assert request.command == "PUT"
            request.send(200, b"imds-token", X_aws_ec2_metadata_token_ttl_seconds="60")
        elif request.path.startswith("/latest/") and request.headers["X-aws-ec2-metadata-token"] != "imds-token":
            request.send(401)
        elif request.path.endswith("/security-credentials/"):
            request.send(200, b"a-role")
        else:
            count += 1
            request.send(200, json.dumps({
                "Code": "Success", "AccessKeyId": KEY + (str(count) if count > 1 else ""), "SecretAccessKey": SECRET,
                "Token": token, "Expiration": (datetime.now(UTC) + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }).encode())  # fmt: skip

    return reply
