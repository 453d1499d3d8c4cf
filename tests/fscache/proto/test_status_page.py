"""What ``status`` tells is what its page says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from nydus_erofs.fscache.proto.control import BackendStatus, MountStatus, ProcessStatus, ServiceStatus

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.mark.parametrize("record", [ServiceStatus, ProcessStatus, MountStatus, BackendStatus])
def test_every_field_is_explained(record: type[msgspec.Struct]) -> None:
    explained = set(re.findall(r"`(\w+)`", _section()))
    assert set(record.__struct_fields__) <= explained


def test_nothing_is_explained_that_is_not_there() -> None:
    records = (ServiceStatus, ProcessStatus, MountStatus, BackendStatus)
    fields = {name for record in records for name in record.__struct_fields__}
    rows = [line.split("|")[1] for line in _section().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= fields


def _section() -> str:
    if not PAGE.exists():
        pytest.skip("the documents are not here: this runs in a checkout")
    return PAGE.read_text().partition("## What `status` tells")[2].partition("\n## ")[0]
