"""One blob on its way into a registry: in pieces, and after a broken connection on from where the server has it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import urlencode

from ...erofs.errors import BackendError
from ..backend.http.client import Answer, Request
from ..backend.http.location import location_of

PIECE = 16 << 20  # bytes
_FAILURES = 5  # without progress between them, until it is given up
_RESUMES = 2  # of those, the failures after which the same upload is tried further; then a new one is begun
_PAUSE = 0.2  # seconds after the first failure, doubled after each further one
FINISH = 300.0  # seconds in which the server puts the pieces together and checks them


class Upload:
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
        body = self._file.read(min(PIECE, self._size - offset))
        if not body:
            raise BackendError(f"{self._what}: the file ends at byte {offset} of {self._size}", retryable=False)
        end = offset + len(body)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{offset}-{end - 1}"}
        request = Request("PATCH", url, self._what, headers, body)
        return location_of(request, self._expect(request)), end

    def _finish(self, url: str, name: str) -> None:
        url += ("&" if "?" in url else "?") + urlencode({"digest": name})
        self._expect(Request("PUT", url, self._what, body=b"", timeout=FINISH))

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
