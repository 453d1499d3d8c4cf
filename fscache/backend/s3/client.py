"""Objects of an S3 bucket: AWS's own, or any server that speaks the same protocol."""

from __future__ import annotations

import re
import threading
from typing import Any

from ....erofs.errors import BackendError
from ...config.backend import S3, describe
from ..base import ObjectInfo

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class S3Client:
    """A client of one bucket, safe for several threads.

    botocore is loaded, and credentials are looked for, by the first request. Credentials that expire are renewed.

    Args:
        connections: kept open for further requests.
    """

    def __init__(self, config: S3, connections: int) -> None:
        self.label = describe(config)
        self.connections = connections
        self._config = config
        self._api: Any = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Client({self.label})"

    def stat(self, name: str) -> ObjectInfo:
        try:
            answer = self.call("head_object", name)
        except BackendError as error:
            if not error.retryable:
                self.read(name, 0, 1)  # fails too, and says why: answers to HEAD have no text
            raise
        return ObjectInfo(self._size(answer, name), str(answer.get("ETag", "")).strip('"')[:200])

    def read(self, name: str, offset: int, length: int) -> bytes:
        last = offset + length - 1
        answer = self.call("get_object", name, Range=f"bytes={offset}-{last}")
        body = answer["Body"]
        try:
            self._check_range(answer, name, offset, length)
            pieces, got = [], 0
            while got <= length and (piece := body.read(length + 1 - got)):
                pieces.append(piece)
                got += len(piece)
        except Exception as error:
            body.close()  # the connection with it: what else it would bring is not wanted
            if isinstance(error, BackendError):
                raise
            raise self._translated(error, f"{self._what(name)}: bytes {offset}-{last}") from None
        if got != length:
            body.close()
            raise self._wrong(name, f"{got if got < length else 'more'} bytes", length)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def call(self, operation: str, name: str, **fields: Any) -> dict[str, Any]:
        """One request of botocore's about one object (or ``Prefix``, for lists); its errors as ours."""
        if "Prefix" not in fields:
            fields["Key"] = name
        try:
            method = getattr(self._connected(), operation)
            answer: dict[str, Any] = method(Bucket=self._config.bucket_name, **fields)
        except Exception as error:
            raise self._translated(error, self._what(name)) from None
        return answer

    def _connected(self) -> Any:
        with self._lock:
            if self._api is None:
                from .connect import connect

                self._api = connect(self._config, self.connections)
            return self._api

    def _check_range(self, answer: dict[str, Any], name: str, offset: int, length: int) -> None:
        """Whether the bytes that come are those that were asked for, before any is read."""
        meta = answer["ResponseMetadata"]
        sent = answer.get("ContentLength", length)
        if meta["HTTPStatusCode"] == 206:
            span = _RANGE.fullmatch(str(answer.get("ContentRange", "")))
            right = span is not None and (int(span[1]), int(span[2])) == (offset, offset + length - 1)
            what = f"bytes {span[1]}-{span[2]}" if span else "bytes without saying which"
            if span and span[3] != "*" and offset <= int(span[3]) < offset + length:
                raise BackendError(
                    f"{self._what(name)}: the object is shorter than the image says: it has {int(span[3])} bytes",
                    retryable=False,
                )
        else:  # a server that knows no ranges sends all
            right = offset == 0 and "ContentLength" in answer
            what = f"{sent} bytes" if "ContentLength" in answer else "the whole object"
        if not right or sent != length:
            raise self._wrong(name, what if not right else f"{sent} bytes", length, offset)

    def _wrong(self, name: str, what: str, length: int, offset: int | None = None) -> BackendError:
        place = "" if offset is None else f" from {offset}"
        return BackendError(f"{self._what(name)}: the server answered {what} instead of {length}{place}")

    def _size(self, answer: dict[str, Any], name: str) -> int:
        size = answer.get("ContentLength")
        if not isinstance(size, int) or size < 0:
            raise BackendError(f"{self._what(name)}: the server does not say how long it is")
        return size

    def _what(self, name: str) -> str:
        return f"{self.label}: object {name}"

    def _translated(self, error: Exception, what: str) -> BackendError:
        from .errors import translate

        return translate(error, what, self._config, self._api.meta.endpoint_url if self._api else "")
