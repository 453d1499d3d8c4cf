"""The fanotify engine's own promises: segment files, epochs, marks, and what a power cut may leave behind."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.mounts import mounted
from tests.kit.reading import compare, compare_expected, read
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

FOREIGN = "00000000-1111-2222-3333-444444444444"


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


def cut_power(service: Service) -> None:
    """As if this boot had ended without a sync: every folder that could be written to is one of another boot's."""
    for folder in (*(service.state / "store").iterdir(), *(service.state / "images").iterdir()):
        (folder / "epoch").write_text(FOREIGN)


@pytest.mark.parametrize(("fetched", "prefetch"), [("all", False), ("half", True)])
@pytest.mark.failure("power cut")
def test_power_cut(fetched: str, prefetch: bool, service: Service, built: Built) -> None:
    """Damage of every kind in what was fetched: found, fetched again, and never served."""
    target = service.mount(built.bootstrap, prefetch=fetched == "all")
    if fetched == "all":
        service.complete(target)
    else:
        for number in range(0, 8, 2):
            read(target / f"large/{number}")
    assert service.stop() == 0
    rng, damaged = random.Random(3), []
    for path in service.cache():
        size = path.stat().st_size
        if not size or rng.random() < 0.3:
            continue
        with open(path, "r+b") as file:
            match rng.choice(["zeros", "old", "bit", "short", "long", "empty"]):
                case "zeros":  # blocks that were allocated and never written
                    file.seek(rng.randrange(size) & ~4095)
                    file.write(bytes(4096))
                case "old":  # another file's bytes
                    file.seek(rng.randrange(size) & ~4095)
                    file.write(rng.randbytes(8192))
                case "bit":
                    file.seek(rng.randrange(size))
                    file.write(b"\xa5")
                case "short":
                    file.truncate(rng.randrange(size))
                case "long":
                    file.seek(0, os.SEEK_END)
                    file.write(rng.randbytes(5000))
                case "empty":
                    file.truncate(0)
        damaged.append(path)
    assert len(damaged) > 3
    cut_power(service)
    service.start()
    service.mount(built.bootstrap, target=target, prefetch=prefetch)
    compare(built.tree, target)
    status = service.status(target)
    assert 0 < status["bytes_fetched_compressed"] <= built.blob.stat().st_size
    if fetched == "all":
        assert status["bytes_fetched_compressed"] < built.blob.stat().st_size, "what was intact was fetched again"
    assert status["failures"] == 0
    wait_for("it counts for good", lambda: service.status(target)["complete"] and not noted(service))
    wait_for("what was set aside is gone", lambda: not list((service.state / "store").glob("*/old")))
    # A restart fetches nothing and verifies nothing.
    assert service.stop() == 0
    service.start()
    service.mount(built.bootstrap, target=target)
    assert service.status(target)["complete"]
    compare(built.tree, target)
    assert service.fetched(target) == 0


def test_a_power_cut_and_then_nobody_to_serve(service: Service, built: Built) -> None:
    """Lost writes left zeros, and files as long as before. Without a keeper the kernel goes by their length."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    assert service.stop() == 0
    for path in service.cache():
        path.write_bytes(bytes(path.stat().st_size))
    cut_power(service)
    service.start()
    service.mount(built.bootstrap, target=target, prefetch=False)
    service.kill_all()
    for number in range(8):
        assert read(target / f"large/{number}") == {"error": "EIO"}
    service.start()
    compare(built.tree, target)


def noted(service: Service) -> list[Path]:
    return list((service.state / "store").glob("*/epoch"))


def test_an_epoch_that_is_lost_while_the_store_is_in_use(service: Service, built: Built, tmp_path: Path) -> None:
    """Its files stay where they are: another image that is mounted from them is served, too."""
    target = service.mount(built.bootstrap)
    read(target / "large/1")
    for epoch in noted(service):
        epoch.write_text(FOREIGN)
    again = tmp_path / "again.meta"
    again.write_bytes(built.bootstrap.read_bytes())
    try:
        compare(built.tree, service.mount(again, built.blob.parent))
    except RefusedError as error:
        assert "may have lost data" in error.error
    compare(built.tree, target)


def test_verifying_goes_on_after_a_worker_was_killed(service: Service, built: Built) -> None:
    """While what was set aside is taken back, a reader that comes after the kill is not forgotten."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    assert service.stop() == 0
    cut_power(service)
    service.start()
    service.mount(built.bootstrap, target=target)
    for number in range(8):
        service.kill_worker()
        assert "error" not in read(target / f"large/{number}", 0, 4096)
    compare(built.tree, target)
    assert service.fetched(target) > 0
    assert service.status(target)["bytes_fetched_compressed"] == 0, "verified, not fetched"


