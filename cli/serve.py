"""``nydus-erofs serve``"""

from __future__ import annotations

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
    from ..fscache import config, keeper, log, notify

    require_root("the service")
    settings = config.load(config_file) if config_file else config.Config()
    settings.state_dir = state_dir or settings.state_dir
    settings.run_dir = run_dir or settings.run_dir
    log.configure(log_level)
    keeper.serve(config.check(settings), on_ready=lambda: notify.notify("READY=1"))
