"""Blobs and manifests into a registry.

A blob goes in pieces, and after a broken connection on from where the server has it. One that is uploaded while it is
built gets its digest with its last request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO
from urllib.parse import urlencode

from ...erofs.errors import BackendError, BlobNotFoundError, ConfigError, CorruptError
from ..backend.http.client import Answer, Request
from ..backend.http.location import location_of
from ..backend.registry.client import RegistryClient, digest_of
from ..config.backend import Registry

_PIECE = 16 << 20  # bytes
_FAILURES = 5  # without progress between them, until it is given up
_RESUMES = 2  # of those, the failures after which the same upload is tried further; then a new one is begun
_PAUSE = 0.2  # seconds after the first failure, doubled after each further one
_FINISH = 300.0  # seconds in which the server puts the pieces together and checks them


class RegistryWriter:
    """Writes to the repository of a client."""

    def __init__(self, client: RegistryClient) -> None:
        self.client, self.label = client, client.label

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether a blob is there with this size; its name is its checksum."""
        try:
            return name == f"sha256:{sha256}" and self.client.stat(name).size == size
        except BlobNotFoundError:
            return False

    def put(self, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]) -> None:
        """As of ``Writer``."""
        if name != f"sha256:{sha256}":
            raise ConfigError(f"{name}: a registry names blobs by their checksum")
        upload = _Upload(self.client.send, self.client.what("blob", name), file, size, progress)
        upload.run(self.client.uploads, name, lambda: self.holds(name, size, sha256))

    def put_manifest(self, reference: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest; the digest of its bytes."""
        what, url = self.client.what("manifest", reference), self.client.url("manifests", reference)
        answer = self.client.send(Request("PUT", url, what, {"Content-Type": media_type}, data))
        if not answer.good:
            raise answer.error(what)
        digest, theirs = digest_of(data), answer.header("Docker-Content-Digest")
        if theirs.startswith("sha256:") and theirs != digest:
            raise CorruptError(f"{what}: {answer.where} stored other bytes than were sent")
        return digest


class _Upload:
    """Sends one blob.

    Args:
        send: sends a request with credentials.
        what: the blob and its server, for messages.
        progress: called with further bytes that are there.
    """

    def __init__(
        self,
        send: Callable[[Request], Answer],
        what: str,
        file: BinaryIO,
        size: int,
        progress: Callable[[int], None],
    ) -> None:
        self._send, self._what, self._file, self._size, self._progress = send, what, file, size, progress
        self._told = 0

    def run(self, start: str, name: str, exists: Callable[[], bool]) -> None:
        """Send it, unless it is there.

        Args:
            start: URL at which uploads begin.
            exists: asks the server.
        """
        url, offset, failures = "", 0, 0
        while True:
            try:
                if not url:
                    if exists():
                        break
                    url, offset = self._begin(start), 0
                while offset < self._size:
                    url, offset = self._piece(url, offset)
                    failures = 0 if self._tell(offset) else failures
                self._finish(url, name)
                break
            except BackendError as error:
                failures += 1
                if not error.retryable or failures > _FAILURES:
                    raise
                time.sleep(max(_PAUSE * 2 ** (failures - 1), error.retry_after))
            url, offset = self._resume(url) if url and failures <= _RESUMES else ("", 0)
        self._tell(self._size)

    def _tell(self, offset: int) -> bool:
        """Report progress; whether there was any since the last report."""
        further = offset - self._told
        if further <= 0:
            return False
        self._told = offset
        self._progress(further)
        return True

    def _begin(self, start: str) -> str:
        request = Request("POST", start, self._what)
        return location_of(request, self._expect(request))

    def _piece(self, url: str, offset: int) -> tuple[str, int]:
        """Send the next piece: the URL for what follows, and where that begins."""
        self._file.seek(offset)
        body = self._file.read(min(_PIECE, self._size - offset))
        if not body:
            raise BackendError(f"{self._what}: the file ends at byte {offset} of {self._size}", retryable=False)
        request = _piece(url, self._what, offset, body)
        return location_of(request, self._expect(request)), offset + len(body)

    def _finish(self, url: str, name: str) -> None:
        self._expect(_last(url, self._what, name))

    def _expect(self, request: Request) -> Answer:
        answer = self._send(request)
        if answer.status in (404, 416) and request.method != "POST":
            raise BackendError(f"{self._what}: {answer.where} lost track of the upload ({answer.status})")
        if not answer.good:
            raise answer.error(self._what)
        return answer

    def _resume(self, url: str) -> tuple[str, int]:
        """Ask how far the server got: where and with which byte to go on; "" to begin anew."""
        request = Request("GET", url, self._what)
        try:
            answer = self._send(request)
            has = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,19})", answer.header("Range"))
            if not answer.good or not has or int(has[1]) >= self._size:
                return "", 0
            return location_of(request, answer), int(has[1]) + 1 if int(has[1]) else 0
        except BackendError:
            return "", 0


class RegistryWay:
    """Pieces of 16 MiB one after the other: a registry takes them in no other way."""

    piece, parallel = _PIECE, 1

    def __init__(self, config: Registry) -> None:
        self._client = RegistryClient(config, 1)
        self._writer = RegistryWriter(self._client)
        self._what = f"a blob of {self._client.label}"
        self._url = ""
        self._offset = 0

    def send(self, number: int, data: bytes) -> None:
        if not self._url:
            self._request(Request("POST", self._client.uploads, self._what))
        self._request(_piece(self._url, self._what, self._offset, data))
        self._offset += len(data)

    def keep(self, sha256: str, size: int) -> None:
        name = f"sha256:{sha256}"
        if self._writer.holds(name, size, sha256):
            self.drop()
            return
        answer = self._client.send(_last(self._url, self._what, name))
        if not answer.good:
            raise answer.error(self._what)
        self._url = ""

    def drop(self) -> None:
        if self._url:
            with suppress(BackendError):
                self._client.send(Request("DELETE", self._url, self._what))

    def _request(self, request: Request) -> Answer:
        answer = self._client.send(request)
        if not answer.good:
            raise answer.error(self._what)
        self._url = location_of(request, answer)
        return answer


def _piece(url: str, what: str, offset: int, data: bytes) -> Request:
    """Appends to an upload."""
    headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{offset}-{offset + len(data) - 1}"}
    return Request("PATCH", url, what, headers, data)


def _last(url: str, what: str, name: str) -> Request:
    """Ends an upload by naming it."""
    url += ("&" if "?" in url else "?") + urlencode({"digest": name})
    return Request("PUT", url, what, body=b"", timeout=_FINISH)