def test_a_verifier_killed_before_it_told_what_it_wrote(service: Service, built: Built) -> None:
    """The next one finds it, so that what is complete is known to be."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    service.umount(target)
    data = {path: path.read_bytes() for path in service.cache()}
    for path in data:
        os.truncate(path, 0)
    service.mount(built.bootstrap, target=target)
    assert not service.status(target)["complete"]
    for path, written in data.items():
        path.write_bytes(written)
    service.kill_verifier()
    service.complete(target)
    assert service.fetched(target) == 0


def test_a_power_cut_while_an_image_was_prepared(service: Service, built: Built) -> None:
    """The localized bootstrap may be anything: it is made anew."""
    target = service.mount(built.bootstrap)
    assert service.stop() == 0
    (folder,) = (service.state / "images").iterdir()
    boot = folder / "boot"
    boot.write_bytes(bytes(boot.stat().st_size))
    (next((service.state / "store").iterdir()) / "plan").write_bytes(b"")
    cut_power(service)
    (service.state / "images" / ".new-0123").mkdir()
    service.start()
    wait_for("what was left is removed", lambda: not (service.state / "images" / ".new-0123").exists())
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


@pytest.mark.parametrize(
    "what",
    ["boot cut off", "record gone", "record noise", "record fifo", "boot folder", "epoch fifo", "plan gone",
     "plan noise", "plan fifo", "plan folder", "segment fifo", "segment twice", "store gone", "store file"],
)  # fmt: skip
@pytest.mark.failure("damaged state folder")
def test_a_damaged_state_folder_is_prepared_again(what: str, service: Service, built: Built) -> None:
    """By somebody's hand: no power cut tells of it."""
    target = service.mount(built.bootstrap)
    read(target / "large/1")
    assert service.stop() == 0
    (folder,) = (service.state / "images").iterdir()
    (store,) = (service.state / "store").iterdir()
    match what:
        case "boot cut off":
            os.truncate(folder / "boot", 4096)
        case "record gone":
            (folder / "image.json").unlink()
        case "record noise":
            (folder / "image.json").write_bytes(b"\xff\xfe{")
        case "plan noise":
            (store / "plan").write_bytes(b"\xff" * 4096)
        case "segment twice":
            (store / "0").write_bytes(b"x")
        case "store gone" | "store file":
            shutil.rmtree(store)
            if what == "store file":
                store.touch()
        case _:
            name, how = what.split()
            path = {"record": folder / "image.json", "plan": store / "plan", "segment": store / "00003"}.get(
                name, folder / name
            )
            path.unlink(missing_ok=True)
            if how == "fifo":
                os.mkfifo(path)
            elif how == "folder":
                path.mkdir()
    service.start()
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


def test_files_missing_from_a_store(service: Service, built: Built) -> None:
    """Refused in one line that names the store, or made again; never an image with a hole."""
    target = service.mount(built.bootstrap)
    assert service.stop() == 0
    (store,) = (service.state / "store").iterdir()
    (store / "00003").unlink()
    service.start()
    try:
        service.mount(built.bootstrap, target=target)
    except RefusedError as error:
        assert store.name in error.error
        assert not mounted(target)
    else:
        compare(built.tree, target)


