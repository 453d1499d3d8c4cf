"""A botocore client made from a configuration, with a transport that trusts no server.

Botocore chooses the endpoint, finds and renews credentials, signs and parses. Sending is ours, because botocore reads
an answer whatever its length, and its texts may repeat what was sent: what a request proved itself with is taken out
of them. Nothing is retried and no redirect is followed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import botocore.loaders
import botocore.session
import msgspec
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from botocore.utils import get_environ_proxies

from ....erofs.record import Buffer
from ...config.backend import S3, Proxy, describe
from ..http.client import Http, Request, Span

_AWS = "s3.amazonaws.com"  # then botocore knows the right one for the region
_MOST_TEXT = 2 << 20  # bytes of an answer's XML; a page of 1000 parts or uploads has less than 1 MiB
_PATIENCE = 60.0  # seconds, at least, for a server that stores or joins before it answers
_DATA = botocore.loaders.create_loader()  # botocore's own files; what was read once is kept
_SPAN = re.compile(r"bytes=(\d+)-(\d+)")
_PROOFS = re.compile(r"Credential=([^/,]+)|Signature=(\w+)")


def connect(config: S3, connections: int, extra: Mapping[str, str]) -> Any:
    """The botocore client; raises what botocore raises (NoCredentialsError too, which it leaves to each request).

    Args:
        extra: headers of each request, beside those that are signed.
    """
    # Their debug lines hold signed headers, the others of these two no more than names.
    logging.getLogger("botocore").setLevel(logging.INFO)
    session = new_session(config.profile)
    if not config.access_key_id and session.get_credentials() is None:
        raise NoCredentialsError
    options: dict[str, Any] = {"ignore_configured_endpoint_urls": True}  # the stubs do not know it
    api: Any = session.create_client(
        "s3",
        region_name=config.region or session.get_config_variable("region") or "us-east-1",
        use_ssl=config.scheme == "https",
        endpoint_url=None if config.endpoint == _AWS else f"{config.scheme}://{config.endpoint}",
        aws_access_key_id=config.access_key_id or None,
        aws_secret_access_key=config.access_key_secret or None,
        aws_session_token=config.session_token or None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if config.path_style else "virtual"},
            retries={"total_max_attempts": 1, "mode": "standard"},
            # Checksums by default are AWS's alone: other servers refuse or ignore them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **options,
        ),
    )
    if config.proxy is None and (url := get_environ_proxies(api.meta.endpoint_url).get(config.scheme)):
        config = msgspec.structs.replace(config, proxy=Proxy(url=url, fallback=False))
    bundle = session.get_config_variable("ca_bundle") or ""
    transport = _Transport(config, Http(config, connections, bundle=bundle), extra)
    api.meta.events.register("before-send.s3", transport.send)
    api.meta.events.register("before-call.s3", _stay_here)
    return api


def new_session(profile: str) -> botocore.session.Session:
    """A session of botocore's that reads each of its files once."""
    session = botocore.session.Session(profile=profile or None)
    session.register_component("data_loader", _DATA)
    return session


def _stay_here(params: dict[str, Any], **_: Any) -> None:
    """Have botocore believe it followed a redirect already: it would sign for another server, one a server names."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


class _Transport:
    """Sends prepared requests as all backends do. Whatever changes something may take longer."""

    def __init__(self, config: S3, http: Http, extra: Mapping[str, str]) -> None:
        self._http, self._extra, self._what = http, extra, describe(config)
        self._writing = max(config.timeout, _PATIENCE)

    def send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        """Botocore's ``before-send``: the answer, checked, and if it is an error cleaned of what we sent."""
        headers = {**{name: _plain(value) for name, value in request.headers.items()}, **self._extra}
        span = _SPAN.fullmatch(headers.pop("Range", "")) if request.method == "GET" else None
        wanted = Span(int(span[1]), int(span[2]) + 1 - int(span[1])) if span else None
        writing = self._writing if request.method in ("PUT", "POST") else 0.0
        sent: Any = request.body  # bytes, for all that is sent here
        answer = self._http.send(
            Request(request.method, request.url, self._what, headers, sent, wanted, _MOST_TEXT, writing)
        )
        body = answer.body
        if not answer.good:
            for proof in _proofs(headers):
                body = bytes(body).replace(proof, b"...")
        shown: Any = answer.headers
        return AWSResponse(request.url, answer.status, shown, _Body(body))


def _proofs(headers: dict[str, str]) -> list[bytes]:
    """What a request shows to prove who it is from: the key's id, the session's token, the signature."""
    values = {name.lower(): value for name, value in headers.items()}
    found = [proof for pair in _PROOFS.findall(values.get("authorization", "")) for proof in pair]
    return [proof.encode() for proof in (*found, values.get("x-amz-security-token", "")) if proof]


def _plain(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


class _Body:
    """Bytes as botocore expects them from urllib3: all at once, and not copied."""

    def __init__(self, data: Buffer) -> None:
        self._data = data

    def stream(self) -> list[Buffer]:
        return [self._data]

    def read(self, _most: int | None = None) -> Buffer:
        data, self._data = self._data, b""
        return data
