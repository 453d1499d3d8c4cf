"""The service's configuration. Every key is known, or an error that names its path."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import msgspec

from ...erofs.errors import ConfigError
from ...erofs.segments import DEFAULT_SEGMENT_SIZE
from . import backend as backends
from .defaults import DEFAULT_RUN, DEFAULT_STATE
from .reference import check_name


class Uids(NamedTuple):
    """Users without privilege."""

    worker: int
    prepare: int


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
    # User and group ids; they need no names. Of a range that neither systemd (UIDS-GIDS: 60578 to 61183 are unused),
    # nor subordinate ids, nor the users that images usually have touch.
    worker_uid: int = 60987
    prepare_uid: int = 60988

    @property
    def uids(self) -> Uids:
        return Uids(self.worker_uid, self.prepare_uid)


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
    for name in ("worker_uid", "prepare_uid"):
        if not 0 < getattr(config, name) < 1 << 31:
            raise ConfigError(f"{name}: {getattr(config, name)} is not the id of an unprivileged user")
    if config.worker_uid == config.prepare_uid:
        raise ConfigError("prepare_uid: must be another user than worker_uid")
    config.state_dir, config.run_dir = os.path.abspath(config.state_dir), os.path.abspath(config.run_dir)
    return config


def with_backend(config: Config, backend: backends.BackendConfig) -> Config:
    """The configuration with a backend put in its place."""
    if isinstance(backend, backends.LocalFs):
        config.blob_dirs = [*config.blob_dirs, *backend.directories]
    else:
        config.backend = backend
    return config
