"""``nydus-erofs doctor``"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..erofs.errors import KernelError, ServiceError
from ..fscache.config.defaults import DEFAULT_STATE
from . import options

if TYPE_CHECKING:
    from ..fscache.doctor.checks import Check

DEVICE = "/dev/cachefiles"
_VERDICTS = {True: "works", False: "does not work", None: "may work"}
_CONFIGURATIONS = ("/proc/config.gz", "/boot/config-{release}", "/lib/modules/{release}/config")
# What each engine needs of the kernel's configuration, which anybody may read.
_NEEDED = {
    "fanotify": ("CONFIG_EROFS_FS_BACKED_BY_FILE", "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"),
    "cachefiles": ("CONFIG_EROFS_FS_ONDEMAND", "CONFIG_CACHEFILES_ONDEMAND"),
}


@click.command(short_help="Tell what this host can do, and what to change.")
@options.state_dir_option
@options.json_output
def command(state_dir: str, as_json: bool) -> None:
    """Try what the service needs from this host, on a tiny image, and say what is missing and how to fix it.

    Without root nothing is tried: what can be seen is told, and what cannot. The exit code is 0 when an engine works
    here, 8 when none does, 9 when only root can tell.
    """
    from ..fscache.doctor.limits import limits

    existing = os.path.abspath(state_dir or DEFAULT_STATE)
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    tried = os.geteuid() == 0
    engines, bounds = _try(existing) if tried else _look(), limits(existing)
    works = {name: _verdict(checks, tried) for name, checks in engines.items()}
    sandbox = _sandbox() if tried else []
    release = os.uname().release
    if as_json:
        report = {
            name: {"works": works[name], "tried": tried, "checks": _records(checks)}
            for name, checks in engines.items()
        }
        confined = {"tried": tried, "checks": _records(sandbox)}
        answer = {"kernel": release, "cache": existing, "engines": report, "sandbox": confined}
        click.echo(json.dumps({**answer, "limits": _records(bounds)}, indent=2))
    else:
        click.echo(f"kernel {release}, cache on {existing}")
        for name, checks in engines.items():
            _print(f"{name} engine", _VERDICTS[works[name]], checks)
            if works[name] is None:
                click.echo("  ?     not tried: mounting and reading a tiny image needs root")
        if tried:
            complete = all(check.ok for check in sandbox)
            _print("sandbox", "complete" if complete else "weaker than it could be; the service works", sandbox)
        click.echo("limits")
        _print_all(bounds)
        if not any(works.values()):
            click.echo("no engine works here" if None not in works.values() else "run it as root to know")
    if any(works.values()):
        return
    sys.exit(ServiceError.exit_code if None in works.values() else KernelError.exit_code)


def _try(directory: str) -> dict[str, list[Check]]:
    """Checks of each engine, the first that failed as the last."""
    from ..fscache.doctor import cachefiles, fanotify

    engines = {"fanotify": fanotify.fanotify_engine(directory), "cachefiles": []}
    if os.path.exists(DEVICE):
        uname = os.uname()
        engines["cachefiles"].append(cachefiles.kernel_floor(uname.release, uname.version))
    engines["cachefiles"] += cachefiles.cachefiles_engine(directory)
    return engines


def _sandbox() -> list[Check]:
    from ..fscache.doctor.sandbox import sandbox

    return sandbox()


def _look() -> dict[str, list[Check]]:
    """Checks of each engine that need no root."""
    from ..fscache.doctor.checks import Check

    configuration = _configuration()
    if configuration is None:
        return {name: [] for name in _NEEDED}
    engines = {}
    for name, needed in _NEEDED.items():
        missing = [option for option in needed if option not in configuration]
        detail = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(needed)}"
        fix = "use a kernel that is built with what is missing" if missing else ""
        engines[name] = [Check("kernel configuration", not missing, detail, fix)]
    return engines


def _configuration() -> set[str] | None:
    """What the running kernel was built with; None where it is not told."""
    for path in _CONFIGURATIONS:
        try:
            with open(path.format(release=os.uname().release), "rb") as file:
                data = file.read()
        except OSError:
            continue
        text = (gzip.decompress(data) if path.endswith(".gz") else data).decode(errors="replace")
        return set(re.findall(r"^(CONFIG_\w+)=[ym]$", text, re.MULTILINE))
    return None


def _verdict(checks: Sequence[Check], tried: bool) -> bool | None:
    """Whether an engine works; None if nothing speaks against it, and it was not tried."""
    return all(check.ok for check in checks) and (tried or None)


def _print(what: str, verdict: str, checks: Sequence[Check]) -> None:
    click.echo(f"{what}: {verdict}")
    _print_all(checks)


def _print_all(checks: Sequence[Check]) -> None:
    for check in checks:
        click.echo(f"  {check.state:4}  {check.name}: {check.detail}")
        if check.fix:
            click.echo(f"        fix: {check.fix}")


def _records(checks: Sequence[Check]) -> list[dict[str, object]]:
    return [{**check._asdict(), "state": check.state} for check in checks]
