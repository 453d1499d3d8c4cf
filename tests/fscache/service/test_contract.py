"""What a mount is, on every engine: the same battery for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kit.command import PYTHON, cli
from tests.kit.images import Built, build
from tests.kit.mounts import mounted
from tests.kit.processes import pss
from tests.kit.reading import COMPARE, compare, compare_expected, read, result_of
from tests.kit.service import RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

FIXTURES = ("plain", "lz4", "none-sha256", "toc", "batch")


@pytest.mark.parametrize("name", FIXTURES)
def test_images_of_nydus_read_as_they_were(name: str, service: Service, nydus_images: Path) -> None:
    folder = nydus_images / name
    target = service.mount(folder / "boot", folder / "blobs")
    compare_expected(nydus_images / "expected.json", target)
    service.umount(target)
    assert service.status()["mounts"] == []


def test_images_of_ours_read_as_they_were(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    compare(built.tree, target)
    status = service.status(target)
    assert status["failures"] == status["events_denied"] == 0
    assert service.fetched(target) >= status["bytes_total"] - service.engine.metadata_fetched(built.bootstrap)


def test_nothing_is_fetched_before_it_is_read(service: Service, built: Built) -> None:
    """Names and attributes cost no data; one file costs what is near it."""
    allowed = service.engine.metadata_fetched(built.bootstrap)
    target = service.mount(built.bootstrap)
    done = subprocess.run(["ls", "-lR", target], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("\n") > 400
    before = service.fetched(target)
    assert before <= allowed
    assert service.held() <= allowed
    data = (built.tree / "small/1").read_bytes()
    assert read(target / "small/1")["sha256"] == hashlib.sha256(data).hexdigest()
    status = service.status(target)
    assert before < service.fetched(target) < status["bytes_total"] / 2
    assert status["bytes_prefetched"] <= allowed
    service.umount(target)
    wait_for("what was read is kept", service.held)  # the kernel's own cache shows it now at the earliest


def test_eight_readers_at_once(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    command = [*PYTHON, str(COMPARE), str(built.tree), str(target)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        for process in readers:
            out, _ = process.communicate(timeout=100)
            assert process.returncode == 0, out
    finally:
        for process in readers:
            process.kill()
    # However many wait, a blob is fetched once.
    status = service.status(target)
    assert status["bytes_fetched_compressed"] <= built.blob.stat().st_size + (1 << 20)


def test_mmap(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    result = result_of(service.reader("mapped", built.tree, target))
    assert not result["wrong"]
    assert result["files"] == 411


def test_programs_run_from_it(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    done = subprocess.run([target / "bin/cat", target / "large/3"], capture_output=True, timeout=60, check=True)
    assert done.stdout == (built.tree / "large/3").read_bytes()
    done = subprocess.run([target / "bin/script"], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"out of the image\n"


def test_several_images_at_once(service: Service, nydus_images: Path, built: Built) -> None:
    targets = {name: service.mount(nydus_images / name / "boot", nydus_images / name / "blobs") for name in FIXTURES}
    ours = service.mount(built.bootstrap, prefetch=True)
    readers = [service.reader("expected", nydus_images / "expected.json", target) for target in targets.values()]
    compare(built.tree, ours)
    for process in readers:
        assert not result_of(process)["wrong"]
    assert len(service.status()["mounts"]) == len(FIXTURES) + 1
    for target in (*targets.values(), ours):
        service.umount(target)
    assert service.status()["mounts"] == []


@pytest.fixture(scope="session")
def layers(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Built]:
    """Two images of one blob: the same files, another mode on one of them."""
    folder = tmp_path_factory.mktemp("layers")
    made = []
    for number in (1, 2):
        tree = folder / f"tree{number}"
        tree.mkdir()
        for name in range(6):
            (tree / f"{name}").write_bytes(random.Random(name).randbytes(900_000))
        (tree / "0").chmod(0o600 + number)
        made.append(build(tree, folder / f"image{number}"))
    assert made[0].blob.name == made[1].blob.name
    assert made[0].bootstrap.read_bytes() != made[1].bootstrap.read_bytes()
    return made


def test_one_blob_in_two_images_is_fetched_once(service: Service, layers: list[Built]) -> None:
    first, second = (service.mount(image.bootstrap) for image in layers)
    compare(layers[0].tree, first)
    fetched, files = service.status(first)["bytes_fetched_compressed"], service.cache()
    # The second image finds everything there: its blob need not even be.
    layers[1].blob.rename(layers[1].blob.with_suffix(".away"))
    try:
        compare(layers[1].tree, second)
    finally:
        layers[1].blob.with_suffix(".away").rename(layers[1].blob)
    allowed = 2 * service.engine.metadata_fetched(layers[1].bootstrap)
    assert service.status(second)["bytes_fetched_compressed"] <= fetched + allowed
    if not allowed:
        assert service.cache() == files
    # What one lets go of, the other keeps.
    service.umount(first)
    compare(layers[1].tree, second)


def test_one_image_on_many_mountpoints(service: Service, built: Built) -> None:
    """More of them than descriptors fit into one message to a new worker."""
    targets = [service.mount(built.bootstrap) for _ in range(20)]
    service.kill_worker()
    compare(built.tree, targets[-1])
    compare(built.tree, targets[0])
    assert service.status()["worker"]["restarts"] == 1
    for target in targets[::2]:
        service.umount(target)
    compare(built.tree, targets[-1])


@pytest.mark.failure("SIGTERM while a mount is in use")
def test_a_busy_mount_is_named_and_works_on(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    ready = service.work / "ready"
    holder = service.reader("hold", target / "large/0", ready)
    wait_for("the file is open", ready.exists)
    with pytest.raises(RefusedError) as caught:
        service.umount(target)
    assert str(target) in caught.value.error
    assert "in use" in caught.value.error
    assert caught.value.hint
    assert caught.value.exit_code == 10
    compare(built.tree, target)
    # Neither does the service end.
    service.keeper.terminate()
    wait_for("it says why it stays", lambda: service.events("not stopping: mounts are in use"))
    compare(built.tree, target)
    holder.kill()
    holder.communicate(timeout=20)
    service.umount(target)
    assert service.stop() == 0


@pytest.mark.failure("unmounted by umount(8), also `-l`")
def test_unmounted_behind_its_back(service: Service, built: Built) -> None:
    """By umount(8): the service notices, and the same mountpoint serves again."""
    target = service.mount(built.bootstrap, prefetch=True)
    subprocess.run(["umount", target], check=True, timeout=60)
    wait_for("the service notices", lambda: not service.status()["mounts"])
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


@pytest.mark.failure("unmounted by umount(8), also `-l`")
def test_unmounted_lazily_while_in_use(service: Service, built: Built) -> None:
    """Files that are open are served to the end."""
    target = service.mount(built.bootstrap)
    stop = service.work / "stop"
    # Its working directory is in the image: it reads on when nobody else can reach it any more.
    process = subprocess.Popen(
        [*PYTHON, "-c", READ_ON, str(service.work / "inside"), str(stop)], cwd=target,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    service.readers.append(process)
    wait_for("it is inside", (service.work / "inside").exists)
    subprocess.run(["umount", "-l", target], check=True, timeout=60)
    stop.touch()
    out, _ = process.communicate(timeout=60)
    right = hashlib.sha256((built.tree / "large/5").read_bytes()).hexdigest()
    assert out.strip() == right
    wait_for("the service lets go of it", lambda: not service.status()["mounts"])


READ_ON = """
import hashlib, os, sys, time
open(sys.argv[1], "w").close()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
print(hashlib.sha256(open("large/5", "rb").read()).hexdigest())
"""


def test_prefetch_completes_by_itself(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    status = service.status(target)
    assert status["bytes_prefetched"] >= status["bytes_total"] - service.engine.metadata_fetched(built.bootstrap)
    # From now on the blob is not needed, nor is anybody asked: not one event that waits.
    built.blob.rename(built.blob.with_suffix(".away"))
    try:
        compare(built.tree, target)
    finally:
        built.blob.with_suffix(".away").rename(built.blob)
    assert service.status(target)["events_waited"] == status["events_waited"]


def test_after_a_restart_nothing_is_fetched_twice(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    assert service.stop() == 0
    assert not mounted(service.work)
    service.start()
    service.mount(built.bootstrap, target=target)
    allowed = service.engine.metadata_fetched(built.bootstrap)
    compare(built.tree, target)
    status = service.status(target)
    assert service.fetched(target) <= allowed
    assert status["bytes_fetched_compressed"] <= allowed
    assert status["bytes_cached_before"] >= status["bytes_total"] - allowed


def test_half_of_it_cached(service: Service, built: Built) -> None:
    """What was fetched before the restart stays, the rest is fetched."""
    target = service.mount(built.bootstrap)
    for name in ("large/0", "large/7"):
        read(target / name)
    had = service.fetched(target)
    assert 0 < had < service.status(target)["bytes_total"]
    assert service.stop() == 0
    service.start()
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)
    status = service.status(target)
    allowed = service.engine.metadata_fetched(built.bootstrap)
    assert status["bytes_total"] - service.fetched(target) >= had - (1 << 20) - allowed


@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied"])
@pytest.mark.failure("chunk with a wrong digest")
@pytest.mark.failure("blob truncated, removed")
def test_a_damaged_blob_gives_eio_and_heals(how: str, service: Service, built: Built) -> None:
    """Flipped bits, a file too short: EIO, and the log names blob and chunk. Once it is repaired all is well."""
    folder = service.work / "image"
    shutil.copytree(built.bootstrap.parent, folder)
    blob, bootstrap = folder / built.blob.name, folder / built.bootstrap.name
    right = blob.read_bytes()
    target = service.mount(bootstrap)
    if how == "flipped":
        damaged = bytearray(right)
        for at in range(1000, len(damaged) - 100_000, 50_000):  # every chunk, but not the chunk-info array
            damaged[at] ^= 0x40
        blob.write_bytes(damaged)
    else:
        os.truncate(blob, 1 if how == "truncated" else 0)
    file = target / "large/4"
    assert read(file) == {"error": "EIO"}
    assert read(file) == {"error": "EIO"}
    record = service.events("segment not filled")[0]
    assert built.blob.name in record["error"]
    if how == "flipped":
        assert "chunk at byte" in record["error"]
        assert record["hint"]
    status = service.status(target)
    assert status["failures"] > 0
    assert status["events_denied"] > 0
    assert built.blob.name in status["last_error"]
    blob.write_bytes(right)
    compare(built.tree, target)


@pytest.mark.failure("blob repaired, in place or by a new file under its name")
def test_a_blob_replaced_by_an_intact_copy(service: Service, built: Built) -> None:
    """As rsync and most people repair files: a new file under the old name."""
    folder = service.work / "image"
    shutil.copytree(built.bootstrap.parent, folder)
    blob, bootstrap = folder / built.blob.name, folder / built.bootstrap.name
    intact = service.work / "intact"
    shutil.copy(blob, intact)
    target = service.mount(bootstrap)
    with open(blob, "r+b") as file:
        file.truncate(10)
    assert read(target / "large/2") == {"error": "EIO"}
    intact.rename(blob)
    # The next failure makes the service look again; the read after it finds the copy.
    wait_for("it is read", lambda: "error" not in read(target / "large/2"))
    compare(built.tree, target)
    service.kill_worker()
    compare(built.tree, target)


def test_a_blob_removed_while_it_is_mounted(service: Service, built: Built) -> None:
    """The service has it open."""
    folder = service.work / "image"
    shutil.copytree(built.bootstrap.parent, folder)
    target = service.mount(folder / built.bootstrap.name)
    (folder / built.blob.name).unlink()
    service.kill_worker()
    compare(built.tree, target)


@pytest.mark.failure("worker or verifier killed")
def test_the_worker_killed_before_it_was_asked(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    service.kill_worker()
    compare(built.tree, target)
    wait_for("one restart", lambda: service.status()["worker"]["restarts"] == 1)
    assert service.status(target)["failures"] == 0


def test_memory_after_a_full_read(service: Service, built: Built) -> None:
    """Keeper and worker together; the image's own bytes are the page cache's."""
    target = service.mount(built.bootstrap)
    compare(built.tree, target)
    memory = pss(service.keeper.pid) + pss(service.worker)
    assert memory <= 150 << 20, f"{memory >> 20} MiB"


def test_mount_and_unmount_again_and_again(service: Service, built: Built) -> None:
    """With a prefetch under way each time; neither descriptors nor mounts are left."""
    target = service.target()
    service.mount(built.bootstrap, target=target)
    service.umount(target)
    worker = service.worker

    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (service.keeper.pid, worker)]

    before, mounts = descriptors(), mounted(service.work)
    for _ in range(15):
        service.mount(built.bootstrap, target=target, prefetch=True)
        service.umount(target)
    wait_for("the worker lets go", lambda: sum(descriptors()) <= sum(before) + 8)
    assert mounted(service.work) == mounts
    assert service.worker == worker, "it was not killed by a message about a store that was closed"
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


def test_an_image_without_files(service: Service, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "empty").touch()
    (tmp_path / "image").mkdir()
    cli("build", tree, "-o", tmp_path / "image", check=True)
    target = service.mount(tmp_path / "image" / "tree.meta")
    compare(tree, target)
    assert service.status(target)["complete"]
    service.umount(target)
    assert service.stop() == 0


def test_stops_cleanly_with_images_mounted(service: Service, nydus_images: Path, built: Built) -> None:
    service.mount(built.bootstrap, prefetch=True)
    service.mount(nydus_images / "plain" / "boot", nydus_images / "plain" / "blobs")
    assert service.stop() == 0
    assert not mounted(service.work)
    assert not service.socket.exists()


def test_status_is_json_that_programs_can_read(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    status = json.loads(json.dumps(service.status()))
    assert status["engine"] == service.engine.name
    assert status["worker"]["pid"] > 0
    (mount,) = status["mounts"]
    assert mount["image"] == str(built.bootstrap)
    assert mount["target"] == str(target)
    assert {"bytes_total", "bytes_on_demand", "events", "stall_seconds_max"} <= mount.keys()
