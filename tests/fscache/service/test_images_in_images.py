"""Images whose blobs lie in an image of the same service, which would wait for itself."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.images import Built, build
from tests.kit.mounts import mounted
from tests.kit.reading import compare
from tests.kit.service import RefusedError, Service

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


class Nested(NamedTuple):
    """An image that is mounted on ``outside`` and has the bootstraps and blobs of the others in it."""

    outside: Path
    inner: list[Built]


@pytest.fixture(scope="module")
def trees(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, list[Built]]:
    folder = tmp_path_factory.mktemp("nested")
    inner = []
    for number in range(3):
        tree = folder / f"tree{number}"
        tree.mkdir()
        for name in range(20):
            (tree / f"{name}").write_bytes(random.Random(f"{number} {name}").randbytes(400_000))
        inner.append(build(tree, folder / f"image{number}"))
    tree = folder / "outer"
    tree.mkdir()
    for image in inner:
        shutil.copy(image.bootstrap, tree)
        shutil.copy(image.blob, tree)
    return build(tree, folder / "outer image", "--compressor", "none"), inner


@pytest.fixture
def nested(service: Service, trees: tuple[Built, list[Built]]) -> Nested:
    outer, inner = trees
    return Nested(service.mount(outer.bootstrap), inner)


def refused(service: Service, bootstrap: Path, folder: Path, outside: Path) -> None:
    before = mounted(service.work)
    with pytest.raises(RefusedError) as caught:
        service.mount(bootstrap, folder)
    assert f"lies in the image on {outside}, which this service serves itself" in caught.value.error
    assert str(folder) in caught.value.error
    assert "copy it out of there" in caught.value.hint
    assert mounted(service.work) == before


@pytest.fixture
def ways(service: Service, nested: Nested) -> Iterator[list[Path]]:
    """To the blobs: as they are, by a link, and bound elsewhere."""
    link, bound = service.work / "link", service.work / "bound"
    link.symlink_to(nested.outside)
    bound.mkdir()
    subprocess.run(["mount", "--bind", nested.outside, bound], check=True, timeout=60)
    yield [nested.outside, link, bound]
    subprocess.run(["umount", bound], check=True, timeout=60)


@pytest.mark.failure("blob inside an image that this service has mounted")
def test_they_are_refused_whatever_way_leads_there(service: Service, nested: Nested, ways: list[Path]) -> None:
    image = nested.inner[0]
    alone = Path(shutil.copy(image.bootstrap, service.work))
    for folder in ways:
        refused(service, alone, folder, nested.outside)
    links = service.work / "links"
    links.mkdir()
    (links / image.blob.name).symlink_to(nested.outside / image.blob.name)
    refused(service, alone, links, nested.outside)


@pytest.mark.failure("bootstrap inside such an image")
def test_a_copy_outside_is_taken(service: Service, nested: Nested) -> None:
    """The bootstrap may be inside: nobody needs it in order to serve a mounted image."""
    image = nested.inner[0]
    target = service.mount(nested.outside / image.bootstrap.name, nested.outside, image.blob.parent)
    compare(image.tree, target)


def test_the_service_looks_again_no_further(service: Service, trees: tuple[Built, list[Built]]) -> None:
    """A blob that is damaged is looked for once more: also then, not in an image of its own."""
    outer, (image, *_) = trees
    folder, away = service.work / "blobs", service.work / "away"
    folder.mkdir()
    blob = Path(shutil.copy(image.blob, folder))
    alone = Path(shutil.copy(image.bootstrap, service.work))
    target = service.mount(alone, folder)
    outside = service.mount(outer.bootstrap)
    with open(blob, "r+b") as file:
        file.truncate(10)
    folder.rename(away)
    folder.symlink_to(outside)
    command = ["cat", *(str(target / f"{name}") for name in range(20))]
    done = subprocess.run(command, capture_output=True, check=False, timeout=100)
    assert b"Input/output error" in done.stderr
    service.umount(outside)  # nothing of it is held


@pytest.mark.failure("the same through overlayfs")
def test_what_is_stacked_on_an_image_is_served_all_the_same(service: Service, nested: Nested) -> None:
    """overlayfs hides whose files these are. Many readers at once: each image has threads of its own."""
    over = service.work / "over"
    over.mkdir()
    empty = service.work / "empty"
    empty.mkdir()
    options = f"lowerdir={empty}:{nested.outside}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, over], check=True, timeout=60)
    try:
        targets = [service.mount(over / image.bootstrap.name, over) for image in nested.inner]
        readers = [
            service.reader("mapped", image.tree, target)
            for image, target in zip(nested.inner, targets, strict=True)
            for _ in range(3)
        ]
        for image, target in zip(nested.inner, targets, strict=True):
            compare(image.tree, target)
        for process in readers:
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, out + err
        for target in targets:
            service.umount(target)
    finally:
        subprocess.run(["umount", "-l", over], check=True, timeout=60)
