#!/usr/bin/env python3
"""Print docs/configuration.md from the records that configurations are read into.

python scripts/configuration_page.py > docs/configuration.md

A key's meaning is the comment behind its field, its bounds are those of its type.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from nydus_erofs.fscache.config import backend, nydusd
from nydus_erofs.fscache.config.service import Config

HEAD = """\
# Configuration

Printed from the records in `fscache/config/` by `scripts/configuration_page.py`; do not edit.

`nydus-erofs serve --config FILE` takes TOML with the keys of the service, and a table `[backend]` with a `type`; or
nydusd's JSON. `push` and `mount` take `--backend-config-file FILE`: JSON with the keys of one backend, or nydusd's. A
key that is unknown, or has a value out of bounds, is an error that names its path.
"""
SERVICE = """\
## The service
"""
SHARED = """\
## Backends

What they are, and what they hold, is in [backends.md](backends.md). `type` names the kind; it may be left out
where `--backend-type` or the image's name says it. These keys are for all kinds but `localfs`; a unix socket
(`http-proxy`) has no TLS, no proxy and no mirrors.
"""
NYDUSD = """\
## nydusd's files

Its first form, and what each key means here: a key of the service above, or nothing (accepted, because its files have
it). Of its second form (`version = 2`) only `backend` is read, by `push` and `mount`.
"""
KINDS = {
    "`s3`, `oss`": backend.S3,
    "`registry`": backend.Registry,
    "`http-proxy`": backend.HttpProxy,
    "`localfs`": backend.LocalFs,
    "`proxy`": backend.Proxy,
    "each of `mirrors`": backend.Mirror,
}
_FIELD = re.compile(r"    (\w+): .*?(?:  # (.*))?")


def main() -> None:
    print("\n".join(page()))


def page() -> Iterator[str]:
    yield HEAD
    yield SERVICE
    yield from table(Config)
    yield SHARED
    (shared,) = backend.S3.__bases__
    yield from table(shared)
    for name, record in KINDS.items():
        yield f"### {name}"
        yield ""
        yield (inspect.getdoc(record) or "").splitlines()[0].replace("``", "`")
        yield ""
        yield from table(record)
    yield NYDUSD
    yield "| key | is |"
    yield "|---|---|"
    for path, meaning in documents(nydusd.Nydusd):
        plain = meaning.startswith(("nothing", "kind", "its"))
        yield f"| `{path}` | {meaning if plain else f'`{meaning}`'} |"


def table(record: type[msgspec.Struct]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    types_, meanings = get_type_hints(record, include_extras=True), fields(record)
    defaults = {field.name: field for field in msgspec.structs.fields(record)}
    for name, meaning in meanings.items():
        yield f"| `{name}` | {type_text(types_[name])} | {default_text(defaults[name])} | {meaning} |"
    yield ""


def fields(record: type[msgspec.Struct]) -> dict[str, str]:
    """Meaning by name of the fields that a class itself has."""
    lines = inspect.getsource(record).splitlines()
    own = inspect.get_annotations(record)
    found = [match for line in lines if (match := _FIELD.fullmatch(line)) and match[1] in own]
    assert {match[1] for match in found} == own.keys()
    return {match[1]: match[2] or "" for match in found}


def documents(record: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, str]]:
    """(path, meaning) of everything in nydusd's form."""
    types_ = get_type_hints(record)
    for name, meaning in fields(record).items():
        inner = [one for one in (types_[name], *get_args(types_[name])) if _is_record(one)]
        if inner:
            yield from documents(inner[0], f"{path}{name}.")
        else:
            yield f"{path}{name}", meaning


def _is_record(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, msgspec.Struct)


def type_text(one: Any) -> str:
    """A type in words."""
    if get_origin(one) is Annotated:
        plain, *notes = get_args(one)
        return type_text(plain) + "".join(bounds(note) for note in notes)
    if get_origin(one) in (Union, types.UnionType):
        parts = [part for part in get_args(one) if part is not types.NoneType]
        return "table" if all(map(_is_record, parts)) else " or ".join(map(type_text, parts))
    if get_origin(one) is Literal:
        return " or ".join(f"`{value}`" if value else "empty" for value in get_args(one))
    if get_origin(one) is list:
        (part,) = get_args(one)
        return "list of tables" if _is_record(part) else "list of strings"
    if get_origin(one) is dict:
        return "table of strings"
    return {str: "string", bool: "boolean", int: "integer", float: "number"}[one]


def bounds(note: msgspec.Meta) -> str:
    """A type's bounds in words."""
    if note.min_length:
        return ", not empty"
    low = f"above {note.gt}" if note.gt is not None else f"{note.ge}"
    return f", {low} to {note.le}"


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as TOML and JSON have it; nothing for an empty one."""
    if field.required:
        return "(needed)"
    value = field.default
    return "" if value in ("", None, msgspec.NODEFAULT) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    main()
