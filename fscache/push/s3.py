"""Storing objects in a bucket: small ones at once, larger ones in parts, several at a time."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from ...erofs.errors import BackendError, SourceError

if TYPE_CHECKING:
    from ..backend.s3.client import S3Client

_PART = 8 << 20  # bytes
_MOST_PARTS = 10_000  # S3's limit: parts are larger in objects of more than 78 GiB
_PAGES = 20  # of a list of parts, 1000 each as a rule
_THREADS = 4
_CANDIDATES = 3  # unfinished uploads that are looked at


def put(client: S3Client, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]) -> None:
    """``base.Writer.put``. The server checks the MD5 of all it is sent; the size is asked for afterwards.

    An object appears only when it is whole. If storing fails the parts that are there stay there, unfinished, and the
    next ``put`` of the same bytes continues with them (they cost money until then: give the bucket a lifecycle rule).
    Memory: four parts, 32 MiB; more only above 78 GiB.
    """
    if size <= _PART:
        data = _exactly(file, 0, size)
        client.call("put_object", name, Body=data, ContentMD5=md5_of(data)[1], Metadata={"sha256": sha256})
        progress(size)
    else:
        _Upload(client, name, file, size, sha256, progress).run()
    if not client.holds(name, size, sha256):
        raise BackendError(
            f"{client.label}: object {name}: after storing it, it is not there as it was sent",
            hint="the keys must be allowed to read it, too",
        )


class _Upload:
    """One object in parts. Several threads each take the next part that is missing, read it and send it."""

    def __init__(
        self, client: S3Client, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]
    ) -> None:
        self._client, self._name, self._file, self._progress = client, name, file, progress
        self._size, self._sha256 = size, sha256
        self._part = max(_PART, -(-size // _MOST_PARTS >> 20) << 20)
        self._count = -(-size // self._part)
        self._etags: dict[int, str] = {}
        self._missing: Iterator[int] = iter(())
        self._lock = threading.Lock()

    def run(self) -> None:
        if upload := self._unfinished():
            self._progress(sum(self._span(number)[1] for number in self._etags))
        else:
            upload = self._told("UploadId", "create_multipart_upload", Metadata={"sha256": self._sha256})
        self._missing = iter([number for number in range(1, self._count + 1) if number not in self._etags])
        workers = min(_THREADS, self._client.connections)
        with ThreadPoolExecutor(workers, thread_name_prefix="s3-put") as pool:
            try:
                for done in [pool.submit(self._send, upload) for _ in range(workers)]:
                    done.result()
            finally:
                self._stop()
        self._complete(upload)

    def _told(self, field: str, operation: str, **fields: Any) -> str:
        """One field of an answer."""
        answer = self._client.call(operation, self._name, **fields)
        if not isinstance(value := answer.get(field), str):
            raise BackendError(f"{self._client.label}: object {self._name}: the server gives no {field}")
        return value

    def _complete(self, upload: str) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
        try:
            self._client.call(
                "complete_multipart_upload", self._name, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BackendError as error:  # which may have come after the deed
            if not error.retryable or not self._client.holds(self._name, self._size, self._sha256):
                raise

    def _stop(self) -> None:
        with self._lock:
            self._missing = iter(())

    def _span(self, number: int) -> tuple[int, int]:
        """Offset and length of a part."""
        offset = (number - 1) * self._part
        return offset, min(self._part, self._size - offset)

    def _send(self, upload: str) -> None:
        while True:
            with self._lock:
                if (number := next(self._missing, None)) is None:
                    return
                data = _exactly(self._file, *self._span(number))
            try:
                etag = self._told(
                    "ETag", "upload_part", UploadId=upload, PartNumber=number, Body=data, ContentMD5=md5_of(data)[1]
                )
                with self._lock:
                    self._etags[number] = etag
                    self._progress(len(data))
            except BaseException:
                self._stop()  # the others need not go on
                raise

    def _unfinished(self) -> str | None:
        """An earlier upload to continue, with the parts it has in ``_etags``."""
        try:
            found = self._client.call("list_multipart_uploads", self._name, Prefix=self._name).get("Uploads", [])
            uploads = [
                one for one in found if one.get("Key") == self._name and {"Initiated", "UploadId"} <= one.keys()
            ]
            uploads.sort(key=lambda upload: upload["Initiated"], reverse=True)
            for upload in uploads[:_CANDIDATES]:
                if etags := self._same(self._parts(upload["UploadId"])):
                    self._etags = etags
                    return str(upload["UploadId"])
        except BackendError as error:
            if error.retryable:
                raise
        return None  # also where these lists are not allowed, or not known

    def _parts(self, upload: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        marker = 0
        for _ in range(_PAGES):
            answer = self._client.call("list_parts", self._name, UploadId=upload, PartNumberMarker=marker)
            found += answer.get("Parts", [])
            marker = answer.get("NextPartNumberMarker", 0)
            if not answer.get("IsTruncated"):
                break
        return found

    def _same(self, parts: list[dict[str, Any]]) -> dict[int, str]:
        """ETags of the parts, if every one has the bytes of ours; else nothing: it is an upload of something else."""
        etags: dict[int, str] = {}
        for part in parts:
            number = part.get("PartNumber", 0)
            if not 1 <= number <= self._count or part.get("Size") != self._span(number)[1]:
                return {}
            if str(part.get("ETag", "")).strip('"') != md5_of(_exactly(self._file, *self._span(number)))[0]:
                return {}
            etags[number] = part["ETag"]
        return etags


def _exactly(file: BinaryIO, offset: int, length: int) -> bytes:
    try:
        file.seek(offset)
        data = file.read(length)
    except OSError as error:
        raise SourceError(f"the file to store cannot be read: {error.strerror}") from None
    if len(data) != length:
        raise SourceError(f"the file to store ends before byte {offset + length}: it changed meanwhile")
    return data


def md5_of(data: bytes) -> tuple[str, str]:
    """In hex, as in ETags, and in base64, as in Content-MD5."""
    digest = hashlib.md5(data, usedforsecurity=False)
    return digest.hexdigest(), base64.b64encode(digest.digest()).decode()
