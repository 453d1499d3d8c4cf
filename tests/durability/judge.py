"""What becomes of a state folder after a crash: each image is mounted, and each of its bytes compared."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.durability.images import Image
from tests.kit import law
from tests.kit.engines import Engine
from tests.kit.reading import compare, reader, result_of
from tests.kit.service import RefusedError, Service

SEGMENT = 1 << 20  # bytes


@dataclass
class Verdict:
    """Of one crash. Files are counted over all images."""

    files: int = 0  # read and right
    wrong: list[str] = field(default_factory=list)
    unserved: int = 0  # errors of files while nobody served them, which is right
    errors: list[str] = field(default_factory=list)  # of what was served, and refused mounts
    lost: list[str] = field(default_factory=list)  # the same, after a restart as well
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not self.wrong and not self.errors and not self.lost


def judge(work: Path, state: Path, engine: Engine, images: dict[str, Image], *, alone: bool) -> Verdict:
    """Start a service on what a crash has left.

    Args:
        alone: also read while nobody serves, when the kernel goes by what is in the cache.
    """
    verdict, began = Verdict(), time.monotonic()
    service = Service(work, engine, segment_size=SEGMENT)
    service.state = state
    try:
        with _told(verdict.wrong, "what counts on the disk"):
            law.check(state)
        with _told(verdict.errors, "the service"):
            _serve(service, images, verdict, alone=alone and engine.keeps_mounts)
            with _told(verdict.wrong, "at the end"):
                service.end_well()
            assert "Traceback" not in service.log_text(), service.log_text()[-4000:]
    finally:
        service.close()
    verdict.seconds = time.monotonic() - began
    return verdict


def _serve(service: Service, images: dict[str, Image], verdict: Verdict, *, alone: bool) -> None:
    service.start()
    targets = _mount_all(service, images, verdict.errors)
    if alone:
        service.kill_all()
        verdict.unserved += sum(len(_look(images[name], target, verdict)) for name, target in targets.items())
        service.start()
    for name, target in targets.items():
        if errors := _look(images[name], target, verdict):
            verdict.errors.append(f"{name}: {errors}")
        else:
            with _told(verdict.wrong, name):
                compare(images[name].tree, target)
    if verdict.errors:  # an image is lost when it cannot be read after a restart either, with its blob there
        service.end_well()
        service.start()
        for name, target in _mount_all(service, images, verdict.lost).items():
            if errors := _look(images[name], target, verdict):
                verdict.lost.append(f"{name}: {errors}")


@contextlib.contextmanager
def _told(where: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except (AssertionError, OSError, RefusedError) as error:
        where.append(f"{what}: {error}")


def _mount_all(service: Service, images: dict[str, Image], refused: list[str]) -> dict[str, Path]:
    out = {}
    for name, image in images.items():
        with _told(refused, name):
            out[name] = service.mount_image(image.image, **image.fields)
    return out


def _look(image: Image, target: Path, verdict: Verdict) -> list[str]:
    """Read everything of an image; its errors."""
    result = result_of(reader("whole", image.tree, target))
    verdict.files += result["files"]
    verdict.wrong += (f"{target}: {name}" for name in result["wrong"])
    return [*Counter(result["errors"]).elements()]
