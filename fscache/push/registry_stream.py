"""A blob into a registry while it is built: an upload gets its digest with its last request."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlencode

from ...erofs.errors import BackendError
from ..backend.http.client import Answer, Request
from ..backend.http.location import location_of
from ..backend.registry.client import RegistryClient
from ..config.backend import Registry
from .registry import FINISH


class RegistryWay:
    """Pieces of 16 MiB one after the other: a registry takes them in no other way."""

    piece, parallel = 16 << 20, 1

    def __init__(self, config: Registry) -> None:
        self._client = RegistryClient(config, 1)
        self._what = f"a blob of {self._client.label}"
        self._url = ""
        self._offset = 0

    def send(self, number: int, data: bytes) -> None:
        if not self._url:
            self._request(Request("POST", self._client.uploads, self._what))
        end = self._offset + len(data)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{self._offset}-{end - 1}"}
        self._request(Request("PATCH", self._url, self._what, headers, data))
        self._offset = end

    def keep(self, sha256: str, size: int) -> None:
        name = f"sha256:{sha256}"
        if self._client.holds(name, size, sha256):
            self.drop()
            return
        url = self._url + ("&" if "?" in self._url else "?") + urlencode({"digest": name})
        answer = self._client.push(Request("PUT", url, self._what, body=b"", timeout=FINISH))
        if not answer.good:
            raise answer.error(self._what)
        self._url = ""

    def drop(self) -> None:
        if self._url:
            with suppress(BackendError):
                self._client.push(Request("DELETE", self._url, self._what))

    def _request(self, request: Request) -> Answer:
        answer = self._client.push(request)
        if not answer.good:
            raise answer.error(self._what)
        self._url = location_of(request, answer)
        return answer