def test_a_complete_image_costs_no_events(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    compare(built.tree, target)
    compare(built.tree, target)  # each segment is ignored from its next event on
    for name in ("large/0", "large/5"):
        read(target / name)
    events = service.status(target)["events"]
    for number in range(8):
        read(target / f"large/{number}")
    assert service.status(target)["events"] == events


def test_segments_never_hold_more_than_was_verified(service: Service, built: Built) -> None:
    """With a blob that is damaged in the middle: each file is a prefix of what is right."""
    folder = service.work / "image"
    shutil.copytree(built.bootstrap.parent, folder)
    blob = folder / built.blob.name
    target = service.mount(folder / built.bootstrap.name)
    data = bytearray(blob.read_bytes())
    for at in range(300_000, len(data) - 100_000, 700_000):
        data[at] ^= 1
    blob.write_bytes(data)
    for number in range(8):
        read(target / f"large/{number}")
    partial = {path.name: path.read_bytes() for path in service.cache()}
    assert any(0 < len(have) < 1 << 20 for have in partial.values())
    blob.write_bytes(built.blob.read_bytes())
    compare(built.tree, target)
    for path in service.cache():
        assert path.read_bytes()[: len(partial[path.name])] == partial[path.name]


def test_modes_and_owners(service: Service, built: Built) -> None:
    """Plans and bootstraps are root's; the verifier owns segments and nothing else."""
    service.mount(built.bootstrap, prefetch=True)
    uid = 60989
    for folder in (service.state, service.run, service.state / "images", service.state / "store"):
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o077) == (0, 0), folder
    for folder in (service.state / "images").iterdir():
        assert {(p.name, p.stat().st_uid) for p in folder.iterdir()} <= {
            ("boot", 0),
            ("boot.sha256", 0),
            ("image.json", 0),
            ("epoch", 0),
        }
    for store in (service.state / "store").iterdir():
        assert store.stat().st_uid == 0
        for path in store.iterdir():
            assert path.stat().st_uid == (uid if path.name.isdecimal() else 0), path


