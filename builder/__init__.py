"""The builder: a directory in, a RAFS v6 bootstrap and its blob out. Order of passes: docs/building.md."""

from __future__ import annotations

from .compose import BuildResult, Progress, build
from .options import BlobSink, BuildOptions, WhiteoutSpec, default_workers
from .times import parse_time, source_date_epoch

__all__ = [
    "BlobSink",
    "BuildOptions",
    "BuildResult",
    "Progress",
    "WhiteoutSpec",
    "build",
    "default_workers",
    "parse_time",
    "source_date_epoch",
]
