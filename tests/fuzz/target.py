"""What is fuzzed: a function of bytes, where its inputs come from, and how they are changed."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nydus_erofs.erofs.errors import NydusErofsError

from . import mutate

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """One thing that reads what others wrote.

    Attributes:
        run: raises one of ``refusals``, or returns; what it returns, if anything, tells one way through the code
            from another. Anything else that it raises is a crash.
        seeds: inputs to begin with, from the project's own encoders.
        mutate: one input made of another, so that it gets past the first checks.
        freeze: the same input, said so that it means the same when the seeds have changed.
        seconds: of the processor that one input may take.
        memory: bytes of address space that it may take beside the interpreter's.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    mutate: Mutate = mutate.raw
    refusals: tuple[type[Exception], ...] = (NydusErofsError,)
    freeze: Callable[[bytes], bytes] = bytes
    seconds: float = 10.0
    memory: int = 512 << 20


_targets: dict[str, Target] = {}


def target(
    seeds: Callable[[], Iterable[bytes]], mutate: Mutate = mutate.raw, **options: object
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Make a function a target, named as it is."""

    def register(run: Callable[[bytes], object]) -> Callable[[bytes], object]:
        name = run.__name__.replace("_", "-")
        _targets[name] = Target(name, run, seeds, mutate, **options)  # type: ignore[arg-type]
        return run

    return register


def load(package: str = "tests.fuzz.targets") -> dict[str, Target]:
    """All targets of a package (or module), by name."""
    module = importlib.import_module(package)
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{package}.{found.name}")
    return dict(sorted(_targets.items()))
