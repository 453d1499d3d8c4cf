"""What only the cachefiles engine has: names, domains, the kernel's own cache.

Skipped where /dev/cachefiles does not go on demand, which is nearly everywhere; tests/vm runs it in guests, through
``vm/contract.py``. The first line of a test's docstring is its line in docs/support-matrix.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import cli
from tests.kit.engines import CACHEFILES
from tests.kit.images import build
from tests.kit.mounts import mounted, mounted_disk
from tests.kit.reading import compare, compare_expected, read
from tests.kit.servers.files import FileServer
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("cachefiles")]
RUNNING: list[Service] = []  # services
AT_ONCE = 20  # seconds; an emulated machine takes a few to start a program


def mount(target: Path, *options: str) -> tuple[int, float]:
    """Plain mount(8); (exit code, seconds)."""
    target.mkdir(exist_ok=True)
    started = time.monotonic()
    command = ["mount", "-t", "erofs", "-o", ",".join(options), "none", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, time.monotonic() - started


def umount(*targets: Path) -> None:
    for target in targets:
        subprocess.run(["umount", target], check=True, timeout=60)


@pytest.fixture(scope="module")
def images(cache_disk: Path, nydus_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.meta and blobs in one folder."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("plain", "lz4"):
        shutil.copy(nydus_images / name / "boot", folder / f"{name}.meta")
        for blob in (nydus_images / name / "blobs").iterdir():
            shutil.copy(blob, folder)
    shutil.copy(folder / "plain.meta", folder / "twin.meta")
    return folder


@pytest.fixture(scope="module")
def named(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service that finds images by name, for all tests that leave it as it is."""
    work = tmp_path_factory.mktemp("named")
    service = Service(work, CACHEFILES, blob_dirs=[str(images)], prefetch=False)
    RUNNING.append(service.start())
    yield service
    service.close()
    assert "Traceback" not in service.log_text()
    assert not mounted(work)


@pytest.fixture
def device() -> None:
    """Nobody has it any more; the tests that need it are the last ones."""
    while RUNNING:
        RUNNING.pop().close()


def refusals(service: Service) -> list[str]:
    return [record["error"] for record in service.events("not served")]


