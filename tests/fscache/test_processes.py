"""The table of processes against what is running, and against the page that is printed from it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.keeper.children.spawn import spawn
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.processes import KEEPER, PREPARE, TABLE, VERIFIER, WORKER, Process
from nydus_erofs.fscache.proto import prepare as proto
from nydus_erofs.fscache.proto.worker import Limits
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.processes import Seen, look_at
from tests.kit.reading import read
from tests.kit.service import MakeService, Service
from tests.kit.waiting import wait_for

ROOT = Path(__file__).parents[2]
LIMITS = {"AS": "address space", "NPROC": "processes", "FSIZE": "file size", "NOFILE": "open files",
          "CORE": "core file size"}  # fmt: skip
SECRETS = {"AWS_SECRET_ACCESS_KEY": "topsecret", "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": "/evil",
           "SECRET": "secret", "HTTPS_PROXY": "http://localhost:1"}  # fmt: skip


def test_the_page_is_printed_from_the_table() -> None:
    printed = subprocess.run(
        [sys.executable, "scripts/processes_page.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert (ROOT / "docs/processes.md").read_text() == printed, "run scripts/processes_page.py > docs/processes.md"


def test_each_process_is_named_once() -> None:
    assert len({process.name for process in TABLE}) == len(TABLE)


@pytest.fixture
def service(cache_disk: Path, make_service: MakeService) -> Service:
    """With secrets in its environment, and a descriptor that its starter left open."""
    service = make_service(FANOTIFY, start=False)
    left, end = os.pipe()
    os.set_inheritable(left, True)
    try:
        service.spawn(pass_fds=(left,), **SECRETS)
    finally:
        os.close(left)
        os.close(end)
    wait_for("it answers", service.answers)
    return service


def compare(seen: Seen, process: Process, parent: int, count: int) -> None:
    """What must hold of any process that gives up what it has."""
    uid = getattr(Config(), process.user)
    assert seen.status["Uid"] == seen.status["Gid"] == f"{uid} {uid} {uid} {uid}"
    assert seen.status["Groups"] == ""
    assert {seen.status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert seen.status["NoNewPrivs"] == "1"
    assert seen.status["Seccomp"] == "2"  # a filter
    assert seen.status["Seccomp"] == ("2" if process.filtered else "0")
    assert seen.status["Umask"] == f"{process.umask:04o}"
    assert seen.oom_score == process.oom_score
    assert seen.parent == parent
    assert seen.terminal == 0
    for limit in process.limits:
        soft, hard = seen.limits[LIMITS[limit.kind]]
        assert soft == hard
        assert int(hard) == limit.most(count) or (limit.kind == "NOFILE" and int(hard) < limit.most(count))
    own = look_at(os.getpid()).namespaces
    assert {name for name, link in seen.namespaces.items() if link != own[name]} == set(process.namespaces)
    assert seen.environment.keys() <= process.variables(seen.environment).keys()
    assert [seen.descriptors.pop(number).split(":")[0] for number in range(4)] == [
        "/dev/null", "/dev/null", "pipe", "socket",
    ]  # fmt: skip


@pytest.mark.root
def test_the_worker(service: Service, built: Built) -> None:
    read(service.mount(built.bootstrap) / "small/1")  # it is past its start
    pid, keeper = service.worker, service.keeper.pid
    seen = look_at(pid)
    compare(seen, WORKER, keeper, Limits(Config().threads, 1, 1, 0).all_threads)
    assert seen.session == pid
    # Of the two that come from the verifier, one is a socket and one is memory.
    given = (str(service.state / "store"), str(built.bootstrap.parent), "socket:", "/memfd:chunks")
    assert all(place.startswith(given) for place in seen.descriptors.values()), seen.descriptors
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
    shown = seen.environment
    assert shown["AWS_SECRET_ACCESS_KEY"] == "topsecret"
    assert shown["AWS_EC2_METADATA_DISABLED"] == "true"
    assert shown["HTTPS_PROXY"] == SECRETS["HTTPS_PROXY"]
    assert not {"PYTHONPATH", "SECRET", "PATH"} & shown.keys()


@pytest.mark.root
def test_the_verifier(service: Service, built: Built) -> None:
    read(service.mount(built.bootstrap) / "small/1")  # it is past its start
    pid, keeper = service.verifier, service.keeper.pid
    seen = look_at(pid)
    compare(seen, VERIFIER, keeper, Limits(Config().threads, 1, 1, 0).most_threads)
    assert seen.session == pid
    assert seen.environment == {}
    given = (str(service.state / "store"), "socket:", "/memfd:chunks")
    assert all(place.startswith(given) for place in seen.descriptors.values()), seen.descriptors
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert not {what for what in ("zstd", "lz4", "_ssl", "/libssl") if what in maps}


@pytest.mark.root
def test_a_terminal_of_roots_is_out_of_reach(make_service: MakeService) -> None:
    """Whoever holds a terminal can type into it. Started by a person the keeper has one; the worker has not."""
    service = make_service(FANOTIFY, start=False)
    ours, theirs = os.openpty()
    with Fd(ours), Fd(theirs):
        service.spawn_on_terminal(theirs)
        wait_for("it answers", service.answers)
        worker = service.worker
        wait_for("the worker is past its start", lambda: look_at(worker).status["NoNewPrivs"] == "1")
        assert look_at(service.keeper.pid).terminal != 0
        seen = look_at(worker)
        assert seen.terminal == 0
        assert not [place for place in seen.descriptors.values() if place.startswith(("/dev/pts", "/dev/tty"))]
        assert service.stop() == 0


@pytest.mark.root
def test_the_keeper(service: Service, built: Built) -> None:
    service.mount(built.bootstrap)
    seen = look_at(service.keeper.pid)
    assert seen.status["Uid"] == "0 0 0 0"
    assert seen.status["Umask"] == f"{KEEPER.umask:04o}"
    assert seen.status["Threads"] == "1"
    maps = Path(f"/proc/{service.keeper.pid}/maps").read_text()
    loaded = {line.split()[-1].rpartition("/")[2] for line in maps.splitlines() if ".so" in line}
    for what in ("zstd", "lz4", "blake3"):
        assert not {name for name in loaded if what in name.lower()}, loaded


LOADED = """
import json, os, signal, sys
from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.keeper import log, service
def ready():
    print(json.dumps(sorted(sys.modules)))
    os.kill(os.getpid(), signal.SIGTERM)
