"""What went wrong with an S3 request, for people and for whoever decides about trying again.

Texts of servers are cut to one short line, and none of botocore's messages is used: they hold whole URLs.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as boto
from urllib3 import exceptions as http
from urllib3.util.ssl_match_hostname import CertificateError

from ....erofs.errors import BackendError, BlobNotFoundError, DeniedError
from ...config.backend import S3

_LONGEST_PAUSE = 60.0  # seconds that a server may ask for
_DENIED = {
    "InvalidAccessKeyId": ("the server does not know the access key id", "check access_key_id"),
    "XAdminUserNotFound": (
        "the server does not know the access key id",
        "check access_key_id",
    ),  # versitygw's, with 404
    "SignatureDoesNotMatch": ("the signature does not match", "check access_key_secret, and region"),
    "AccessDenied": (
        "access is denied",
        "check the bucket's policy; whoever may not list also gets this where nothing is",
    ),
    "RequestTimeTooSkewed": ("the clocks differ too much", "this host's clock is wrong: synchronize it"),
    "RequestExpired": ("the request is too old", "this host's clock is wrong: synchronize it"),
    "ExpiredToken": ("the credentials have expired", "renew session_token and the keys that belong to it"),
    "TokenRefreshRequired": ("the credentials have expired", "renew session_token and the keys that belong to it"),
    "InvalidToken": ("the session token is not valid", "check session_token: it belongs to one pair of keys"),
}
_TRANSIENT = {
    "SlowDown": "the server asks for fewer requests",
    "TooManyRequests": "the server asks for fewer requests",
    "RequestTimeout": "the server waited too long for the request",
    "BadDigest": "what arrived there is not what was sent",
    "XAmzContentSHA256Mismatch": "what arrived there is not what was sent",
    "NoSuchUpload": "the upload was finished or dropped by somebody else",
}
_FOR_KEYS = (
    "AssumeRole",
    "AssumeRoleWithWebIdentity",
    "GetRoleCredentials",
    "CreateToken",
)  # not of S3: botocore's way
_ELSEWHERE = ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
              "IllegalLocationConstraintException")  # fmt: skip


def translate(error: Exception, what: str, config: S3, url: str = "") -> BackendError:
    """The error to raise instead of one of botocore's or urllib3's.

    Args:
        what: the server and the object, to begin the message with.
        url: of the server as botocore chose it.
    """
    match error:
        case BackendError():
            return error
        case boto.ClientError() if error.operation_name in _FOR_KEYS:
            meta, code = error.response["ResponseMetadata"], _text(error.response.get("Error", {}).get("Code", ""))
            said = f"{what}: no credentials: {error.operation_name} was answered with {code}"
            if int(meta.get("HTTPStatusCode", 0)) >= 500:
                return BackendError(said)
            return DeniedError(said, hint="check the role, whom it trusts, and the token it is asked for with")
        case boto.ClientError():
            return _answered(dict(error.response), what, config)
        case boto.NoCredentialsError() | boto.PartialCredentialsError():
            return DeniedError(
                f"{what}: there are no credentials",
                hint="set access_key_id and access_key_secret, or give the service a role or environment with them",
            )
        case boto.CredentialRetrievalError() | boto.MetadataRetrievalError() | boto.TokenRetrievalError():
            provider = _text(error.kwargs.get("provider", "the instance's metadata"))
            return BackendError(f"{what}: no credentials could be had from {provider}")
        case boto.UnauthorizedSSOTokenError() | boto.SSOTokenLoadError():
            return DeniedError(f"{what}: the single sign-on has expired", hint="run: aws sso login")
        case boto.ProfileNotFound():
            profile = _text(error.kwargs["profile"])
            return BackendError(f"{what}: the AWS configuration files have no profile {profile}", retryable=False)
        case boto.ParamValidationError() | boto.InvalidRegionError() | boto.InvalidConfigError():
            name = type(error).__name__
            return BackendError(f"{what}: botocore refuses this configuration ({name})", retryable=False)
    return _unanswered(error, what, config, url)


def _answered(response: dict[str, Any], what: str, config: S3) -> BackendError:
    """The server says no."""
    meta = response["ResponseMetadata"]
    status, headers = int(meta.get("HTTPStatusCode", 0)), meta.get("HTTPHeaders", {})
    told = response.get("Error", {})
    code = _text(told.get("Code", ""))
    says = f"{status} {code}".removesuffix(f" {status}")  # where the answer has no body, the code is the status
    if code in _DENIED:
        said, hint = _DENIED[code]
        return DeniedError(f"{what}: {said} ({code})", hint=hint)
    if code == "NoSuchBucket":
        return BlobNotFoundError(f"{what}: there is no bucket {config.bucket_name!r}", hint="check bucket_name")
    if code in _TRANSIENT:
        return BackendError(f"{what}: {_TRANSIENT[code]} ({says})", retry_after=pause(headers.get("retry-after", "")))
    region = str(headers.get("x-amz-bucket-region") or told.get("Region", ""))
    if 300 <= status < 400 or code in _ELSEWHERE or (status == 400 and region):
        known = re.fullmatch(r"[a-z0-9-]{1,40}", region)
        hint = f"set region to {region!r}" if known else "check region and endpoint"
        return BackendError(f"{what}: the server sends us elsewhere ({says})", hint=hint, retryable=False)
    if status in (401, 403):
        return DeniedError(f"{what}: the server refuses ({says})", hint="check the keys, and the bucket's policy")
    if status == 404:
        bucket = " or bucket" if code == "404" else ""  # an answer without a body tells no more
        return BlobNotFoundError(f"{what}: there is no such object{bucket}")
    if status == 416:
        return BackendError(f"{what}: the object is shorter than the image says (416)", retryable=False)
    if message := _text(told.get("Message", "")):
        says += f": {message}"
    retryable = status in (408, 429) or (status >= 500 and status != 501)
    after = pause(headers.get("retry-after", "")) if retryable else 0.0
    return BackendError(f"{what}: the server answers {says}", retryable=retryable, retry_after=after)


def _unanswered(error: Exception, what: str, config: S3, url: str) -> BackendError:
    """Nothing came, or something that cannot be understood."""
    fields = getattr(error, "kwargs", {})
    place = _host(
        fields.get("proxy_url") or fields.get("endpoint_url") or url or f"{config.scheme}://{config.endpoint}"
    )
    if config.proxy:
        place += f" (through the proxy {_host(config.proxy.url)})"
    causes = list(_causes(error))
    connecting = isinstance(error, boto.EndpointConnectionError | boto.ProxyConnectionError)
    for cause in causes:
        match cause:
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                return BackendError(f"{what}: {place} closed the connection")
            case ssl.SSLCertVerificationError():
                return BackendError(
                    f"{what}: {place}: the certificate is not trusted: {_text(cause.verify_message)}",
                    hint="name its issuer's certificate in ca_cert_files, or set skip_verify",
                    retryable=False,
                )
            case CertificateError():
                return BackendError(
                    f"{what}: {place}: the certificate is not trusted: it is for another host",
                    hint="check endpoint, or set skip_verify",
                    retryable=False,
                )
            case ssl.SSLError() if not isinstance(cause, TimeoutError):
                return BackendError(
                    f"{what}: {place}: TLS failed: {_text(cause.reason or 'no reason given')}",
                    hint="does the server speak https? See scheme, ca_cert_files and skip_verify",
                    retryable=False,
                )
            case socket.gaierror():
                return BackendError(f"{what}: the name of {place} cannot be resolved: {_text(cause.strerror)}")
            case boto.ConnectTimeoutError():
                return BackendError(f"{what}: cannot connect to {place} within {config.connect_timeout:g} s")
            case TimeoutError() if connecting:
                return BackendError(f"{what}: cannot connect to {place} within {config.connect_timeout:g} s")
            case boto.ReadTimeoutError() | http.ReadTimeoutError() | TimeoutError():
                return BackendError(f"{what}: {place} sent nothing for {config.timeout:g} s or more")
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            verb = "cannot connect to" if connecting else "lost the connection to"
            return BackendError(f"{what}: {verb} {place}: {_text(cause.strerror)}")
    if isinstance(error, boto.HTTPClientError | http.HTTPError):
        return BackendError(f"{what}: {place} closed the connection")
    return BackendError(f"{what}: {place} gave an answer that is not understood ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it is made from, outermost first."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen and len(seen) < 50:
            seen.add(id(one))
            yield one
            kept = getattr(one, "kwargs", {}).get("error"), getattr(one, "reason", None)
            waiting += [*kept, *one.args, one.__cause__, one.__context__]


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _text(value: object) -> str:
    """A foreign text as one line of 200 printable characters at most."""
    words = "".join(c if c.isprintable() else " " for c in str(value)[:1000])
    return " ".join(words.split())[:200]


def pause(value: str) -> float:
    """Seconds of a Retry-After header (a number or a date), 60 at most."""
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)