def test_a_published_bootstrap_is_read_in_pieces(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """metadata from a server as it is read, each piece verified; mounting does not wait for the rest"""
    tree = tmp_path / "tree"
    for number in range(4000):
        (tree / f"{number % 40}").mkdir(parents=True, exist_ok=True)
        (tree / f"{number % 40}" / f"{number}").write_bytes(b"%d" % number)
    built = build(tree, tmp_path / "image")
    published = tmp_path / "published"
    published.mkdir()
    config = tmp_path / "localfs.json"
    config.write_text(json.dumps({"type": "localfs", "dir": str(published)}))
    cli("push", built.bootstrap, "--backend-config-file", config, "--name", "many", check=True)
    server = FileServer(published)
    request.addfinalizer(server.close)
    work = tmp_path / "service"
    work.mkdir()
    service = Service(work, CACHEFILES, prefetch=False)
    service.backend = {"type": "http-proxy", "addr": f"http://127.0.0.1:{server.port}", "timeout": 120}
    RUNNING.append(service.start())
    request.addfinalizer(service.close)
    size = (published / "many.meta").stat().st_size
    assert size > 600_000
    server.large = 300_000
    server.gate.clear()  # the whole bootstrap does not come
    target = service.target()
    assert mount(target, "fsid=many")[0] == 0
    assert len(os.listdir(target)) == 40
    assert len(os.listdir(target / "7")) == 100
    server.gate.set()
    compare(tree, target)
    (backend,) = service.status()["backends"]
    blob = built.blob.stat().st_size
    assert backend["bytes"] < 2 * size + blob + 200_000
    umount(target)


def test_names_and_domains(named: Service, nydus_images: Path) -> None:
    """mount(8) by name; images of a domain share a blob, others do not"""
    first, twin, alone = (named.target() for _ in range(3))
    assert mount(first, "fsid=plain", "domain_id=d")[0] == 0
    compare_expected(nydus_images / "expected.json", first)
    blob = next((nydus_images / "plain/blobs").iterdir()).stat().st_size
    fetched = named.status(first)["bytes_fetched_compressed"]
    assert fetched > blob / 2
    assert mount(twin, "fsid=twin", "domain_id=d")[0] == 0
    compare_expected(nydus_images / "expected.json", twin)
    meta = (nydus_images / "plain/boot").stat().st_size
    assert named.status(first)["bytes_fetched_compressed"] <= fetched + meta, "the blob was fetched once more"
    assert mount(alone, "fsid=twin")[0] == 0
    compare_expected(nydus_images / "expected.json", alone)
    assert named.status(alone)["bytes_fetched_compressed"] >= blob / 2
    # Each knows its domain; what the first lets go of, the twin keeps.
    assert [one.get("domain") for one in named.status()["mounts"]] == ["d", "d", None]
    umount(first)
    compare_expected(nydus_images / "expected.json", twin)
    umount(twin, alone)


def test_the_mount_helper(named: Service, nydus_images: Path, images: Path) -> None:
    """mount -t nydus-erofs, with mount options"""
    helper = Path("/sbin/mount.nydus-erofs")
    helper.unlink(missing_ok=True)
    program = "from nydus_erofs.cli.mount_helper import main; main()"
    helper.write_text(f"#!/bin/sh\nexec {sys.executable} -I -c '{program}' \"$@\"\n")  # as pip would install it
    helper.chmod(0o755)
    target, again = named.target(), named.target()
    options = f"run_dir={named.run},state_dir={named.state},nosuid,noexec,noprefetch"
    for place in (target, again):
        command = ["mount", "-t", "nydus-erofs", "-o", options, str(images / "lz4.meta"), str(place)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        flags = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(place) in line).split()[3]
        assert {"ro", "nosuid", "noexec"} <= set(flags.split(",")), flags
    compare_expected(nydus_images / "expected.json", again)
    umount(target, again)


def test_names_that_mean_nothing(named: Service, images: Path) -> None:
    """unknown names, bad names and damaged images: mount(8) fails at once"""
    (images / "noise.meta").write_bytes(os.urandom(8192))
    (images / "empty.meta").write_bytes(b"")
    target = named.target()
    for name, words in {
        "nope": "there is no nope.meta",
        "..": "there is no",
        "a b": "letters, digits",
        "x" * 64: "letters, digits",
        "noise": "",
        "empty": "",
    }.items():
        before = len(refusals(named))
        code, seconds = mount(target, f"fsid={name}")
        assert code != 0, name
        assert seconds < AT_ONCE, f"{name}: {seconds:.0f} s"
        (line,) = set(refusals(named)[before:])
        assert words in line, line
        assert "\n" not in line


@pytest.mark.parametrize("name", ["tarfs", "encrypt", "zran"])
def test_kinds_of_images_that_are_not_served(name: str, named: Service, nydus_images: Path, images: Path) -> None:
    """tarfs, encrypted and zran images: refused in one line, at once"""
    shutil.copy(nydus_images / name / "boot", images / f"{name}.meta")
    before = len(refusals(named))
    code, seconds = mount(named.target(), f"fsid={name}")
    assert code != 0
    assert seconds < AT_ONCE
    (line,) = set(refusals(named)[before:])
    assert re.search("tar|encrypt|zran|block", line, re.I), line
    with pytest.raises(RefusedError) as caught:
        named.mount(images / f"{name}.meta")
    assert re.search("tar|encrypt|zran|block", caught.value.error, re.I), caught.value.error


def test_a_name_with_other_content(named: Service, images: Path) -> None:
    """NAME.meta replaced by one of the same size: never served stale"""
    file, target = images / "changing.meta", named.target()
    right = (images / "plain.meta").read_bytes()
    for shown, data in ((b"f1M", right), (b"f1Q", right.replace(b"f1M", b"f1Q")), (b"f1M", right)):
        (images / "changing.new").write_bytes(data)
        (images / "changing.new").rename(file)
        for _ in range(2):  # fresh, and from the kernel's cache
            assert mount(target, "fsid=changing", "domain_id=changes")[0] == 0
            done = subprocess.run(["find", target], capture_output=True, check=True, timeout=60)
            other = b"f1Q" if shown == b"f1M" else b"f1M"
            assert shown in done.stdout
            assert other not in done.stdout
            umount(target)


def test_images_that_disagree_about_a_blob(named: Service, nydus_images: Path, images: Path) -> None:
    """one blob with two digests: refused in a domain, and no wrong byte outside it"""
    contrary(images)
    first, second = named.target(), named.target()
    assert mount(first, "fsid=plain", "domain_id=e")[0] == 0
    compare_expected(nydus_images / "expected.json", first)
    for _ in range(2):
        code, seconds = mount(second, "fsid=contrary", "domain_id=e")
        assert code != 0
        assert seconds < AT_ONCE
        assert "has other digests in another image of domain e" in refusals(named)[-1]
    umount(first)
    # Nor does the cache serve what the other one's digests have proved.
    assert mount(second, "fsid=contrary", "domain_id=e")[0] != 0
    assert mount(second, "fsid=contrary")[0] == 0
    command = ["find", str(second), "-type", "f", "-exec", "sha256sum", "{}", "+"]
    done = subprocess.run(command, capture_output=True, timeout=120, text=True, check=False)
    assert "Input/output error" in done.stderr, "some digests are wrong: those files cannot be read"
    umount(second)


def contrary(images: Path) -> Path:
    """An image that says otherwise than plain.meta what its blob holds."""
    data = bytearray((images / "plain.meta").read_bytes())
    at = chunk_table(data)
    for record in range(30):
        data[at + 80 * record] ^= 1  # a byte of each digest
    path = images / "contrary.meta"
    path.write_bytes(data)
    return path


def test_a_mount_that_fails_leaves_nothing(named: Service, nydus_images: Path, images: Path) -> None:
    """a mount that fails says why, and leaves nothing; umount takes nothing else with it"""
    target = named.mount(images / "plain.meta")
    compare_expected(nydus_images / "expected.json", target)
    registered = (named.run / "names.json").read_bytes()
    with pytest.raises(RefusedError, match="other digests in another image of domain nydus-erofs"):
        named.mount(contrary(images))
    assert (named.run / "names.json").read_bytes() == registered
    assert [entry.target for entry in mounted(named.work) if entry.kind == "erofs"] == [str(target)]
    subprocess.run(["mount", "-t", "tmpfs", "over", target], check=True, timeout=60)
    with pytest.raises(RefusedError, match="something else is mounted over"):
        named.umount(target)
    assert [entry.source for entry in mounted(target)][-1] == "over"
    umount(target)
    named.umount(target)
    assert not mounted(target)


def chunk_table(bootstrap: bytearray) -> int:
    """Offset of the chunk table (80 bytes a chunk, the digest first), from the extended superblock."""
    from nydus_erofs.erofs.head import read_head
    from nydus_erofs.erofs.source import BufferSource

    return read_head(BufferSource(bytes(bootstrap))).ext.chunk_table_offset


def test_images_that_use_different_parts_of_a_blob(named: Service, nydus_images: Path, images: Path) -> None:
    """images of a domain that use different parts of a blob get theirs"""
    folder = nydus_images / "merge"
    for blob in (folder / "pb").iterdir():
        shutil.copy(blob, images)
    targets = []
    for name in ("d1", "p0", "p1"):  # layers over one chunk dictionary
        shutil.copy(folder / f"{name}.boot", images / f"{name}.meta")
        target, alone = named.target(), named.target()
        assert mount(target, f"fsid={name}", "domain_id=layers")[0] == 0, refusals(named)
        read_all(target)
        assert mount(alone, f"fsid={name}")[0] == 0
        compare(alone, target)
        umount(alone)
        targets.append(target)
    umount(*targets)


def read_all(target: Path) -> None:
    command = "find . -type f -print0 | xargs -0 -r sha256sum"
    done = subprocess.run(["sh", "-c", command], cwd=target, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_in_the_cache_is_written_anew(named: Service, nydus_images: Path) -> None:
    """cache verify: wrong bytes of live images found, and written anew under their readers"""
    target = named.target()
    assert mount(target, "fsid=plain", "domain_id=scrubbed")[0] == 0
    compare_expected(nydus_images / "expected.json", target)
    done = verify(named, "--all")
    assert (done.returncode, "1 skipped" in done.stdout) == (0, True), done  # it has no name yet
    umount(target)
    assert mount(target, "fsid=plain", "domain_id=scrubbed")[0] == 0
    done = verify(named, "--all")
    assert (done.returncode, "skipped" in done.stdout) == (0, False), done
    (blob,) = (nydus_images / "plain/blobs").iterdir()
    (file,) = [path for path in named.cache() if path.name == f"D{blob.name}" and "scrubbed" in str(path)]
    at = damage(file)
    drop_caches()
    done = verify(named, target)
    assert done.returncode == 3, (done.stdout, at, file)
    with pytest.raises(AssertionError):
        compare_expected(nydus_images / "expected.json", target)
    assert f"({target}): segment {at >> 20}" in done.stdout
    done = verify(named, "--repair", target)
    assert done.returncode == 0, done
    assert "1 wrong, 1 repaired" in done.stdout
    compare_expected(nydus_images / "expected.json", target)
    drop_caches()
    compare_expected(nydus_images / "expected.json", target)
    assert "is not mounted" in verify(named, "/nowhere").stderr
    umount(target)


def verify(service: Service, *arguments: object) -> subprocess.CompletedProcess[str]:
    return cli("cache", "verify", *arguments, "--run-dir", service.run)


def damage(file: Path) -> int:
    """Other bytes in the middle of the first MiB that is there; where."""
    with open(file, "r+b", buffering=0) as opened:
        at = os.lseek(opened.fileno(), 0, os.SEEK_DATA) + 40_960
        data = os.pread(opened.fileno(), 4096, at)
        os.pwrite(opened.fileno(), bytes(byte ^ 0x55 for byte in data), at)
        os.fsync(opened.fileno())
    return at


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_a_second_service(named: Service, tmp_path_factory: pytest.TempPathFactory) -> None:
    """the device in use: the holder is named, by serve and by doctor"""
    work = tmp_path_factory.mktemp("second")
    (work / "c.toml").write_text('engine = "cachefiles"\n')
    done = cli("serve", "--config", work / "c.toml", "--state-dir", work / "s", "--run-dir", work / "r")
    assert done.returncode == 10, done
    assert f"(pid {named.keeper.pid})" in done.stderr
    assert "/dev/cachefiles is in use by" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    doctor = cli("doctor", "--json", "--state-dir", work)
    checks = json.loads(doctor.stdout)["engines"]["cachefiles"]["checks"]
    assert any(f"(pid {named.keeper.pid})" in check["detail"] for check in checks)


def test_the_service_killed_and_its_mounts_revived(
    device: None, make_service: MakeService, nydus_images: Path
) -> None:
    """service killed: reads fail, none is wrong; the next one mounts again what nobody uses"""
    service = make_service(CACHEFILES, prefetch=False)
    folder = nydus_images / "plain"
    target = service.mount(folder / "boot", folder / "blobs")
    more = service.mount_image(str(folder / "boot"), blob_dirs=[str(folder / "blobs")], options=["noexec"])
    data = read(target / "sizes/f1M")
    service.kill_all()
    # Cached pages are read on; what has to be asked for fails.
    subprocess.run("echo 3 > /proc/sys/vm/drop_caches", shell=True, check=True, timeout=60)
    after = read(target / "sizes/f1M")
    assert after == data or after["error"] in ("EIO", "ENOBUFS"), after
    service.start()
    wait_for("it is mounted again", lambda: service.events("mounted again"))
    compare_expected(nydus_images / "expected.json", target)
    compare_expected(nydus_images / "expected.json", more)
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    flags = {line[4]: set(line[5].split(",")) for line in lines}
    assert {"ro", "nosuid", "nodev"} <= flags[str(target)] & flags[str(more)]
    assert "noexec" in flags[str(more)] - flags[str(target)]
    assert service.stop() == 0


@pytest.mark.parametrize("record", ["gone", "other bytes"])
def test_without_a_record_nothing_cached_is_believed(
    device: None, make_service: MakeService, images: Path, tmp_path: Path, record: str
) -> None:
    """record of what is cached lost or damaged: the cache starts empty, never stale"""
    right = (images / "plain.meta").read_bytes()
    folder = tmp_path / "names"
    folder.mkdir()
    service = make_service(CACHEFILES, blob_dirs=[str(folder), str(images)], prefetch=False)
    objects = service.state / "objects.json"
    target = service.target()
    for shown, data in ((b"f1M", right), (b"f1Q", right.replace(b"f1M", b"f1Q"))):
        (folder / "one.meta").write_bytes(data)
        assert mount(target, "fsid=one", "domain_id=lost")[0] == 0
        found = subprocess.run(["find", target], capture_output=True, check=True, timeout=60).stdout
        assert shown in found
        assert (b"f1M" in found) + (b"f1Q" in found) == 1
        umount(target)
        assert service.stop() == 0
        if record == "gone":
            objects.unlink()
        else:
            objects.write_bytes(objects.read_bytes().replace(b'"size"', b'"Size"'))
        service.start()
        assert service.events("the kernel's cache starts empty: there is no record of what it held")


def test_idle_images_make_room(
    device: None, make_service: MakeService, nydus_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """little free space: idle images are culled, and read right when they come back"""
    work = tmp_path_factory.mktemp("room")
    folder = nydus_images / "plain"
    with mounted_disk(work, 64) as disk:
        service = make_service(CACHEFILES, start=False, work=work, prefetch=False)
        service.state = disk / "state"
        service.config |= {"cache_run": 40, "cache_cull": 30, "cache_stop": 5}
        service.start()
        target = service.mount(folder / "boot", folder / "blobs")
        compare_expected(nydus_images / "expected.json", target)
        service.umount(target)

        def cached() -> bool:
            return any(path.name.startswith("D") for path in service.cache())

        wait_for("it is cached", cached)
        with open(disk / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, int(shutil.disk_usage(disk).free * 0.8))
        wait_for("idle files are culled", lambda: not cached())
        assert service.events("made room")
        (disk / "ballast").unlink()
        wait_for("it mounts again", lambda: mounts(service, folder, target))
        compare_expected(nydus_images / "expected.json", target)
        service.umount(target)
        assert service.stop() == 0


def mounts(service: Service, folder: Path, target: Path) -> bool:
    try:
        service.mount(folder / "boot", folder / "blobs", target=target)
    except RefusedError:
        return False
    return True


def test_places_that_cannot_hold_a_cache(device: None, tmp_path: Path) -> None:
    """no device, or a folder that cannot hold the cache: one line, nothing started"""
    (tmp_path / "c.toml").write_text('engine = "cachefiles"\n')
    serve = ["serve", "--config", tmp_path / "c.toml", "--run-dir", tmp_path / "r", "--state-dir"]
    other = tmp_path / "ramfs"
    other.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", other], check=True, timeout=60)
    try:
        done = cli(*serve, other / "state")
        assert done.returncode == 8, done
        assert "extended attributes, such as ext4 or xfs" in done.stderr
    finally:
        umount(other)
    os.rename("/dev/cachefiles", "/dev/cachefiles.away")
    try:
        done = cli(*serve, tmp_path / "state")
    finally:
        os.rename("/dev/cachefiles.away", "/dev/cachefiles")
    assert done.returncode == 8, done
    assert "no /dev/cachefiles" in done.stderr
    assert "modprobe cachefiles" in done.stderr
