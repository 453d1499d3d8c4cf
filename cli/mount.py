"""``nydus-erofs mount``"""

from __future__ import annotations

import click

from . import ask, options


@click.command(short_help="Mount an image with the kernel's EROFS driver.")
@click.argument("image", type=click.Path())
@click.argument("mountpoint", type=click.Path())
@click.option("--blob-dir", "blob_dirs", multiple=True, type=click.Path(), help="Folder of the blobs (repeatable).")
@click.option(
    "--prefetch/--no-prefetch", default=None, help="Fetch everything in the background, or only what is read."
)
@options.run_dir_option
@options.state_dir_option
def command(
    image: str, mountpoint: str, blob_dirs: tuple[str, ...], prefetch: bool | None, run_dir: str, state_dir: str
) -> None:
    """Mount IMAGE (a bootstrap, NAME.meta) on MOUNTPOINT.

    Its blobs are looked for in --blob-dir and beside the bootstrap. Without a running service one is started.
    """
    ask.mount_image(image, mountpoint, blob_dirs=blob_dirs, prefetch=prefetch, run_dir=run_dir, state_dir=state_dir)
