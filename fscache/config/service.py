"""The service's configuration. Every key is known, or an error that names its path."""

from __future__ import annotations

import os
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ...erofs.errors import ConfigError
from ...erofs.segments import DEFAULT_SEGMENT_SIZE
from . import backend as backends
from .defaults import DEFAULT_RUN, DEFAULT_STATE
from .reference import check_name


class Uids(NamedTuple):
    """Users without privilege."""

    verifier: int
    worker: int
    prepare: int


Threads = Annotated[int, Meta(ge=1, le=255)]
Percent = Annotated[int, Meta(ge=0, le=99)]
Uid = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The service's configuration; TOML keys are these names.

    Types hold the bounds, the comments are the meanings in docs/configuration.md (``scripts/configuration_page.py``).
    """

    state_dir: str = DEFAULT_STATE  # the cache, and what is known of images and mounts
    run_dir: str = DEFAULT_RUN  # the control socket, and mount points of the service's own
    blob_dirs: list[str] = []  # folders where blobs are looked for after the bootstrap's own
    engine: Literal["auto", "fanotify", "cachefiles"] = "auto"  # how the kernel asks; auto: whichever works here
    allow_old_kernel: bool = False  # cachefiles: go on where the kernel has known bugs
    domain: str = "nydus-erofs"  # cachefiles: images in one domain share blobs; empty for none
    prefetch: bool = True  # fetch everything in the background, unless the mount says otherwise
    segment_size: Annotated[int, Meta(ge=1 << 20, le=64 << 20)] = DEFAULT_SEGMENT_SIZE  # bytes; a power of two
    threads: Annotated[int, Meta(ge=2, le=256)] = 8  # of the worker, for what comes from one server or disk
    background_threads: Threads = 1  # of these, for read-ahead and prefetch of blobs here at most
    remote_background_threads: Threads = 4  # the same for blobs behind a network, where a thread waits
    backend: backends.Remote | None = None  # where bootstraps are found by name, and blobs that are not here
    patience: Annotated[int, Meta(ge=1, le=86400)] = 60  # seconds that readers wait when nothing comes, then EIO
    prefetch_bandwidth: Annotated[int, Meta(ge=0, le=1 << 40)] = 0  # bytes a second at most; 0: no limit
    read_ahead_kib: Annotated[int, Meta(ge=0, le=1 << 20)] = 512  # of the kernel, on each mount
    cache_run: Percent = 7  # cachefiles: percent of free space that culling aims at
    cache_cull: Percent = 5  # cachefiles: percent of free space that culling starts at
    cache_stop: Percent = 1  # cachefiles: percent of free space below which nothing is cached any more
    # Of a range that neither systemd (UIDS-GIDS: 60578 to 61183 are unused), nor subordinate ids, nor the users that
    # images usually have touch.
    worker_uid: Uid = 60987  # user and group id of the worker; needs no name
    prepare_uid: Uid = 60988  # user and group id of prepare; needs no name
    verifier_uid: Uid = 60989  # user and group id of the verifier; needs no name

    @property
    def uids(self) -> Uids:
        return Uids(self.verifier_uid, self.worker_uid, self.prepare_uid)


def check(config: Config) -> Config:
    """The configuration, if its values make sense; ConfigError naming the one that does not."""
    try:
        msgspec.convert(msgspec.to_builtins(config), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    if config.segment_size & (config.segment_size - 1):
        raise ConfigError(f"segment_size: {config.segment_size} is not a power of two")
    if config.background_threads >= config.threads:
        raise ConfigError("background_threads: at least one thread must be left for readers that wait")
    if config.domain:
        check_name("domain", config.domain)
    if not config.cache_stop < config.cache_cull < config.cache_run:
        raise ConfigError("cache_run, cache_cull, cache_stop: each must be less than the one before")
    if len(set(config.uids)) < len(config.uids):
        raise ConfigError("verifier_uid, worker_uid, prepare_uid: must be three users")
    config.state_dir, config.run_dir = os.path.abspath(config.state_dir), os.path.abspath(config.run_dir)
    return config


def with_backend(config: Config, backend: backends.BackendConfig) -> Config:
    """The configuration with a backend put in its place."""
    if isinstance(backend, backends.LocalFs):
        config.blob_dirs = [*config.blob_dirs, *backend.directories]
    else:
        config.backend = backend
    return config
