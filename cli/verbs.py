"""The ``nydus-erofs`` command: finds the verb, runs it, and turns errors into one line and an exit code.

Each verb is a module of its own under ``cli/`` with a function ``command`` (a click command); it is
imported only when asked for, so that ``mount`` does not pay for what ``build`` needs.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence

import click

from ..erofs.errors import ConfigError
from ..erofs.ids import printable

_NAME = "nydus-erofs"

# verb -> (module, what `nydus-erofs --help` says of it)
VERBS = {
    "build": ("build", "Build a RAFS v6 image from a directory."),
    "cache": ("cache", "Look after the cache: verify what it holds."),
    "check": ("check", "Check a bootstrap (and its blobs) and name every broken invariant."),
    "doctor": ("doctor", "Tell what this host can do, and what to change."),
    "inspect": ("inspect", "Show a bootstrap's superblock, tables, tree or one file's chunks."),
    "mount": ("mount", "Mount an image with the kernel's EROFS driver."),
    "push": ("push", "Publish a built image in a bucket, a registry or a folder."),
    "serve": ("serve", "Run the service."),
    "status": ("status", "Show each mounted image: bytes fetched, events, stalls."),
    "umount": ("umount", "Unmount an image."),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"{__package__}.{VERBS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from .. import __version__

        click.echo(f"nydus-erofs {__version__}")
        ctx.exit()


@click.group(
    cls=_Verbs,
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build container images for the kernel's own EROFS driver and serve them as they are read."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ConfigError.exit_code)


def run() -> int:
    """Run the command line of this process; the exit code. ConfigError for one that is wrong."""
    try:
        return cli.main(prog_name=_NAME, standalone_mode=False) or 0
    except click.ClickException as error:
        raise _in_our_form(error) from None
    except click.Abort:
        raise KeyboardInterrupt from None


def _in_our_form(error: click.ClickException) -> ConfigError:
    """One line without a capital and a full stop, and a hint."""
    similar: Sequence[str] = getattr(error, "possibilities", None) or ()
    text = error.message if similar else error.format_message()
    text = re.sub(r"\s*\n\s*", " ", text).rstrip(".")
    command = " ".join([_NAME, *(verb for verb in sys.argv[1:2] if verb in VERBS)])
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"see {command} --help"
    return ConfigError(printable(os.fsencode(text[:1].lower() + text[1:])), hint=hint)
