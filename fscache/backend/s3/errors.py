"""What is S3's own about requests that went wrong: its codes, and botocore's classes. ``http.errors`` has the rest.

Texts of servers are cut to one short line, and none of botocore's messages is used: they hold whole URLs.
"""

from __future__ import annotations

import re
from typing import Any

from botocore import exceptions as boto

from ....erofs.errors import BackendError, BlobNotFoundError, DeniedError
from ...config.backend import S3
from ..http.errors import host_port, one_line, retry_after, status_error, transport_error

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


def translate(error: Exception, what: str, config: S3) -> BackendError:
    """The error to raise instead of one of botocore's.

    Args:
        what: the object and its server, to begin the message with.
    """
    match error:
        case boto.ClientError() if error.operation_name in _FOR_KEYS:
            meta, code = error.response["ResponseMetadata"], one_line(error.response.get("Error", {}).get("Code", ""))
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
            provider = one_line(error.kwargs.get("provider", "the instance's metadata"))
            return BackendError(f"{what}: no credentials could be had from {provider}")
        case boto.UnauthorizedSSOTokenError() | boto.SSOTokenLoadError():
            return DeniedError(f"{what}: the single sign-on has expired", hint="run: aws sso login")
        case PermissionError() | FileNotFoundError():  # while looking for keys; servers are asked elsewhere
            place = one_line(str(error.filename or "a program"))
            return DeniedError(
                f"{what}: no credentials could be had from {place}: {error.strerror}",
                hint="the service's own user must be able to read it; it starts no program (credential_process)",
            )
        case boto.ProfileNotFound():
            profile = one_line(error.kwargs["profile"])
            return BackendError(f"{what}: the AWS configuration files have no profile {profile}", retryable=False)
        case boto.ParamValidationError() | boto.InvalidRegionError() | boto.InvalidConfigError():
            name = type(error).__name__
            return BackendError(f"{what}: botocore refuses this configuration ({name})", retryable=False)
    return _unanswered(error, what)


def _answered(response: dict[str, Any], what: str, config: S3) -> BackendError:
    """The server says no."""
    meta = response["ResponseMetadata"]
    status, headers = int(meta.get("HTTPStatusCode", 0)), meta.get("HTTPHeaders", {})
    told = response.get("Error", {})
    code = one_line(told.get("Code", ""))
    says = f"{status} {code}".removesuffix(f" {status}")  # where the answer has no body, the code is the status
    wait = retry_after(headers.get("retry-after", ""))
    if code in _DENIED:
        said, hint = _DENIED[code]
        return DeniedError(f"{what}: {said} ({code})", hint=hint)
    if code == "NoSuchBucket":
        return BlobNotFoundError(f"{what}: there is no bucket {config.bucket_name!r}", hint="check bucket_name")
    if code in _TRANSIENT:
        return BackendError(f"{what}: {_TRANSIENT[code]} ({says})", retry_after=wait)
    region = str(headers.get("x-amz-bucket-region") or told.get("Region", ""))
    if 300 <= status < 400 or code in _ELSEWHERE or (status == 400 and region):
        known = re.fullmatch(r"[a-z0-9-]{1,40}", region)
        hint = f"set region to {region!r}" if known else "check region and endpoint"
        return BackendError(f"{what}: the server sends us elsewhere ({says})", hint=hint, retryable=False)
    message = one_line(told.get("Message", ""))
    text = ": ".join(word for word in (code, message) if word and word != str(status))
    return status_error(what, host_port(f"{config.scheme}://{config.endpoint}"), status, text, wait)


def _unanswered(error: Exception, what: str) -> BackendError:
    """Nothing came from where the keys should, or something came that cannot be understood."""
    if isinstance(error, boto.HTTPClientError):
        where, cause = host_port(str(error.kwargs.get("endpoint_url", ""))), error.kwargs.get("error")
        return transport_error(what, where, cause if isinstance(cause, Exception) else error, begun=False)
    return BackendError(f"{what}: the answer is not understood ({type(error).__name__})")
