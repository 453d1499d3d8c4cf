"""Configuration: the service's own TOML, or a nydusd JSON file for the same things.

Every key is known or an error that names its path. ``serve --config`` takes either; what a file does not
say has the defaults below.
"""

from __future__ import annotations

import os
import tomllib
from typing import Any, Literal

import msgspec

from ..erofs.errors import ConfigError, UnsupportedError
from ..erofs.localize import DEFAULT_SEGMENT_SIZE
from .defaults import DEFAULT_RUN, DEFAULT_STATE
from .proto.cachefiles import check_name

_MAX_CONFIG = 1 << 20  # bytes, as in nydusd


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
    threads: int = 4  # of the worker
    background_threads: int = 1  # of these, for read-ahead and prefetch at most
    read_ahead_kib: int = 512  # of the kernel, on each mount
    cache_run: int = 7  # cachefiles: percent of free space that culling aims at,
    cache_cull: int = 5  # that it starts at,
    cache_stop: int = 1  # and below which nothing is cached any more
    worker_uid: int = 64587  # user and group id of the worker; needs no name


class _LocalFs(msgspec.Struct, forbid_unknown_fields=True):
    dir: str = ""
    blob_file: str = ""
    alt_dirs: list[str] = []
    readahead: bool = False
    readahead_sec: int = 0


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
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_CONFIG + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_CONFIG:
        raise ConfigError(f"{path} is larger than 1 MiB", hint="is it a configuration file?")
    try:
        if raw.lstrip()[:1] == b"{":
            return _from_nydusd(msgspec.json.decode(raw, type=_Nydusd))
        return check(msgspec.convert(tomllib.loads(raw.decode()), Config))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is neither TOML nor JSON: {error}") from None


def _from_nydusd(document: _Nydusd) -> Config:
    """What a nydusd configuration means for this service.

    Accepted without effect: ``mode``, ``iostats_files``, ``access_pattern``, ``latest_read_files``,
    ``amplify_io``, ``enable_xattr`` (xattrs are the kernel's business) and ``digest_validate`` (every chunk
    is always validated).
    """
    backend = document.device.backend
    if backend.type != "localfs":
        raise UnsupportedError(f"$.device.backend.type: backend {backend.type!r} is not supported yet")
    try:
        local = msgspec.convert(backend.config, _LocalFs)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(f"$.device.backend.config{where.rstrip('`')}: {what}") from None
    if local.blob_file:
        raise UnsupportedError(
            "$.device.backend.config.blob_file is not supported", hint="name the folder with 'dir'"
        )
    directories = [path for path in (local.dir, *local.alt_dirs) if path]
    if not directories:
        raise ConfigError("$.device.backend.config.dir: localfs needs the folder of the blobs")
    config = Config(blob_dirs=directories)
    if document.device.cache.config.work_dir:
        config.state_dir = document.device.cache.config.work_dir
    if document.fs_prefetch is not None:
        config.prefetch = document.fs_prefetch.enable
    return check(config)


def check(config: Config) -> Config:
    """The configuration, if its values make sense; ConfigError naming the one that does not."""
    size = config.segment_size
    if size & (size - 1) or not 1 << 20 <= size <= 64 << 20:
        raise ConfigError(f"segment_size: {size} is not a power of two from 1 MiB to 64 MiB")
    for name, low, high in (("threads", 2, 256), ("background_threads", 1, 255), ("read_ahead_kib", 0, 1 << 20)):
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
