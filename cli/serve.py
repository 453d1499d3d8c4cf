"""``nydus-erofs serve``"""

from __future__ import annotations

import os

import click

from .exits import require_root


@click.command(short_help="Run the service.")
@click.option("--config", "config_file", type=click.Path(), help="TOML, or a nydusd JSON file.")
@click.option("--state-dir", metavar="PATH", help="State folder: prepared images and cached data.")
@click.option("--run-dir", metavar="PATH", help="Run folder: control socket and mounts.")
@click.option("--log-level", type=click.Choice(["trace", "debug", "info", "warn", "error"]), default="info")
def command(config_file: str | None, state_dir: str | None, run_dir: str | None, log_level: str) -> None:
    """Run the service in the foreground until SIGTERM or Ctrl-C.

    It unmounts its images before it ends; images in use are named, and the service stays.
    """
    from ..fscache.config.load import load
    from ..fscache.config.service import Config, check
    from ..fscache.keeper import log, notify
    from ..fscache.keeper.service import serve

    require_root("the service")

    def settings() -> Config:
        config = load(config_file) if config_file else Config()
        config.state_dir = state_dir or config.state_dir
        config.run_dir = run_dir or config.run_dir
        return check(config)

    config_file = config_file and os.path.abspath(config_file)
    log.configure(log_level)
    serve(settings(), settings if config_file else None, lambda: notify.notify("READY=1"))
