"""``nydus-erofs umount``"""

from __future__ import annotations

import click

from . import ask, options


@click.command(short_help="Unmount an image.")
@click.argument("mountpoint", type=click.Path())
@options.run_dir_option
def command(mountpoint: str, run_dir: str) -> None:
    """Unmount the image mounted on MOUNTPOINT. A busy mount is reported and left as it is."""
    ask.umount_image(mountpoint, run_dir=run_dir)
