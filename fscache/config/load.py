"""Reading a configuration file of either form."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec

from ...erofs.errors import ConfigError
from ..decoding import decoded
from .backend_file import convert, one_line, read_file
from .nydusd import Nydusd, from_nydusd
from .service import Config, check, with_backend

_NYDUSD = msgspec.json.Decoder(Nydusd)


def load(path: str) -> Config:
    """Read a configuration file, TOML or nydusd JSON by its first character."""
    raw = read_file(path)
    try:
        if raw.lstrip()[:1] == b"{":
            return from_nydusd(decoded(_NYDUSD, raw))
        return _from_toml(_toml(raw))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from None
    except (msgspec.DecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is neither TOML nor JSON: {one_line(error)}") from None


def _toml(raw: bytes) -> dict[str, Any]:
    """What the bytes say; TOMLDecodeError also for bytes that are no UTF-8, endless nesting and endless numbers."""
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise tomllib.TOMLDecodeError(str(error)) from None


def _from_toml(document: dict[str, Any]) -> Config:
    table = document.pop("backend", None)
    config = msgspec.convert(document, Config)
    if table is None:
        return check(config)
    if not isinstance(table, dict) or not isinstance(table.get("type"), str):
        raise ConfigError("$.backend.type is missing: a table [backend] says what kind it is")
    return check(with_backend(config, convert(table["type"], table, "$.backend")))
