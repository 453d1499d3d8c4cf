"""What a build is asked to do: one frozen record, checked when it is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ..erofs.errors import ConfigError
from ..erofs.rafs import DEFAULT_CHUNK_SIZE, MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, Compression, DigestAlgo
from ..erofs.record import Buffer

MAX_WORKERS = 32
_DEFAULT_WORKERS = 8  # one process walks, deduplicates and writes for all: more workers would wait for it
_ZSTD_LEVELS = range(1, 23)
_COMPRESSIONS = (Compression.NONE, Compression.LZ4_BLOCK, Compression.ZSTD)


class WhiteoutSpec(StrEnum):
    """How a layer says that something below it is gone."""

    OCI = "oci"
    OVERLAYFS = "overlayfs"
    NONE = "none"


def default_workers() -> int:
    """As many as there are CPUs for this process, at most eight."""
    return min(len(os.sched_getaffinity(0)), _DEFAULT_WORKERS)


class BlobSink(Protocol):
    """Takes a blob while it is built. Its errors end the build."""

    def write(self, data: Buffer) -> None:
        """Append all of ``data``."""

    def finish(self, sha256: str, size: int) -> None:
        """Keep what was written under the name of its content (hex)."""

    def close(self) -> None:
        """Nothing more comes; what was not finished is not wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """A build from a directory. ConfigError, naming the option of the command line, when values do not go together.

    Outputs: ``output_dir`` alone gives NAME.meta, output.json and the blob under its id there; the single
    outputs override it. Without a bootstrap's path it goes to ``blob_dir`` under its own SHA-256.
    """

    source: Path
    output_dir: Path | None = None
    name: str | None = None  # default: the source's own name
    bootstrap: Path | None = None
    blob: Path | None = None
    blob_dir: Path | None = None
    output_json: Path | None = None
    blob_sink: BlobSink | None = None  # takes the blob instead of a file
    chunk_size: int = DEFAULT_CHUNK_SIZE  # bytes
    compression: Compression = Compression.ZSTD
    compression_level: int | None = None
    digest: DigestAlgo = DigestAlgo.BLAKE3
    whiteout_spec: WhiteoutSpec = WhiteoutSpec.OCI
    exclude: tuple[str, ...] = ()
    mtime: int | None = None  # of everything, the root too; nanoseconds, like the next
    latest_mtime: int | None = None  # what is later becomes this
    hard_dereference: bool = False  # each name of a file with several is a file of its own
    workers: int | None = None  # default: default_workers()

    def __post_init__(self) -> None:
        size = self.chunk_size
        if size & (size - 1) or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
            raise ConfigError(
                f"--chunk-size {size:#x} is not a power of two from {MIN_CHUNK_SIZE:#x} to {MAX_CHUNK_SIZE:#x}"
            )
        if self.compression not in _COMPRESSIONS:
            raise ConfigError(f"--compressor {self.compression.name.lower()} is for reading only")
        level = self.compression_level
        if level is not None and self.compression != Compression.ZSTD:
            raise ConfigError(f"--compression-level is for zstd, not for {self.compression.name.lower()}")
        if level is not None and level not in _ZSTD_LEVELS:
            raise ConfigError(f"--compression-level {level} is not one of 1 to {_ZSTD_LEVELS[-1]}")
        if self.workers is not None and not 1 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"--workers {self.workers} is not one of 1 to {MAX_WORKERS}")
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise ConfigError(f"--name {self.name!r} is not a file name")
        if not (self.blob or self.blob_dir or self.output_dir or self.blob_sink):
            raise ConfigError("no place for the blob is given", hint="add --output-dir DIR, or --blob-dir DIR")
        if not (self.bootstrap or self.blob_dir or self.output_dir):
            raise ConfigError("no place for the bootstrap is given", hint="add --output-dir DIR, or --bootstrap FILE")
