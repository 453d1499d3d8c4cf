"""``nydus-erofs doctor``"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from ..fscache.config.defaults import DEFAULT_STATE
from . import options
from .exits import require_root

if TYPE_CHECKING:
    from ..fscache.doctor.checks import Check

DEVICE = "/dev/cachefiles"


@click.command(short_help="Tell what this host can do, and what to change.")
@options.state_dir_option
@options.json_output
def command(state_dir: str, as_json: bool) -> None:
    """Try what the service needs from this host, on a tiny image, and say what is missing and how to fix it.

    The exit code is 0 when an engine works here.
    """
    require_root("doctor")
    from ..fscache.doctor import cachefiles, fanotify

    existing = os.path.abspath(state_dir or DEFAULT_STATE)
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    uname = os.uname()
    engines = {"fanotify": fanotify.fanotify_engine(existing), "cachefiles": []}
    if os.path.exists(DEVICE):
        engines["cachefiles"].append(cachefiles.kernel_floor(uname.release, uname.version))
    engines["cachefiles"] += cachefiles.cachefiles_engine(existing)
    works = {name: all(check.ok for check in checks) for name, checks in engines.items()}
    if as_json:
        report = {name: {"works": works[name], "checks": [c._asdict() for c in engines[name]]} for name in engines}
        click.echo(json.dumps({"kernel": uname.release, "cache": existing, "engines": report}, indent=2))
    else:
        click.echo(f"kernel {uname.release}, cache on {existing}")
        for name, checks in engines.items():
            _print(name, works[name], checks)
        if not any(works.values()):
            click.echo("no engine works here")
    sys.exit(0 if any(works.values()) else 8)


def _print(name: str, works: bool, checks: list[Check]) -> None:
    click.echo(f"{name} engine: {'works' if works else 'does not work'}")
    for check in checks:
        click.echo(f"  {'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        if not check.ok and check.fix:
            click.echo(f"        fix: {check.fix}")
