"""Descriptions of backends in files: as JSON of their own, or inside a nydusd configuration of either form."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from ...erofs.errors import ConfigError, UnsupportedError
from ...erofs.ids import printable
from ..decoding import decoded
from .backend import S3, BackendConfig, HttpProxy, LocalFs, Registry, check

_KINDS: dict[str, type[BackendConfig]] = {
    "localfs": LocalFs, "s3": S3, "oss": S3, "registry": Registry, "http-proxy": HttpProxy,
}  # fmt: skip
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_MAX_FILE = 1 << 20  # bytes, as in nydusd
_MAX_TEXT = 400  # characters of a decoder's message


def convert(kind: str, fields: dict[str, Any], path: str = "$") -> BackendConfig:
    """The record of a backend of this ``kind`` from plain JSON; ConfigError names what is wrong by JSON path.

    Args:
        path: JSON path of ``fields`` in its document, for messages.
    """
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise UnsupportedError(f"{path}: backend type {kind[:80]!r} is not supported", hint=f"known: {known}")
    fields = {name: value for name, value in fields.items() if name != "type"}
    if kind == "oss":
        fields.setdefault("path_style", False)
        if "endpoint" not in fields:
            raise ConfigError(f"{path}.endpoint is missing")
    try:
        config = msgspec.convert({"type": _tag(kind), **fields}, _KINDS[kind])
    except msgspec.ValidationError as error:
        what, _, where = one_line(error).partition(" - at `$")
        raise ConfigError(f"{path}{where.rstrip('`')}: {what}") from None
    return check(config, path)


def one_line(error: Exception) -> str:
    """What a decoder says of a file, which may repeat words of it: printable and bounded."""
    return printable(str(error).encode(errors="backslashreplace"))[:_MAX_TEXT]


def read_file(path: str) -> bytes:
    """A configuration file; ConfigError when it cannot be read, or is too large to be one."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB", hint="is it a configuration file?")
    return raw


def load(path: str, kind: str | None = None, known: Mapping[str, str] = MappingProxyType({})) -> BackendConfig:
    """The backend that a JSON file describes: the fields of one (as nydusify takes them), or a nydusd configuration.

    Args:
        kind: that it must have.
        known: fields that the file need not repeat, ``type`` among them.

    Raises ConfigError naming the file, and what is wrong in it by JSON path.
    """
    try:
        document = decoded(_OBJECT, read_file(path))
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is no JSON object: {one_line(error)}") from None
    try:
        return _of(kind, known, *_backend_of(document))
    except (ConfigError, UnsupportedError) as error:
        error.message = f"{path}: {error.message}"
        raise


def _of(kind: str | None, known: Mapping[str, str], said: str, fields: dict[str, Any], place: str) -> BackendConfig:
    if kind and said and _tag(kind) != _tag(said):
        raise ConfigError(f"{place} is a {said} backend, not {kind}")
    kind = said or kind or known.get("type", "")
    if not kind:
        raise ConfigError("$.type is missing", hint=f"one of {', '.join(_KINDS)}")
    if _tag(kind) == known.get("type"):
        fields = {**known, **fields}
    return convert(kind, fields, place)


def _backend_of(document: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    """(kind or nothing, fields, JSON path of these) of a document of any form."""
    try:
        if "device" in document:
            backend = document["device"]["backend"]
            return _text(backend["type"]), _object(backend["config"]), "$.device.backend.config"
        if "backend" in document:
            backend = document["backend"]
            kind = _text(backend["type"])
            return kind, _object(backend[kind]), f"$.backend.{kind}"
        return _text(document.get("type", "")), document, "$"
    except (KeyError, TypeError):
        raise ConfigError("neither the fields of a backend nor a nydusd configuration with one") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _tag(kind: str) -> str:
    return "s3" if kind == "oss" else kind
