"""The users of the processes can be chosen, and chosen anew: what is cached stays usable."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nydus_erofs.fscache.config.service import Config
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.processes import look_at
from tests.kit.reading import compare, read
from tests.kit.service import MakeService
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.root
OTHER = 61001


def owners(state: Path) -> set[int]:
    return {path.stat().st_uid for path in state.glob("store/*/[0-9]*")}


def test_a_cache_that_another_user_has_filled(make_service: MakeService, built: Built) -> None:
    service = make_service(FANOTIFY)
    target = service.mount(built.bootstrap)
    read(target / "large/1")
    assert owners(service.state) == {Config().verifier_uid}
    assert service.stop() == 0
    service.config["verifier_uid"] = OTHER
    service.start()
    target = service.mount(built.bootstrap)
    compare(built.tree, target)
    assert owners(service.state) == {OTHER}
    assert look_at(service.verifier).status["Uid"].split()[0] == str(OTHER)


def test_what_the_workers_user_could_have_written_is_verified_again(make_service: MakeService, built: Built) -> None:
    """An older release, or another configuration, gave it the segments; nothing else tells who has written them."""
    service = make_service(FANOTIFY)
    service.complete(service.mount(built.bootstrap, prefetch=True))
    assert service.stop() == 0
    for number, path in enumerate(service.cache()):
        os.chown(path, Config().worker_uid, Config().worker_uid)
        if number % 3 == 0:
            path.write_bytes(os.urandom(path.stat().st_size))
        if number % 3 == 1:
            os.truncate(path, 0)
    service.start()
    target = service.mount(built.bootstrap)
    compare(built.tree, target)
    assert owners(service.state) == {Config().verifier_uid}


def test_mounts_that_stayed(make_service: MakeService, built: Built) -> None:
    service = make_service(FANOTIFY)
    target = service.mount(built.bootstrap)
    read(target / "large/1")
    service.kill_all()
    service.config["verifier_uid"] = OTHER
    service.start()
    compare(built.tree, target)
    assert owners(service.state) == {OTHER}


def test_neither_of_the_two_reaches_the_other(make_service: MakeService) -> None:
    """A process of prepare's user can neither limit nor signal the worker."""
    worker = make_service(FANOTIFY).worker
    wait_for("the worker is past its start", lambda: look_at(worker).status["NoNewPrivs"] == "1")
    pid = os.fork()
    if not pid:
        uid = Config().prepare_uid
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        refused = 0
        attempts: list[Callable[[], None]] = [
            lambda: os.kill(worker, signal.SIGSTOP),
            lambda: os.sched_setaffinity(worker, {0}),
        ]
        for attempt in attempts:
            try:
                attempt()
            except PermissionError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
