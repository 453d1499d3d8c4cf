"""How botocore asks others for keys: through our own connections, so in the deadline of the request that needs them.

It asks by clients of its own (STS, single sign-on), whose requests can be taken over, and by two plain sessions (the
metadata of an instance or container), which are replaced.
"""

from __future__ import annotations

from typing import Any

import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import EndpointConnectionError
from botocore.utils import ContainerMetadataFetcher, get_environ_proxies
from msgspec.structs import replace

from ....erofs.errors import BackendError
from ...config.backend import S3, Proxy, describe
from ..http.client import Http
from ..http.deadline import current
from ..http.errors import host_port
from .transport import Transport

_SERVICES = ("sts", "sso", "sso-oidc", "signin")
_METADATA = {"iam-role": "_role_fetcher", "container-role": "_fetcher"}  # providers of botocore, what asks in them


def ask_ourselves(session: botocore.session.Session, config: S3, bundle: str) -> None:
    """Have a session ask through our connections.

    Args:
        bundle: file of the certificates to trust instead of the system's.
    """
    plain = replace(config, skip_verify=False, proxy=None, mirrors=[])
    by_client: Any = _Keys(plain, bundle).by_client
    for service in _SERVICES:
        session.register(f"before-send.{service}", by_client)
    resolver = session.get_component("credential_provider")
    seconds = {
        "iam-role": float(session.get_config_variable("metadata_service_timeout")),
        "container-role": float(ContainerMetadataFetcher.TIMEOUT_SECONDS),
    }
    for name, attribute in _METADATA.items():
        fetcher = getattr(resolver.get_provider(name), attribute)
        fetcher._session = _Metadata(replace(plain, timeout=seconds[name], connect_timeout=seconds[name]), bundle)  # noqa: SLF001


class _Keys:
    """Asks for keys, seldom: no connection is kept."""

    def __init__(self, config: S3, bundle: str) -> None:
        self._config, self._bundle = config, bundle
        self._what = f"{describe(config)}: its keys"

    def by_client(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        """Botocore's ``before-send``: by the proxy of the environment, as the AWS tools do."""
        url = get_environ_proxies(request.url).get(request.url.partition(":")[0])
        proxy = Proxy(url=url, fallback=False) if url else None
        return self._send(replace(self._config, proxy=proxy), request)

    def _send(self, config: S3, request: AWSPreparedRequest) -> AWSResponse:
        return Transport(Http(config, 1, bundle=self._bundle), self._what, {}).send(request)


class _Metadata(_Keys):
    """In the place of a session of botocore's, past any proxy."""

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        try:
            return self._send(self._config, request)
        except BackendError as error:
            deadline = current()
            if not error.retryable or (deadline is not None and deadline.over):
                raise
            # As where there is no such server: botocore looks elsewhere, or says that there are no keys.
            raise EndpointConnectionError(endpoint_url=host_port(request.url)) from None
