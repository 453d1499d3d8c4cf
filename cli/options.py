"""Options that several verbs share."""

from __future__ import annotations

import click

from ..fscache.config.defaults import DEFAULT_RUN, DEFAULT_STATE

_FOLDER = click.Path(readable=False)  # root's; whoever wants to look into it says what he cannot do without

run_dir_option = click.option(
    "--run-dir", default=DEFAULT_RUN, show_default=True, type=_FOLDER, help="Run folder of the service."
)
state_dir_option = click.option(
    "--state-dir",
    default="",
    show_default=DEFAULT_STATE,
    type=_FOLDER,
    help="State folder (cache) of the service.",
)
json_output = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