def test_the_worker_has_no_privilege(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    read(target / "small/1")  # it is past its start
    status = Path(f"/proc/{service.worker}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == ["60987"] * 4
    assert fields["Groups"].strip() == ""
    assert fields["NoNewPrivs"] == "1"
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[name], 16) == 0, name


# --- mounts of a service before ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["run", "state"])
def test_folders_reached_through_a_symlink(
    which: str, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As /var/run is: a live mount is still found after a restart."""
    work = tmp_path_factory.mktemp("links")
    (work / "real").mkdir()
    (work / "link").symlink_to("real")
    service = make_service(FANOTIFY, start=False, work=work)
    if which != "state":
        service.run = work / "link" / "run"
    if which != "run":
        service.state = work / "link" / "state"
    service.start()
    target = service.mount(built.bootstrap)
    before = mounted(work)
    service.kill_all()
    service.start()
    assert len(service.events("serving again")) == 1
    assert mounted(work) == before
    compare(built.tree, target)
    service.umount(target)
    assert service.stop() == 0
    assert not mounted(work)


def test_rubbish_in_the_run_folder(service: Service, built: Built) -> None:
    """Folders of mounts that cannot be understood: cleaned up, and said in the log; the good one is served."""
    target = service.mount(built.bootstrap)
    service.kill_all()
    mounts = service.run / "mounts"
    unknown = {"image": "0" * 32, "given": {"image": "/b"}, "target": "/t", "prefetch": True}
    for name, content in {
        "7": None, "8": b"", "9": b"{", "10": b"\xff", "11": b'{"image":"x"}', "12": b'{"x":' + b"[" * 100_000,
        "13": json.dumps(unknown).encode(),
    }.items():  # fmt: skip
        (mounts / name / "through").mkdir(parents=True)
        if content is not None:
            (mounts / name / "mount.json").write_bytes(content)
    for name, place in {"14": os.mkfifo, "15": os.mkdir, "no number": os.mkfifo, "\udcff\n": os.mkfifo}.items():
        (mounts / name / "through").mkdir(parents=True)
        place(mounts / name / "mount.json")
    (mounts / "16").touch()
    os.mkfifo(mounts / "17")
    service.start()
    assert len(service.events("serving again")) == 1
    assert len(service.events("a mount of the service before cannot be served")) == 13
    # What is no folder of a mount is left alone.
    assert sorted(path.name for path in mounts.iterdir()) == ["0", "15", "16", "17"]
    compare(built.tree, target)


@pytest.mark.failure("blob truncated, removed")
def test_a_live_mount_whose_blob_is_gone(service: Service, built: Built) -> None:
    """What is cached is served; what is not is EIO, and the log names the blob."""
    folder = service.work / "image"
    shutil.copytree(built.bootstrap.parent, folder)
    target = service.mount(folder / built.bootstrap.name)
    right = read(target / "large/0")
    service.kill_all()
    (folder / built.blob.name).unlink()
    service.start()
    assert read(target / "large/0") == right
    assert read(target / "large/7") == {"error": "EIO"}
    assert built.blob.name in service.log_text()


def test_a_mount_that_the_kernel_refuses_harms_nothing(service: Service, built: Built) -> None:
    """Mountpoints that vanish in the middle: an error each, the cache of others stays whole."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    before = {path: path.stat().st_size for path in service.cache()}
    for number in range(5):
        gone = service.work / f"gone{number}"
        gone.mkdir()
        fd = os.open(gone, os.O_RDONLY)
        gone.rmdir()
        with pytest.raises(RefusedError):
            service.mount(built.bootstrap, target=Path(f"/proc/{os.getpid()}/fd/{fd}"))
        os.close(fd)
    assert {path: path.stat().st_size for path in service.cache()} == before
    wait_for("nothing is left of them", lambda: len(list((service.run / "mounts").iterdir())) == 1)
    compare(built.tree, target)


def test_a_store_removed_under_a_live_mount(service: Service, built: Built, nydus_images: Path) -> None:
    """By somebody who wanted room: EIO for what was not fetched, the service and other images live on."""
    other = service.mount(nydus_images / "plain" / "boot", nydus_images / "plain" / "blobs")
    target = service.mount(built.bootstrap)
    right = read(target / "large/0")
    for store in (service.state / "store").iterdir():
        if len(list(store.iterdir())) > 15:
            shutil.rmtree(store)
    for _ in range(2):
        assert read(target / "large/0") == right  # the kernel has it open
        assert read(target / "large/7") == {"error": "EIO"}
        service.kill_worker()
    compare_expected(nydus_images / "expected.json", other)
    assert service.status()["worker"]["restarts"] == 2
    service.umount(target)
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


def test_damaged_copies_of_other_mounts_are_in_nobodys_way(service: Service, built: Built) -> None:
    """However many there are, and though all share one store."""
    wrong = bytearray(built.blob.read_bytes())
    wrong[: len(wrong) // 2] = bytes(len(wrong) // 2)

    def mount_wrong(number: int) -> Path:
        folder = service.work / f"wrong{number}"
        folder.mkdir()
        shutil.copy(built.bootstrap, folder)
        (folder / built.blob.name).write_bytes(wrong)
        return service.mount(folder / built.bootstrap.name)

    for number in range(9):
        mount_wrong(number)
    target = service.mount(built.bootstrap)
    compare(built.tree, target)


@pytest.mark.parametrize("kill", [True, False], ids=["opened before", "opened after"])
@pytest.mark.failure("plan of a mounted image damaged")
def test_a_plan_that_is_damaged_while_it_is_mounted(
    kill: bool, service: Service, built: Built, nydus_images: Path
) -> None:
    """Who needs it gets EIO; others do not notice."""
    target = service.mount(built.bootstrap)
    (plan,) = (service.state / "store").glob("*/plan")
    other = service.mount(nydus_images / "plain/boot", nydus_images / "plain/blobs")
    os.truncate(plan, 50 if kill else plan.stat().st_size // 2)
    if kill:
        service.kill_verifier()
        wait_for("there is another one", lambda: service.status()["verifier"]["restarts"] == 1)
        assert read(target / "large/0") == {"error": "EIO"}
    else:
        assert {"error": "EIO"} in [read(target / f"large/{number}") for number in range(8)]
    compare_expected(nydus_images / "expected.json", other)
    assert service.events("segment not filled")
    service.kill_worker()
    wait_for("there is another one", lambda: service.status()["worker"]["restarts"] > kill)
    service.umount(other)
    other = service.mount(nydus_images / "lz4/boot", nydus_images / "lz4/blobs")
    compare_expected(nydus_images / "expected.json", other)
    status = service.status()
    assert (status["verifier"]["restarts"], status["worker"]["restarts"]) == (kill, 1 + kill)
    service.umount(target)
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)
