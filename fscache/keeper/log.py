"""Logs through structlog: for people on a terminal, JSON where a journal or another program reads them."""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog

LEVELS = ("trace", "debug", "info", "warn", "error")
_NUMBERS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40}


def configure(level: str = "info") -> None:
    """Set up logging to standard error once, for this process."""
    terminal = sys.stderr.isatty()
    journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [structlog.processors.add_log_level]
    if not journal:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=False))
    if terminal:
        processors.append(structlog.dev.ConsoleRenderer(colors=True))
    else:
        processors.append(structlog.processors.JSONRenderer(ensure_ascii=False))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_NUMBERS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def logger() -> Any:
    """The project's logger: ``logger().info("what happened", key=value)``."""
    return structlog.get_logger()
