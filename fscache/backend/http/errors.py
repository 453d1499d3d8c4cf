"""What an answer, or the lack of one, means: statuses and urllib3's exceptions as our errors, for all backends.

The text of an exception of urllib3 may hold a URL with its query, so none of it is shown: only the system's words
for an errno, and OpenSSL's for a certificate.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime

import msgspec
import urllib3
from urllib3 import exceptions as u3

from ....erofs.errors import BackendError, BlobNotFoundError, DeniedError
from ...decoding import decoded

_LONGEST_PAUSE = 60.0  # seconds: a server that asks for more is asked again all the same
_TEXT = 200  # characters of a server's words that are shown
_PLAIN_HTTP = (  # OpenSSL's words for an answer in the clear
    "wrong version number", "http request", "record layer failure", "packet length too long",
)  # fmt: skip
_SCHEME_HINT = 'does the server speak https? If not, set scheme to "http", or say --plain-http'
_TRUST_HINT = "name the server's CA in ca_cert_files, or set skip_verify (or say --insecure)"


class _Entry(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    """How registries say what is wrong."""

    errors: list[_Entry]


_ERRORS = msgspec.json.Decoder(_Errors)


def host_port(url: str) -> str:
    """``host:port`` of a URL: all that a message shows of it."""
    try:
        parts = urllib3.util.parse_url(url)
    except u3.LocationParseError:
        return "(not a URL)"
    return f"{parts.host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def server_text(body: bytes, secrets: Iterable[str], *, signed: bool) -> str:
    """A server's words about an error: one line, printable, bounded.

    Args:
        secrets: what was sent in confidence: words that repeat any of it are not shown at all.
        signed: the request's URL was itself a credential. Storage servers repeat its parts; only the code is shown.
    """
    text = body.decode("utf-8", "replace")
    try:
        text = "; ".join(f"{one.code}: {one.message}" for one in decoded(_ERRORS, body).errors[:3])
    except msgspec.DecodeError:
        code = re.search(r"<Code>(\w{1,60})</Code>", text)
        if code or signed or "<html" in text.lower():
            text = code[1] if code else ""
    text = one_line(text)
    return "" if any(secret in text for secret in secrets if secret) else text


def one_line(text: object) -> str:
    """Foreign words: one printable line, bounded."""
    printable = "".join(char if char.isprintable() else " " for char in str(text)[: 10 * _TEXT])
    line = " ".join(printable.split())
    return line if len(line) <= _TEXT else line[: _TEXT - 3] + "..."


def retry_after(value: str) -> float:
    """Seconds of a Retry-After header: a number or a date. 0 when it is neither, 60 at most."""
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value[:64]).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)


def status_error(what: str, where: str, status: int, text: str = "", wait: float = 0.0) -> BackendError:
    """The error that a status means.

    Args:
        what: the object and its server.
        where: ``host:port`` that answered: after a redirect another one.
        text: the server's words.
        wait: seconds of its Retry-After.
    """
    phrase = http.client.responses.get(status, "")
    said = f"{what}: {where} answers {status} {phrase}".rstrip() + (f" ({text})" if text else "")
    match status:
        case 404:
            return BlobNotFoundError(said)
        case 401:
            return DeniedError(said, hint="wrong or missing credentials")
        case 403 | 407:
            return DeniedError(said)
        case 416:
            return BackendError(f"{said}: it is shorter than the image says", retryable=False)
        case 429 | 503:
            return BackendError(said, retry_after=wait)
    return BackendError(said, retryable=status == 408 or (status >= 500 and status != 501))


def transport_error(what: str, where: str, error: Exception, *, begun: bool) -> BackendError:
    """The error that an exception of urllib3, ssl or socket means.

    Args:
        begun: the answer had begun, so that name, connection and certificate were in order.
    """
    causes = list(_causes(error))
    if any(isinstance(one, u3.ProxyError) for one in causes):
        where = f"the proxy before {where}"
    broken = [one for one in causes if isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError))]
    tls: list[BaseException] = [
        one for one in causes if isinstance(one, (ssl.SSLError, ssl.CertificateError, u3.SSLError))
    ]
    timed_out = isinstance(error, (u3.ReadTimeoutError, u3.ConnectTimeoutError, TimeoutError))
    if tls and not (broken or begun or timed_out):
        reason = _tls_reason(tls)
        said = f"{what}: no TLS with {where}: {reason}"
        return BackendError(said, hint=_SCHEME_HINT if speaks_no_tls(error) else _TRUST_HINT, retryable=False)
    if isinstance(error, (u3.LocationValueError, ValueError)) and not isinstance(error, OSError):
        return BackendError(f"{what}: the request to {where} is not valid", retryable=False)
    return BackendError(f"{what}: {_why(error, causes, where)}")


def speaks_no_tls(error: Exception) -> bool:
    """Whether a server answered https in the clear, by an exception of urllib3's or by the error made of it."""
    return any(_tls_reason([one]) in _PLAIN_HTTP for one in _causes(error) if isinstance(one, ssl.SSLError))


def _why(error: Exception, causes: list[BaseException], where: str) -> str:
    if any(isinstance(one, u3.NameResolutionError | socket.gaierror) for one in causes):
        return f"no address for the name of {where}"
    system = next((one.strerror for one in causes if isinstance(one, OSError) and one.errno and one.strerror), "")
    if any(isinstance(one, u3.NewConnectionError) for one in causes):
        return f"no connection to {where}" + (f": {system}" if system else "")
    if any(isinstance(one, u3.ConnectTimeoutError) for one in causes):
        return f"no connection to {where} in time"
    if isinstance(error, (u3.ReadTimeoutError, TimeoutError)):
        return f"{where} sends nothing more: timed out"
    return f"the connection to {where} broke" + (f": {system}" if system else "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those in it: urllib3 wraps by cause, by context and by argument."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo and len(seen) < 20:
        one = todo.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__context__, one.__cause__, *one.args]


def _tls_reason(errors: list[BaseException]) -> str:
    for one in errors:
        if isinstance(one, ssl.SSLCertVerificationError):
            return one.verify_message
    for one in errors:
        if isinstance(one, ssl.SSLError) and one.reason:
            return one.reason.lower().replace("_", " ")
    return "the handshake failed"
