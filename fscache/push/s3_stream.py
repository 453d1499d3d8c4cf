"""A blob into a bucket while it is built.

S3 knows no object without a name, so the parts go to a temporary one; the server copies it to the blob's own name.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress

from ...erofs.errors import BackendError
from ..backend.s3.client import S3Client
from ..config.backend import S3
from .s3 import md5_of

_COPY = 4 << 30  # bytes that the server copies in one request; S3's limit is 5 GiB


class S3Way:
    """Parts of 16 MiB: S3 takes 10,000, so a blob may have 156 GiB."""

    piece, parallel = 16 << 20, 4

    def __init__(self, config: S3) -> None:
        self._config = config
        self._client = S3Client(config, self.parallel)
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
        if self._client.holds(name, size, sha256):
            self.drop()
            return
        self._complete(self._name, self._upload, self._etags)
        self._upload = ""
        self._copy(name, sha256, size)
        self._client.call("delete_object", self._name)
        if not self._client.holds(name, size, sha256):
            raise BackendError(
                f"{self._client.label}: object {name}: after storing it, it is not there as it was sent"
            )

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
        self._complete(name, upload, etags)

    def _complete(self, name: str, upload: str, etags: dict[int, str]) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]
        self._client.call("complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": parts})
