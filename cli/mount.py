"""``nydus-erofs mount``"""

from __future__ import annotations

import click

from . import ask, options


@click.command(short_help="Mount an image with the kernel's EROFS driver.")
@click.argument("image", type=click.Path())
@click.argument("mountpoint", type=click.Path())
@click.option("--blob-dir", "blob_dirs", multiple=True, type=click.Path(), help="Folder of the blobs (repeatable).")
@click.option(
    "--backend-config-file",
    "backend_file",
    default="",
    type=click.Path(),
    help="Where image and blobs are kept: JSON of one backend, or a nydusd configuration.",
)
@click.option("--digest", default="", help="Mount only if the image has this identity (sha256:...).")
@click.option(
    "--prefetch/--no-prefetch", default=None, help="Fetch everything in the background, or only what is read."
)
@click.option("--suid", is_flag=True, help="Let set-user-ID programs of the image work (lower layers of containers).")
@click.option("--dev", is_flag=True, help="Let device files of the image work.")
@click.option("--plain-http", is_flag=True, help="Speak HTTP without TLS to the registry.")
@click.option("--insecure", is_flag=True, help="Take any certificate of the registry.")
@options.run_dir_option
@options.state_dir_option
def command(
    image: str,
    mountpoint: str,
    blob_dirs: tuple[str, ...],
    backend_file: str,
    digest: str,
    prefetch: bool | None,
    suid: bool,
    dev: bool,
    plain_http: bool,
    insecure: bool,
    run_dir: str,
    state_dir: str,
) -> None:
    """Mount IMAGE on MOUNTPOINT: a bootstrap file, s3://BUCKET/NAME or REGISTRY/REPOSITORY:TAG.

    Blobs are looked for in --blob-dir, beside a bootstrap file, and in the backend. Without a running service one is
    started.
    """
    ask.mount_image(
        image,
        mountpoint,
        blob_dirs=blob_dirs,
        backend_file=backend_file,
        digest=digest,
        prefetch=prefetch,
        suid=suid,
        dev=dev,
        plain_http=plain_http,
        insecure=insecure,
        run_dir=run_dir,
        state_dir=state_dir,
    )
