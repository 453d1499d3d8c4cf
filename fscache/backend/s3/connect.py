"""A botocore client made from a configuration, with a transport that trusts no server.

Botocore chooses the endpoint, finds and renews credentials, signs and parses. Sending is ours (``transport.py``),
also of what it asks others for keys. Nothing is retried and no redirect is followed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import botocore.loaders
import botocore.session
import msgspec
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from botocore.utils import get_environ_proxies

from ...config.backend import S3, Proxy, describe
from ..http.client import Http
from .keys import ask_ourselves
from .transport import Transport

_AWS = "s3.amazonaws.com"  # then botocore knows the right one for the region
_PATIENCE = 60.0  # seconds, at least, for a server that stores or joins before it answers
_DATA = botocore.loaders.create_loader()  # botocore's own files; what was read once is kept


def connect(config: S3, connections: int, extra: Mapping[str, str]) -> Any:
    """The botocore client; raises what botocore raises (NoCredentialsError too, which it leaves to each request).

    Args:
        extra: headers of each request, beside those that are signed.
    """
    # Their debug lines hold signed headers, the others of these two no more than names.
    logging.getLogger("botocore").setLevel(logging.INFO)
    session = new_session(config.profile)
    bundle = session.get_config_variable("ca_bundle") or ""
    if not config.access_key_id:
        ask_ourselves(session, config, bundle)
        if session.get_credentials() is None:
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
            # Checksums by default are AWS's alone: other servers refuse or ignore them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **options,
        ),
    )
    if config.proxy is None and (url := get_environ_proxies(api.meta.endpoint_url).get(config.scheme)):
        config = msgspec.structs.replace(config, proxy=Proxy(url=url, fallback=False))
    http = Http(config, connections, bundle=bundle)
    transport = Transport(http, describe(config), extra, max(config.timeout, _PATIENCE))
    api.meta.events.register("before-send.s3", transport.send)
    api.meta.events.register("before-call.s3", _stay_here)
    return api


def new_session(profile: str) -> botocore.session.Session:
    """A session of botocore's that reads each of its files once. Its clients, also those for keys, try once."""
    session = botocore.session.Session(profile=profile or None)
    session.register_component("data_loader", _DATA)
    session.set_default_client_config(Config(retries={"total_max_attempts": 1, "mode": "standard"}))
    return session


def _stay_here(params: dict[str, Any], **_: Any) -> None:
    """Have botocore believe it followed a redirect already: it would sign for another server, one a server names."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
