"""How inputs are changed: as bytes, as numbers, as JSON, as lines. What is random comes from the caller."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Change = Callable[[bytes, random.Random], bytes]

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 0xB, 16, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF,
           1 << 40, 1 << 53, (1 << 53) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
TEXTS = ["", "x", "\0", "\n", "\r", "é", "\u2028", "\x1b[2J", "\ud800", "../..", "/", ".", "a/b", "0", "-1", "None",
         "%s", "sha256:" + "0" * 64, "sha256:" + "g" * 64, "ab" * 32, "http://h/", "https://[::1", "//",
         "x" * 5000]  # fmt: skip
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    -0.0,
    1e308,
    10**400,
    *NUMBERS,
    -(1 << 63),
    [],
    {},
    [[]],
    {"": None},
]
_MOST = 1 << 16  # bytes of an input that grows


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, moved, put in or taken out, anywhere."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    length = rng.choice([1, 1, 2, 4, 8, 40, 200])
    match rng.choice(["flip", "number", "number", "noise", "insert", "copy", "cut", "end"]):
        case "flip" if at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        case "number":
            return number(data, rng)
        case "noise":
            out[at : at + length] = rng.randbytes(length)
        case "insert" if len(out) < _MOST:
            out[at:at] = rng.choice([rng.randbytes(length), bytes(length), bytes([rng.randrange(256)]) * length])
        case "copy" if len(out) < _MOST:
            source = rng.randrange(len(out) + 1)
            out[at : at + rng.choice([0, length])] = out[source : source + length]
        case "cut":
            del out[at : at + length]
        case _:
            del out[at:]
    return bytes(out)


def number(data: bytes, rng: random.Random) -> bytes:
    """One aligned little-endian number changed."""
    form = rng.choice(["<B", "<H", "<I", "<I", "<Q", "<Q"])
    size = struct.calcsize(form)
    if len(data) < size:
        return data + rng.randbytes(size)
    out = bytearray(data)
    at = rng.randrange(len(out) - size + 1)
    at -= at % min(size, 4)
    (old,) = struct.unpack_from(form, out, at)
    new = rng.choice([rng.choice(NUMBERS), old + 1, old - 1, old * 2, old + 4096, old - 4096, rng.getrandbits(64)])
    struct.pack_into(form, out, at, new % (1 << 8 * size))
    return bytes(out)


def text(words: Sequence[bytes]) -> Change:
    """Bytes, in which words of a language are put in or exchanged."""

    def change(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return raw(data, rng)
        word = rng.choice(words)
        word *= min(rng.choice([1, 1, 1, 1, 2, 50, 3000]), _MOST // len(word) or 1)
        known = [one for one in words if one in data]
        if known and rng.random() < 0.6:
            old = rng.choice(known)
            return (
                data.replace(old, word, 1)
                if rng.random() < 0.8
                else data.replace(old, word, _MOST // (len(word) + 1))[:_MOST]
            )
        at = rng.randrange(len(data) + 1)
        return (data[:at] + word + data[at:])[:_MOST]

    return change


def document(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with a part of it changed; the same as bytes, now and then."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return raw(data, rng)
    if rng.random() < 0.1:
        return raw(data, rng)
    whole = {"": root}
    places = list(_places(whole))
    holder, key = rng.choice(places)
    match rng.choice(["value", "value", "text", "near", "delete", "double", "move", "name", "deep", "many"]):
        case "value":
            holder[key] = rng.choice(VALUES)
        case "text":
            holder[key] = rng.choice(TEXTS)
        case "near":
            holder[key] = _near(holder[key], rng)
        case "delete" if holder is not whole:
            del holder[key]
        case "double" if isinstance(holder, list):
            holder.insert(key, holder[key])
        case "move":
            other, there = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[there]))
        case "name" if isinstance(holder, dict) and holder is not whole:
            names = [k for h, k in places if isinstance(h, dict)]
            holder[rng.choice([*names, *TEXTS])] = holder[key]
        case "deep":
            packed = _dump(whole[""], rng)
            return packed.replace(b":", b":" + rng.choice([b"[", b'{"":', b'{"a":']) * rng.choice([5, 70_000]), 1)
        case "many" if isinstance(holder[key], list):
            holder[key] = (holder[key] or [0]) * rng.choice([2, 300])
    return _dump(whole[""], rng)


def _dump(root: object, rng: random.Random) -> bytes:
    packed = json.dumps(root, ensure_ascii=rng.random() < 0.5)
    return packed.encode(errors=rng.choice(["surrogatepass", "replace"]))


def _near(value: Any, rng: random.Random) -> Any:
    """Almost the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 4096, 1 << 31, 1 << 53]) if rng.random() < 0.8 else str(value)
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice([*TEXTS, value[at:] * 2]) + value[at + rng.choice([0, 1]) :]
    return rng.choice(VALUES)


def _places(holder: Any) -> Any:
    """Everywhere something can be exchanged: (container, key)."""
    todo = [holder]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            yield one, key
            if isinstance(one[key], (dict, list)):
                todo.append(one[key])


def lines(change: Change, known: Sequence[bytes], separator: bytes = b"\n") -> Change:
    """A sequence of messages: one of them changed, or another order, or one of the ``known`` put in."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        parts = data.split(separator)
        at = rng.randrange(len(parts))
        match rng.choice(["change", "change", "change", "insert", "insert", "delete", "double", "swap"]):
            case "change":
                parts[at] = change(parts[at], rng)
            case "insert" if len(parts) < 60:
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(known))
            case "delete" if len(parts) > 1:
                del parts[at]
            case "double" if len(parts) < 60:
                parts.insert(at, parts[at])
            case _:
                other = rng.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
        return separator.join(parts)

    return changed


def repaired(change: Change, repair: Callable[[bytes], bytes]) -> Change:
    """Changed, and in most cases put right afterwards: lengths, counts, checksums."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        out = change(data, rng)
        return repair(out) if rng.random() < 0.85 else out

    return changed


def several(data: bytes, change: Change, others: Sequence[bytes], rng: random.Random) -> bytes:
    """What engines do with a target's change: once or a few times, at times with a piece of another input."""
    if others and rng.random() < 0.05:
        other = rng.choice(others)
        data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        data = change(data, rng)
    return data[:_LONGEST]


_LONGEST = 1 << 20
