"""A store as the worker sees it: one blob's plan, where its bytes come from, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..erofs.digest import digest_function
from ..erofs.source import Source
from .plan import AnyPlan
from .target import Target


class BlobSource(Source, Protocol):
    """Where a blob's bytes come from; ``label`` names the place for people."""

    label: str


class Store:
    """An open store. What it refers to closes its descriptors with the last reference."""

    def __init__(self, plan: AnyPlan, target: Target, sources: Sequence[BlobSource]) -> None:
        self.plan = plan
        self.target = target
        self.sources = list(sources)
        self.digest = digest_function(plan.digest_algo)
