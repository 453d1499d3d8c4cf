"""``nydus-erofs status``"""

from __future__ import annotations

import click

from . import ask, options


@click.command(short_help="Show each mounted image: bytes fetched, events, stalls.")
@options.run_dir_option
@options.json_output
def command(run_dir: str, as_json: bool) -> None:
    """Show what the service serves, how much of it is here, and whether readers wait."""
    ask.show_status(run_dir=run_dir, as_json=as_json)
