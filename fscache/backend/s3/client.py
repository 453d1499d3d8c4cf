"""Objects of an S3 bucket: AWS's own, or any server that speaks the same protocol."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ....erofs.errors import BackendError, NydusErofsError
from ....erofs.record import Buffer
from ...config.backend import S3, Mirror, describe
from ..base import ObjectInfo
from ..http.deadline import base, held, within


class S3Client:
    """A client of one bucket, safe for several threads.

    botocore is loaded, and credentials are looked for, by the first request. Credentials that expire are renewed.

    Args:
        connections: kept open for further requests.
        headers: of each request, beside those that are signed.
    """

    def __init__(self, config: S3, connections: int, headers: Mapping[str, str] | None = None) -> None:
        self.label = describe(config)
        self.connections = connections
        self._config, self._headers = config, headers or {}
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

    def read(self, name: str, offset: int, length: int) -> Buffer:
        body: Buffer = self.call("get_object", name, Range=f"bytes={offset}-{offset + length - 1}")["Body"].read()
        return body

    def at(self, mirror: Mirror) -> S3Client:
        """As of ``Client``: requests are signed for the mirror, with the same keys."""
        scheme, _, endpoint = mirror.host.rstrip("/").partition("://")
        there = replace(self._config, scheme=scheme, endpoint=endpoint, proxy=None, mirrors=[])
        return S3Client(there, self.connections, mirror.headers)

    def what(self, name: str) -> str:
        """One object and its server, for messages."""
        return f"object {name} of {self.label}"

    def call(self, operation: str, name: str, **fields: Any) -> dict[str, Any]:
        """One request of botocore's about one object (or ``Prefix``, for lists); its errors as ours."""
        if "Prefix" not in fields:
            fields["Key"] = name
        try:
            with within(base(self._config)):
                method = getattr(self._connected(), operation)
                answer: dict[str, Any] = method(Bucket=self._config.bucket_name, **fields)
        except BackendError as error:  # of the transport, which does not know names
            error.message = f"object {name} of {error.message}"
            raise
        except NydusErofsError:
            raise
        except Exception as error:
            from .errors import translate

            raise translate(error, self.what(name), self._config) from None
        return answer

    def _connected(self) -> Any:
        with held(self._lock, self.label):
            if self._api is None:
                from .connect import connect

                self._api = connect(self._config, self.connections, self._headers)
            return self._api

    def _size(self, answer: dict[str, Any], name: str) -> int:
        size = answer.get("ContentLength")
        if not isinstance(size, int) or size < 0:
            raise BackendError(f"{self.what(name)}: the server does not say how long it is")
        return size
