"""nydusd's configuration files, and what they mean for this service."""

from __future__ import annotations

from typing import Any

import msgspec

from .backend_file import convert
from .service import Config, check, with_backend


class _Backend(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    config: dict[str, Any] = {}


class _CacheConfig(msgspec.Struct, forbid_unknown_fields=True):
    work_dir: str = ""
    disable_indexed_map: bool = False


class _Cache(msgspec.Struct, forbid_unknown_fields=True):
    type: str = ""
    compressed: bool = False
    config: _CacheConfig = msgspec.field(default_factory=_CacheConfig)
    validate: bool = False
    prefetch_config: dict[str, Any] = {}


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    backend: _Backend
    cache: _Cache = msgspec.field(default_factory=_Cache)
    id: str = ""


class _FsPrefetch(msgspec.Struct, forbid_unknown_fields=True):
    enable: bool = False
    threads_count: int = 8
    merging_size: int = 1 << 20
    bandwidth_rate: int = 0
    prefetch_all: bool = True
    stream_prefetch: bool = False


class Nydusd(msgspec.Struct, forbid_unknown_fields=True):
    """nydusd's first configuration form (rafs with ``device``)."""

    device: _Device
    mode: str = "direct"
    digest_validate: bool = False
    iostats_files: bool = False
    enable_xattr: bool = True
    access_pattern: bool = False
    latest_read_files: bool = False
    amplify_io: int = 1 << 20
    fs_prefetch: _FsPrefetch | None = None


def from_nydusd(document: Nydusd) -> Config:
    """What a nydusd configuration means for this service.

    Accepted without effect: ``mode``, ``iostats_files``, ``access_pattern``, ``latest_read_files``,
    ``amplify_io``, ``enable_xattr`` (xattrs are the kernel's business) and ``digest_validate`` (every chunk
    is always validated).
    """
    backend = document.device.backend
    config = with_backend(Config(), convert(backend.type, backend.config, "$.device.backend.config"))
    if document.device.cache.config.work_dir:
        config.state_dir = document.device.cache.config.work_dir
    if document.fs_prefetch is not None:
        config.prefetch = document.fs_prefetch.enable
        config.prefetch_bandwidth = document.fs_prefetch.bandwidth_rate
    return check(config)
