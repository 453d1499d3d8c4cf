"""doctor tells how much of the sandbox there is, and never that the service would not work for lack of it."""

from __future__ import annotations

import pytest

from nydus_erofs.fscache.doctor import sandbox
from nydus_erofs.fscache.kernel import landlock


@pytest.mark.root
def test_here() -> None:
    """Whatever this kernel has: the trial comes to its end, and says what it found."""
    checks = sandbox.sandbox()
    assert all(check.detail for check in checks)
    assert "ended before" not in checks[0].detail
    if landlock.version():
        assert "landlock" not in {check.name for check in checks}


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ["net namespace: Operation not permitted", "landlock: this kernel has none"]
    monkeypatch.setattr(sandbox, "_missing", lambda: missing)
    first, second = sandbox.sandbox()
    assert (first.name, first.ok, first.detail) == ("net namespace", False, "Operation not permitted")
    assert (second.name, second.ok) == ("landlock", False)
    assert "CONFIG_SECURITY_LANDLOCK" in second.fix
