"""Options that several verbs share."""

from __future__ import annotations

import click

from ..fscache.config.defaults import DEFAULT_RUN, DEFAULT_STATE

# The service's folders are root's: they are not looked at before it is known who asks for what.
run_dir_option = click.option(
    "--run-dir", default=DEFAULT_RUN, show_default=True, metavar="PATH", help="Run folder of the service."
)
state_dir_option = click.option(
    "--state-dir",
    default="",
    show_default=DEFAULT_STATE,
    metavar="PATH",
    help="State folder (cache) of the service.",
)
json_output = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
