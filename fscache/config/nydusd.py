"""nydusd's configuration files, and what they mean for this service."""

from __future__ import annotations

from typing import Any

import msgspec

from .backend_file import convert
from .service import Config, check, with_backend

# Comments are the meanings in docs/configuration.md. "Nothing" is accepted without effect: nydusd's files have it.


class _Backend(msgspec.Struct, forbid_unknown_fields=True):
    type: str  # kind of backend
    config: dict[str, Any] = {}  # its keys


class _CacheConfig(msgspec.Struct, forbid_unknown_fields=True):
    work_dir: str = ""  # state_dir
    disable_indexed_map: bool = False  # nothing


class _Cache(msgspec.Struct, forbid_unknown_fields=True):
    type: str = ""  # nothing: there is one kind of cache
    compressed: bool = False  # nothing: the cache holds what files hold
    config: _CacheConfig = msgspec.field(default_factory=_CacheConfig)
    validate: bool = False  # nothing: every chunk is always validated
    prefetch_config: dict[str, Any] = {}  # nothing


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    backend: _Backend
    cache: _Cache = msgspec.field(default_factory=_Cache)
    id: str = ""  # nothing


class _FsPrefetch(msgspec.Struct, forbid_unknown_fields=True):
    enable: bool = False  # prefetch
    threads_count: int = 8  # nothing: see background_threads
    merging_size: int = 1 << 20  # nothing
    bandwidth_rate: int = 0  # prefetch_bandwidth
    prefetch_all: bool = True  # nothing
    stream_prefetch: bool = False  # nothing


class Nydusd(msgspec.Struct, forbid_unknown_fields=True):
    """nydusd's first configuration form (rafs with ``device``)."""

    device: _Device
    mode: str = "direct"  # nothing
    digest_validate: bool = False  # nothing: every chunk is always validated
    iostats_files: bool = False  # nothing
    enable_xattr: bool = True  # nothing: the kernel shows an image's extended attributes
    access_pattern: bool = False  # nothing
    latest_read_files: bool = False  # nothing
    amplify_io: int = 1 << 20  # nothing: neighbouring chunks are fetched together
    fs_prefetch: _FsPrefetch | None = None


def from_nydusd(document: Nydusd) -> Config:
    """What a nydusd configuration means for this service."""
    backend = document.device.backend
    config = with_backend(Config(), convert(backend.type, backend.config, "$.device.backend.config"))
    if document.device.cache.config.work_dir:
        config.state_dir = document.device.cache.config.work_dir
    if document.fs_prefetch is not None:
        config.prefetch = document.fs_prefetch.enable
        config.prefetch_bandwidth = document.fs_prefetch.bandwidth_rate
    return check(config)
