"""Starting a service that stays when its starter ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import click

from ..erofs.errors import ServiceError
from ..fscache.client import NoServiceError, request
from ..fscache.config.defaults import control_socket

_PATIENCE, _OTHERS_PATIENCE = 15.0, 3.0  # seconds


def start_service(run_dir: str, state_dir: str) -> None:
    """Start a service that stays, and wait until it listens."""
    run_dir, state_dir = os.path.abspath(run_dir), os.path.abspath(state_dir)
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    log_path = os.path.join(run_dir, "serve.log")
    arguments = ["serve", "--run-dir", run_dir, "--state-dir", state_dir]
    with open(log_path, "ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "nydus_erofs", *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            request(control_socket(run_dir), "status")
        except NoServiceError:
            match process.poll():
                case None:
                    pass
                case ServiceError.exit_code:
                    # Perhaps another mount started one at the same moment, which will listen soon.
                    deadline = min(deadline, time.monotonic() + _OTHERS_PATIENCE)
                case _:
                    break
            time.sleep(0.02)
        else:
            if process.poll() is None:
                what = f"pid {process.pid}, state in {state_dir}, log {log_path}"
                click.echo(f"nydus-erofs: started the service ({what})", err=True)
            return
    with open(log_path, encoding="utf-8", errors="replace") as log_text:
        log_text.seek(start)
        said = [line.strip() for line in log_text if line.startswith(("nydus-erofs:", "  hint:"))]
    raise ServiceError(
        "the service did not start" + (f": {said[0].removeprefix('nydus-erofs: ')}" if said else ""),
        hint=said[1].removeprefix("hint: ") if len(said) > 1 else f"see {log_path}",
    )
