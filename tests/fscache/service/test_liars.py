"""A worker that says what cannot be true is ended, and nothing of it is believed: readers wait for an honest one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.command import PYTHON
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.lying_worker import LIES
from tests.kit.reading import compare, read, result_of
from tests.kit.service import MakeService
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
LIED_TO = Path(__file__).parents[2] / "kit" / "lied_to_service.py"


@pytest.mark.failure("worker that lies")
@pytest.mark.parametrize("kind", LIES)
def test_it_is_ended_and_not_believed(kind: str, make_service: MakeService, built: Built) -> None:
    service = make_service(FANOTIFY, start=False)
    flag = service.work / "lie"
    service.program = [*PYTHON, str(LIED_TO), str(flag), kind]
    service.start()
    target = service.mount(built.bootstrap)
    assert "error" not in read(target / "small/1")
    flag.touch()
    service.kill_worker()
    reader = service.reader("read", target / "large/0")
    wait_for("it is noticed", lambda: len(service.events("process ended for what it said")) > 1)
    assert reader.poll() is None
    assert service.answers()
    flag.unlink()
    assert result_of(reader)["length"] == (built.tree / "large/0").stat().st_size
    compare(built.tree, target)
    assert service.status(target)["failures"] == 0
    service.umount(target)
    assert service.stop() == 0
