"""Somebody runs his own code in a worker. What readers see is right all the same, then and ever after."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kit.command import CLI, PYTHON
from tests.kit.engines import Engine
from tests.kit.images import Built
from tests.kit.reading import compare, read
from tests.kit.service import MakeService, Service

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
EVIL = Path(__file__).parents[2] / "kit" / "evil_service.py"


@pytest.fixture
def evil(engine: Engine, make_service: MakeService, request: pytest.FixtureRequest) -> Service:
    """A service whose worker does what the test's parameter says."""
    service = make_service(engine, start=False)
    service.program = [*PYTHON, str(EVIL), request.param]
    return service.start()


def then_an_honest_one(service: Service, built: Built, target: Path) -> None:
    """With the cache that the other has left."""
    assert service.stop() == 0
    service.program = CLI
    service.start()
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


@pytest.mark.parametrize("evil", ["poison", "mad", "thief"], indirect=True)
def test_other_bytes_are_never_served(evil: Service, built: Built) -> None:
    target = evil.mount(built.bootstrap)
    time.sleep(1)  # for what it does before anybody reads
    compare(built.tree, target)
    assert evil.status()["worker"]["restarts"] == evil.status()["verifier"]["restarts"] == 0
    then_an_honest_one(evil, built, target)


@pytest.mark.parametrize("evil", ["liar"], indirect=True)
def test_who_says_that_bytes_are_there_is_ended(evil: Service, built: Built) -> None:
    """Its readers wait for a better one, which never comes here; nobody sees bytes that are not there."""
    target = evil.mount(built.bootstrap)
    reader = evil.reader("read", target / "large/0")
    time.sleep(3)
    assert reader.poll() is None
    assert evil.status()["worker"]["restarts"] > 2
    assert evil.status()["verifier"]["restarts"] == 0
    assert [record["said"] for record in evil.events("process ended for what it said")]
    evil.keeper.kill()
    evil.keeper.wait(20)
    assert read(target / "large/1") == {"error": "EIO"} or not evil.engine.keeps_mounts
    evil.program = CLI
    evil.start()
    if not evil.engine.keeps_mounts:
        evil.mount(built.bootstrap, target=target)
    compare(built.tree, target)