log.configure()
service.serve(Config(state_dir=sys.argv[1] + "/state", run_dir=sys.argv[1] + "/run"), on_ready=ready)
"""


@pytest.mark.root
def test_what_the_keeper_loads(cache_disk: Path, tmp_path: Path) -> None:
    """Nothing that decodes, nothing of another process, nothing that talks to a network, nothing that slows forks."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    loaded: list[str] = json.loads(done.stdout)
    rooms = {name.split(".")[2] for name in loaded if name.startswith("nydus_erofs.fscache.")}
    assert not rooms & {"verifier", "worker", "prepare", "push", "backend"}
    assert {name.split(".")[0] for name in loaded}.isdisjoint(
        {"zstandard", "lz4", "blake3", "urllib3", "boto3", "botocore", "http", "requests", "random"}
    )
    known = {"errors", "ids", "merkle", "ondisk", "rafs", "record", "segments", "source", "rules", "blobmeta"}
    assert {name.split(".")[2] for name in loaded if name.startswith("nydus_erofs.erofs.")} <= known


@pytest.fixture
def prepared(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Seen, int]]:
    """One that waits for bytes of a blob, and the size of its bootstrap."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    async def ask() -> Any:
        pid, sock = spawn(PREPARE, Config().prepare_uid)
        with sock, Fd(os.open(built.bootstrap, os.O_RDONLY)) as boot, Fd(os.open(tmp_path, os.O_RDONLY)) as folder:
            channel.send(sock, proto.encode(proto.Prepare(1 << 20, True)), [boot, folder])
            sock.settimeout(30)
            packet, _ = await asyncio.get_running_loop().run_in_executor(None, channel.receive, sock, 1 << 16)
            assert isinstance(proto.decode_for_keeper(packet), proto.NeedBytes)
            seen = look_at(pid)
            assert seen.session == pid
            return seen, os.fstat(boot.fd).st_size

    yield asyncio.run(ask())


@pytest.mark.root
def test_prepare(prepared: tuple[Seen, int]) -> None:
    seen, size = prepared
    compare(seen, PREPARE, os.getpid(), size)
    assert seen.environment == {}
    assert len(seen.descriptors) <= 3  # the bootstrap, its folder, and how proc is looked at
