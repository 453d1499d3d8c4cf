"""The ``nydus-erofs`` command: finds the verb, runs it, and turns errors into one line and an exit code.

Each verb is a module of its own under ``cli/`` with a function ``command`` (a click command); it is
imported only when asked for, so that ``mount`` does not pay for what ``build`` needs.
"""

from __future__ import annotations

import importlib

import click

# verb -> (module, what `nydus-erofs --help` says of it)
VERBS = {
    "build": ("build", "Build a RAFS v6 image from a directory."),
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


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """Build container images for the kernel's own EROFS driver and serve them as they are read."""


def run() -> int:
    """Run the command line of this process; the exit code."""
    try:
        return cli.main(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
