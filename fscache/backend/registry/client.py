"""One repository of an OCI registry (distribution specification 1.1): blobs in parts, and manifests.

Redirects to blob storage are followed by hand: the Authorization header is for the registry alone. A redirect's
target is kept for each blob until it fails, because the registry would only send us there again.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import replace
from typing import NamedTuple

import urllib3
from msgspec.structs import replace as replace_fields

from ....erofs.errors import BackendError, ConfigError, CorruptError
from ....erofs.record import Buffer
from ...config import backend as config
from ...config.reference import registry_host
from ...credentials.basic import decode
from ..base import ObjectInfo
from ..http.client import Answer, Http, Request, Span
from ..http.deadline import held
from ..http.errors import speaks_no_tls
from ..http.location import location_of, origin
from .tokens import Tokens

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MANIFEST_LIMIT = 4 << 20  # bytes, as the specification has it
_HOPS = 5
_REDIRECTS_KEPT = 4096  # blobs
_PART = "[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*"
_REPO = re.compile(f"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


class Manifest(NamedTuple):
    """A manifest or index as its bytes, which are what its digest is of."""

    data: bytes
    digest: str  # algorithm:hex
    media_type: str


class RegistryClient:
    """Reads one repository. Blobs are named ``sha256:<hex>``.

    Args:
        connections: kept open to each server.
        mirror: to ask instead of the registry, with
        tokens: the registry's.
    """

    def __init__(
        self,
        backend: config.Registry,
        connections: int,
        mirror: config.Mirror | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        if len(backend.repo) > 255 or not _REPO.fullmatch(backend.repo):
            raise ConfigError(f"repo: {backend.repo!r} is not the name of a repository")
        self.label = config.describe(backend)
        if backend.finds_scheme:
            backend = replace_fields(backend, skip_verify=True)
        self._config, self._connections, self._mirror = backend, connections, mirror
        self._known_base = mirror.host.rstrip("/") if mirror else ""
        self._lock = threading.Lock()
        password = decode(backend.auth)[1] if backend.auth else ""
        self._http = Http(backend, connections, [backend.auth, password, backend.registry_token])
        self._tokens = tokens or Tokens(backend, self._http.send, lambda: self._base.startswith("https:"))
        self._redirects: dict[str, str] = {}  # by blob; single operations on it need no lock

    @property
    def _base(self) -> str:
        """Scheme and host of the server."""
        with held(self._lock, self.label):
            if not self._known_base:
                host = registry_host(self._config.host)
                scheme = self._found_scheme(host) if self._config.finds_scheme else self._config.scheme or "https"
                self._known_base = f"{scheme}://{host}"
            return self._known_base

    def _found_scheme(self, host: str) -> str:
        """As docker and containerd find it: TLS first, and none where the server has none."""
        try:
            self._http.send(Request("HEAD", f"https://{host}/v2/", self.label))
        except BackendError as error:
            if not speaks_no_tls(error):
                raise
            return "http"
        return "https"

    def stat(self, name: str) -> ObjectInfo:
        request = Request("HEAD", "", self.what("blob", name))
        answer = self._blob(request, name)
        return ObjectInfo(answer.size(request.what), answer.header("Docker-Content-Digest") or answer.header("ETag"))

    def read(self, name: str, offset: int, length: int) -> Buffer:
        request = Request("GET", "", self.what("blob", name), span=Span(offset, length))
        return self._blob(request, name).body

    def manifest(self, reference: str) -> Manifest:
        """A manifest by tag or digest.

        Raises:
            CorruptError: it is not what its digest says.
            BackendError: it cannot be had; BlobNotFoundError: there is none.
        """
        what = self.what("manifest", reference)
        request = Request("GET", "", what, {"Accept": ", ".join(MANIFEST_TYPES)}, limit=MANIFEST_LIMIT)
        answer, _ = self._good(replace(request, url=self.url("manifests", reference)))
        data = bytes(answer.body)
        for digest in (answer.header("Docker-Content-Digest"), reference):
            if _DIGEST.fullmatch(digest) and digest != digest_of(data, digest.partition(":")[0]):
                raise CorruptError(f"{what}: {answer.where} sends bytes that are not those of {digest}")
        digest = reference if _DIGEST.fullmatch(reference) else digest_of(data)
        return Manifest(data, digest, answer.header("Content-Type", 256).partition(";")[0].strip())

    def at(self, mirror: config.Mirror) -> RegistryClient:
        """As of ``Client``: the registry's tokens let in there, too, or nothing does."""
        return RegistryClient(replace_fields(self._config, proxy=None), self._connections, mirror, self._tokens)

    # --- for whoever writes ---

    def what(self, kind: str, name: str) -> str:
        """One object and its server, for messages."""
        return f"{kind} {name[:150]} of {self.label}"

    def url(self, kind: str, reference: str) -> str:
        """Where a manifest or blob is; ConfigError for what cannot be a name."""
        return self._base + self._path(kind, reference)

    @property
    def uploads(self) -> str:
        """URL at which uploads begin."""
        return f"{self._base}/v2/{self._config.repo}/blobs/uploads/"

    def send(self, request: Request) -> Answer:
        """Send a request that changes something: the registry may lead elsewhere with it, but not with our
        credentials."""
        return self._send(request, "pull,push")

    # --- requests ---

    def _path(self, kind: str, reference: str) -> str:
        if not (_TAG.fullmatch(reference) or _DIGEST.fullmatch(reference)):
            raise ConfigError(f"{reference[:150]!r} is neither a tag nor a digest")
        return f"/v2/{self._config.repo}/{kind}/{reference}"

    def _blob(self, request: Request, name: str) -> Answer:
        keeps = request.method == "GET"  # a signed URL is good for one method
        if keeps and (target := self._redirects.get(name)):
            try:
                return self._good(replace(request, url=target))[0]
            except BackendError as error:
                self._redirects.pop(name, None)
                if error.retryable:
                    raise
                # Its time was over, most likely: ask the registry again.
        answer, url = self._good(replace(request, url=self.url("blobs", name)))
        if keeps and origin(url) != origin(self._base):
            if len(self._redirects) >= _REDIRECTS_KEPT:
                self._redirects.clear()
            self._redirects[name] = url
        return answer

    def _good(self, request: Request) -> tuple[Answer, str]:
        """The good answer at the end of all redirects, and the URL that gave it."""
        for _ in range(_HOPS + 1):
            answer = self._send(request, "pull")
            if answer.status not in (301, 302, 303, 307, 308):
                if not answer.good:
                    raise answer.error(request.what)
                return answer, request.url
            request = replace(request, url=self._redirected(request, answer))
        raise BackendError(f"{request.what}: more than {_HOPS} redirects", retryable=False)

    def _redirected(self, request: Request, answer: Answer) -> str:
        """Where a redirect leads, with the configuration's say about it."""
        url = location_of(request, answer)
        parts = urllib3.util.parse_url(url)
        if self._config.blob_url_scheme:
            parts = parts._replace(scheme=self._config.blob_url_scheme)
        if self._config.blob_redirected_host:
            host = urllib3.util.parse_url(f"http://{self._config.blob_redirected_host}")
            parts = parts._replace(host=host.host, port=host.port or parts.port)
        return parts.url

    def _send(self, request: Request, actions: str) -> Answer:
        """Send a request, with credentials and a mirror's headers only if it goes to the registry or that mirror."""
        if origin(request.url) != origin(self._base):
            return self._http.send(request)
        authorization = self._tokens.header(actions)
        answer = self._http.send(self._dressed(request, authorization))
        if answer.status != 401 or self._mirror:
            return answer
        renewed = self._tokens.renewed(actions, authorization, answer.header("WWW-Authenticate", 8192))
        return self._http.send(self._dressed(request, renewed)) if renewed else answer

    def _dressed(self, request: Request, authorization: str) -> Request:
        headers = {**request.headers, **(self._mirror.headers if self._mirror else {})}
        clear = self._mirror and self._config.scheme != "http" and self._base.startswith("http:")
        if authorization and not (clear and authorization.startswith("Basic ")):
            headers.setdefault("Authorization", authorization)  # a mirror without TLS gets tokens, but no password
        return replace(request, headers=headers)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """``algorithm:hex`` of a manifest or blob."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
