"""How much of the sandbox of worker and prepare this kernel has: tried by a child that gives up what prepare does."""

from __future__ import annotations

import json
import os

from ..config.service import Config
from ..kernel import landlock, seccomp
from ..kernel.confine import confine
from ..kernel.fd import Fd
from ..kernel.syscall_numbers import NUMBERS
from ..processes import PREPARE
from .checks import Check

_FIXES = {
    "landlock": "use a kernel with CONFIG_SECURITY_LANDLOCK, and 'landlock' among its lsm= (Linux 5.13 or later)",
    "seccomp": "use a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
}
_ANY_CALL = seccomp.Profile(frozenset(NUMBERS), {}, {})


def sandbox() -> list[Check]:
    """What there is, and what is missing: the service works without, and less stands between it and a hostile image.
    Needs root."""
    missing = _missing()
    if not missing:
        version = landlock.version()
        return [Check("confinement", True, f"namespaces, Landlock (version {version}), system calls by list")]
    parts = [one.partition(": ") for one in missing]
    return [Check(what, False, why, _FIXES.get(what, "")) for what, _, why in parts]


def _missing() -> list[str]:
    """What ``confine`` says in a child."""
    said, end = map(Fd, os.pipe())
    with said:
        pid = os.fork()
        if not pid:
            try:
                missing = confine(PREPARE, Config().prepare_uid, [end.fd], [], _ANY_CALL, 0)
                os.write(end.fd, json.dumps(missing).encode())
            finally:
                os._exit(0)
        end.close()
        with os.fdopen(said.steal(), "rb") as file:
            answer = file.read()
    os.waitpid(pid, 0)
    found: list[str] = json.loads(answer) if answer else ["confinement: the trial ended before its end"]
    return found
