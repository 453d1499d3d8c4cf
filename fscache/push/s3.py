"""Objects into a bucket: small ones at once, larger ones in parts, several at a time.

A blob that is uploaded while it is built has no name yet, and S3 knows no object without one: its parts go to a
temporary one, which the server copies to the blob's own.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO

from ...erofs.errors import BackendError, BlobNotFoundError, DeniedError, SourceError
from ..backend.s3.client import S3Client
from ..config.backend import S3

_PART = 8 << 20  # bytes
_MOST_PARTS = 10_000  # S3's limit: parts are larger in objects of more than 78 GiB
_PAGES = 20  # of a list of parts, 1000 each as a rule
_THREADS = 4
_CANDIDATES = 3  # unfinished uploads that are looked at
_COPY = 4 << 30  # bytes that the server copies in one request; S3's limit is 5 GiB


class S3Writer:
    """Writes to the bucket of a client."""

    def __init__(self, client: S3Client) -> None:
        self.client, self.label = client, client.label

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """As of ``Writer``. A refusal is a no: S3 so answers whoever may not list, where there is no such object."""
        try:
            answer = self.client.call("head_object", name)
        except (BlobNotFoundError, DeniedError):
            return False
        known = {key.lower(): value for key, value in answer.get("Metadata", {}).items()}.get("sha256", sha256)
        return answer.get("ContentLength") == size and bool(known == sha256)

    def put(self, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]) -> None:
        """As of ``Writer``. The server checks the MD5 of all it is sent; the size is asked for afterwards.

        An object appears only when it is whole. If storing fails the parts that are there stay there, unfinished, and
        the next ``put`` of the same bytes continues with them (they cost money until then: give the bucket a
        lifecycle rule). Memory: four parts, 32 MiB; more only above 78 GiB.
        """
        if size <= _PART:
            data = _exactly(file, 0, size)
            self.client.call("put_object", name, Body=data, ContentMD5=md5_of(data)[1], Metadata={"sha256": sha256})
            progress(size)
        else:
            _Upload(self, name, file, size, sha256, progress).run()
        self.check(name, size, sha256)

    def check(self, name: str, size: int, sha256: str) -> None:
        """BackendError unless an object is there after it was stored."""
        if not self.holds(name, size, sha256):
            raise BackendError(
                f"{self.client.what(name)}: after storing it, it is not there as it was sent",
                hint="the keys must be allowed to read it, too",
            )

    def complete(self, name: str, upload: str, etags: Mapping[int, str]) -> None:
        """Make an object of its parts."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]
        self.client.call("complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": parts})


class _Upload:
    """One object in parts. Several threads each take the next part that is missing, read it and send it."""

    def __init__(
        self, writer: S3Writer, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]
    ) -> None:
        self._writer, self._client = writer, writer.client
        self._name, self._file, self._progress = name, file, progress
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
            raise BackendError(f"{self._client.what(self._name)}: the server gives no {field}")
        return value

    def _complete(self, upload: str) -> None:
        try:
            self._writer.complete(self._name, upload, self._etags)
        except BackendError as error:  # which may have come after the deed
            if not error.retryable or not self._writer.holds(self._name, self._size, self._sha256):
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


class S3Way:
    """Parts of 16 MiB: S3 takes 10,000, so a blob may have 156 GiB."""

    piece, parallel = 16 << 20, 4

    def __init__(self, config: S3) -> None:
        self._config = config
        self._client = S3Client(config, self.parallel)
        self._writer = S3Writer(self._client)
        self._name = config.blob_object(f".uploading-{secrets.token_hex(8)}")
        self._upload = ""
        self._etags: dict[int, str] = {}
        self._lock = threading.Lock()

    def send(self, number: int, data: bytes) -> None:
        with self._lock:
            if not self._upload:
                self._upload = str(self._client.call("create_multipart_upload", self._name)["UploadId"])
        part = {"UploadId": self._upload, "PartNumber": number}
        answer = self._client.call("upload_part", self._name, **part, Body=data, ContentMD5=md5_of(data)[1])
        self._etags[number] = str(answer["ETag"])

    def keep(self, sha256: str, size: int) -> None:
        name = self._config.blob_object(sha256)
        if self._writer.holds(name, size, sha256):
            self.drop()
            return
        self._writer.complete(self._name, self._upload, self._etags)
        self._upload = ""
        self._copy(name, sha256, size)
        self._client.call("delete_object", self._name)
        self._writer.check(name, size, sha256)

    def drop(self) -> None:
        with suppress(BackendError):
            if self._upload:
                self._client.call("abort_multipart_upload", self._name, UploadId=self._upload)
            elif self._etags:
                self._client.call("delete_object", self._name)

    def _copy(self, name: str, sha256: str, size: int) -> None:
        source = {"Bucket": self._config.bucket_name, "Key": self._name}
        metadata = {"sha256": sha256}
        if size <= _COPY:
            self._client.call("copy_object", name, CopySource=source, MetadataDirective="REPLACE", Metadata=metadata)
            return
        upload = str(self._client.call("create_multipart_upload", name, Metadata=metadata)["UploadId"])
        etags = {}
        for number, begin in enumerate(range(0, size, _COPY), 1):
            span = f"bytes={begin}-{min(begin + _COPY, size) - 1}"
            part = {"UploadId": upload, "PartNumber": number}
            answer = self._client.call("upload_part_copy", name, **part, CopySource=source, CopySourceRange=span)
            etags[number] = str(answer["CopyPartResult"]["ETag"])
        self._writer.complete(name, upload, etags)


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
