"""Targets with faults that must be found: for the tests of the harness."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

from tests.fuzz.target import target


def _seeds() -> Iterator[bytes]:
    yield b"sound"


def _now_and_then(data: bytes, rng: random.Random) -> bytes:
    return b"a fault!" if rng.random() < 0.1 else data


@target(_seeds, _now_and_then)
def wrong(data: bytes) -> None:
    assert b"!" not in data


@target(_seeds, _now_and_then, seconds=0.2)
def slow(data: bytes) -> None:
    while b"!" in data:
        pass


@target(_seeds, _now_and_then)
def asleep(data: bytes) -> None:
    if b"!" in data:
        time.sleep(3600)


@target(_seeds, _now_and_then)
def greedy(data: bytes) -> None:
    if b"!" in data:
        bytearray(1 << 30)


@target(_seeds, _now_and_then)
def deep(data: bytes) -> None:
    if b"!" in data:
        deep(data)


@target(_seeds, _now_and_then)
def killed(data: bytes) -> None:
    if b"!" in data:
        os.kill(os.getpid(), signal.SIGKILL)


@target(_seeds, _now_and_then)
def loses_descriptors(data: bytes) -> None:
    os.dup(0)


@target(_seeds, _now_and_then, refusals=(ValueError,))
def sound(data: bytes) -> None:
    if b"!" in data:
        raise ValueError
