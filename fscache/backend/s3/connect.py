"""A botocore client made from a configuration, with a transport that trusts no server.

Botocore chooses the endpoint, finds and renews credentials, signs and parses. Sending is done here, because botocore
reads an answer whatever its length and its texts may repeat what was sent: bodies that are not an object's bytes are
cut, and what a request proved itself with is taken out of them. Nothing is retried and no redirect is followed.
"""

from __future__ import annotations

import io
import logging
import os
import re
import ssl
import tempfile
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import URLLib3Session, get_cert_path
from botocore.utils import get_environ_proxies

from ....erofs.errors import BackendError
from ...config.backend import S3

_AWS = "s3.amazonaws.com"  # then botocore knows the right one for the region
_MOST_TEXT = 2 << 20  # bytes of an answer's XML; a page of 1000 parts or uploads has less than 1 MiB
_PATIENCE = 60.0  # seconds, at least, for a server that stores or joins before it answers
_BUNDLES = (  # of the distributions
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip
_DATA = botocore.loaders.create_loader()  # botocore's own files; what was read once is kept
_PROOFS = re.compile(r"Credential=([^/,]+)|Signature=(\w+)")


def connect(config: S3, connections: int) -> Any:
    """The botocore client; raises what botocore raises (NoCredentialsError too, which it leaves to each request)."""
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
    if config.skip_verify:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    trust = None if config.skip_verify else _Trust(config, session.get_config_variable("ca_bundle"))
    transport = _Transport(config, api.meta.endpoint_url, connections, trust)
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


class _Trust:
    """Certificates to trust: the system's and those of the configuration, as ``path`` of a file.

    Several files are joined in a temporary one, which goes with this object. (Nothing below /proc/self can be opened
    by a process without privilege that once had some.)
    """

    def __init__(self, config: S3, named: str | None) -> None:
        system = (named, ssl.get_default_verify_paths().cafile, *_BUNDLES)
        self.path = next((path for path in system if path and os.access(path, os.R_OK)), None) or str(
            get_cert_path(True)
        )
        if not config.ca_cert_files:
            return
        texts = [_certificates(path) for path in (self.path, *config.ca_cert_files)]
        self._file = tempfile.NamedTemporaryFile(prefix="trusted.")  # noqa: SIM115 - open as long as this is
        self._file.write(b"\n".join(texts))
        self._file.flush()
        self.path = self._file.name


def _certificates(path: str) -> bytes:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        return Path(path).read_bytes()
    except OSError as error:  # SSLError is one
        what = "holds no certificate in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
        hint = "the service's own user must be able to read it" if isinstance(error, PermissionError) else None
        raise BackendError(f"ca_cert_files: {path}: {what}", hint=hint, retryable=False) from None


class _Transport:
    """Sends prepared requests over two pools of connections: one for reading, one that waits longer, for writing."""

    def __init__(self, config: S3, url: str, connections: int, trust: _Trust | None) -> None:
        proxy = config.proxy and config.proxy.url
        self._trust = trust
        options: dict[str, Any] = {  # more than the stubs allow
            "verify": trust.path if trust else False,
            "proxies": {"http": proxy, "https": proxy} if proxy else get_environ_proxies(url),
            "max_pool_connections": connections,
        }
        reading: Any = config.connect_timeout, config.timeout
        writing: Any = config.connect_timeout, max(config.timeout, _PATIENCE)
        self._reading = URLLib3Session(timeout=reading, **options)
        self._writing = URLLib3Session(timeout=writing, **options)

    def send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        """Botocore's ``before-send``: a stream where an object's bytes come, else the answer, cut and cleaned."""
        stream, request.stream_output = request.stream_output, True
        response = (self._writing if request.method in ("PUT", "POST") else self._reading).send(request)
        if stream and response.status_code < 300:
            return response
        body = bytearray()
        for piece in response.raw.stream(1 << 16):
            body += piece
            if len(body) > _MOST_TEXT:
                response.raw.close()
                break
        text = bytes(body[:_MOST_TEXT])
        if response.status_code >= 300:
            for proof in _proofs(request):
                text = text.replace(proof, b"...")
        headers: Any = response.headers
        return AWSResponse(response.url, response.status_code, headers, _Body(text))


def _proofs(request: AWSPreparedRequest) -> list[bytes]:
    """What a request shows to prove who it is from: the key's id, the session's token, the signature."""
    values = {name.lower(): _plain(value) for name, value in request.headers.items()}
    found = [proof for pair in _PROOFS.findall(values.get("authorization", "")) for proof in pair]
    return [proof.encode() for proof in (*found, values.get("x-amz-security-token", "")) if proof]


def _plain(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


class _Body(io.BytesIO):
    """Bytes as botocore expects them from urllib3."""

    def stream(self) -> list[bytes]:
        return [self.getvalue()]
