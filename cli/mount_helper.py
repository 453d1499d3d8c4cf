"""``mount.nydus-erofs``: what mount(8) runs for ``mount -t nydus-erofs IMAGE MOUNTPOINT -o OPTIONS``.

mount(8) looks for it in /sbin. Its calling convention is described in mount(8), "External helpers".
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field

from ..erofs.errors import ConfigError
from ..fscache.config.defaults import DEFAULT_RUN
from .exits import end_with

_USAGE = "usage: mount.nydus-erofs IMAGE MOUNTPOINT [-sfnvr] [-o OPTIONS]"

# Generic options of mount(8) and fstab(5) that mean nothing here: images are always mounted read-only. mount(8)
# passes rw unless it was told ro, also when nobody said either.
_GENERIC = {
    "ro", "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev",
    "exec", "atime", "noatime", "relatime", "norelatime",
    "diratime", "nodiratime",
}  # fmt: skip


def parse(arguments: list[str]) -> tuple[str, str, list[str], bool]:
    """(image, mountpoint, options, fake) of the helper's command line; ConfigError for one that is not mount(8)'s."""
    names: list[str] = []
    options: list[str] = []
    fake = False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-o", "-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"{argument} needs a value", hint=_USAGE)
            if argument == "-o":
                options += [option for option in value.split(",") if option]
        elif argument.startswith("-") and argument != "-":
            fake = fake or "f" in argument
            if set(argument[1:]) - set("sfnvr"):
                raise ConfigError(f"unknown option {argument}", hint=_USAGE)
        else:
            names.append(argument)
    if len(names) != 2:
        raise ConfigError(f"an image and a mountpoint are needed, not {len(names)} names", hint=_USAGE)
    return names[0], names[1], options, fake


@dataclass
class Wanted:
    """What mount options ask for."""

    blob_dirs: list[str] = field(default_factory=list)
    backend_file: str = ""
    digest: str = ""
    prefetch: bool | None = None
    plain_http: bool = False
    insecure: bool = False
    options: list[str] = field(default_factory=list)
    run_dir: str = DEFAULT_RUN
    state_dir: str = ""


def interpret(options: list[str]) -> Wanted:
    """Read mount options; ConfigError naming one that is unknown."""
    wanted = Wanted()
    for option in options:
        name, _, value = option.partition("=")
        if name == "blob_dir" and value:
            wanted.blob_dirs.append(value)
        elif name == "backend_config" and value:
            wanted.backend_file = value
        elif name in ("digest", "run_dir", "state_dir") and value:
            setattr(wanted, name, value)
        elif option in ("plain_http", "insecure"):
            setattr(wanted, option, True)
        elif option in ("suid", "nosuid", "dev", "nodev", "noexec"):
            wanted.options.append(option)
        elif option in ("prefetch", "noprefetch"):
            wanted.prefetch = option == "prefetch"
        elif option not in _GENERIC and not option.startswith(("x-", "comment=")):
            raise ConfigError(
                f"unknown mount option {option!r}",
                hint="known: blob_dir=, backend_config=, digest=, prefetch, noprefetch, suid, dev, plain_http, "
                "insecure, run_dir=, state_dir=",
            )
    return wanted


def run(arguments: list[str]) -> int:
    """Run the helper's command line; the exit code."""
    from .ask import mount_image

    image, mountpoint, options, fake = parse(arguments)
    wanted = interpret(options)
    if not fake:
        mount_image(image, mountpoint, **asdict(wanted))
    return 0


def main() -> None:
    """Entry point of the ``mount.nydus-erofs`` script."""
    end_with(lambda: run(sys.argv[1:]))
