"""Configuration: the service's own TOML, or a nydusd JSON file for the same things.

Every key is known or an error that names its path. ``serve --config`` takes either; what a file does not
say has the defaults below.
"""

from __future__ import annotations

import os
import tomllib
from typing import Any, Literal

import msgspec

from ..erofs.errors import ConfigError
from ..erofs.segments import DEFAULT_SEGMENT_SIZE
from .backend import config as backends
from .defaults import DEFAULT_RUN, DEFAULT_STATE
from .proto.cachefiles import check_name


class Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The service's configuration; TOML keys are these names."""

    state_dir: str = DEFAULT_STATE
    run_dir: str = DEFAULT_RUN
    blob_dirs: list[str] = []  # where blobs are looked for after the bootstrap's own folder
    engine: Literal["auto", "fanotify", "cachefiles"] = "auto"  # auto: whichever works here
    allow_old_kernel: bool = False  # cachefiles: go on where the kernel has known bugs
    domain: str = "nydus-erofs"  # cachefiles: images in one domain share blobs; empty for none
    prefetch: bool = True
    segment_size: int = DEFAULT_SEGMENT_SIZE  # bytes; a power of two from 1 MiB to 64 MiB
    threads: int = 8  # of the worker
    background_threads: int = 1  # of these, for read-ahead and prefetch of blobs here at most
    remote_background_threads: int = 4  # the same for blobs behind a network, where a thread waits
    backend: backends.Remote | None = None  # where bootstraps are found by name, and blobs that are not here
    patience: int = 60  # seconds that readers wait for a backend that does not answer, until they get EIO
    prefetch_bandwidth: int = 0  # bytes a second that are prefetched at most; 0: no limit
    read_ahead_kib: int = 512  # of the kernel, on each mount
    cache_run: int = 7  # cachefiles: percent of free space that culling aims at,
    cache_cull: int = 5  # that it starts at,
    cache_stop: int = 1  # and below which nothing is cached any more
    worker_uid: int = 64587  # user and group id of the worker; needs no name


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


class _Nydusd(msgspec.Struct, forbid_unknown_fields=True):
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


def load(path: str) -> Config:
    """Read a configuration file, TOML or nydusd JSON by its first character."""
    raw = backends.read_file(path)
    try:
        if raw.lstrip()[:1] == b"{":
            return _from_nydusd(msgspec.json.decode(raw, type=_Nydusd))
        return _from_toml(tomllib.loads(raw.decode()))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is neither TOML nor JSON: {error}") from None


def _from_toml(document: dict[str, Any]) -> Config:
    table = document.pop("backend", None)
    config = msgspec.convert(document, Config)
    if table is None:
        return check(config)
    if not isinstance(table, dict) or not isinstance(table.get("type"), str):
        raise ConfigError("$.backend.type is missing: a table [backend] says what kind it is")
    return check(_with_backend(config, backends.convert(table["type"], table, "$.backend")))


def _with_backend(config: Config, backend: backends.BackendConfig) -> Config:
    if isinstance(backend, backends.LocalFs):
        config.blob_dirs = [*config.blob_dirs, *backend.directories]
    else:
        config.backend = backend
    return config


def _from_nydusd(document: _Nydusd) -> Config:
    """What a nydusd configuration means for this service.

    Accepted without effect: ``mode``, ``iostats_files``, ``access_pattern``, ``latest_read_files``,
    ``amplify_io``, ``enable_xattr`` (xattrs are the kernel's business) and ``digest_validate`` (every chunk
    is always validated).
    """
    backend = document.device.backend
    config = _with_backend(Config(), backends.convert(backend.type, backend.config, "$.device.backend.config"))
    if document.device.cache.config.work_dir:
        config.state_dir = document.device.cache.config.work_dir
    if document.fs_prefetch is not None:
        config.prefetch = document.fs_prefetch.enable
        config.prefetch_bandwidth = document.fs_prefetch.bandwidth_rate
    return check(config)


def check(config: Config) -> Config:
    """The configuration, if its values make sense; ConfigError naming the one that does not."""
    size = config.segment_size
    if size & (size - 1) or not 1 << 20 <= size <= 64 << 20:
        raise ConfigError(f"segment_size: {size} is not a power of two from 1 MiB to 64 MiB")
    for name, low, high in (
        ("threads", 2, 256),
        ("background_threads", 1, 255),
        ("remote_background_threads", 1, 255),
        ("read_ahead_kib", 0, 1 << 20),
        ("patience", 0, 86400),
        ("prefetch_bandwidth", 0, 1 << 40),
    ):
        if not low <= getattr(config, name) <= high:
            raise ConfigError(f"{name}: {getattr(config, name)} is not between {low} and {high}")
    if config.background_threads >= config.threads:
        raise ConfigError("background_threads: at least one thread must be left for readers that wait")
    if config.domain:
        check_name("domain", config.domain)
    if not 0 < config.worker_uid < 1 << 31:
        raise ConfigError(f"worker_uid: {config.worker_uid} is not the id of an unprivileged user")
    config.state_dir, config.run_dir = os.path.abspath(config.state_dir), os.path.abspath(config.run_dir)
    return config
