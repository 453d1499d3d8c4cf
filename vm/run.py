"""``vm/run``: one command, or a shell, in a guest."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import disk
from .kernels import KERNELS
from .machine import Machine, run
from .ports import NO_STATUS
from .prepare import prepare
from .process import VmError, say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vm/run",
        usage="vm/run [OPTION...] KERNEL [-- COMMAND...]",
        description="Run one command as root in a guest with another kernel; without one, a shell.",
        epilog="Exit code: the command's; 124 the time limit passed; 125 the guest ended without one or "
        "could not be started; 137 --reset-after pulled the plug.",
    )
    parser.add_argument("kernel", metavar="KERNEL", help=f"one of {', '.join(KERNELS)}")
    parser.add_argument("--timeout", type=float, metavar="S", help="wall-clock limit (600; none for a shell)")
    parser.add_argument("--memory", type=int, default=1536, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--disk", type=Path, metavar="FILE", help="keep the scratch disk in FILE")
    parser.add_argument("--disk-size", type=int, default=2048, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--disk-fs", choices=disk.FILESYSTEMS, default="ext4", help="(%(default)s)")
    parser.add_argument("--share", type=Path, metavar="DIR", help="a folder of the host, writable, at /share")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the command")
    parser.add_argument("--reset-after", type=float, metavar="S", help="pull the plug S after it started")
    parser.add_argument("--stock", action="store_true", help="without the rebuilt modules")
    parser.add_argument("--console", type=Path, metavar="FILE", help="keep the kernel's log in FILE")
    parser.add_argument("--times", action="store_true", help="report boot and total seconds at the end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    command = words[split + 1 :]
    options = _parser().parse_args(words[:split])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up on the way out
    try:
        machine = Machine(
            kernel=options.kernel,
            prepared=prepare(options.kernel),
            memory=options.memory,
            cpus=options.cpus,
            timeout=options.timeout or (600 if command else None),
            disk=options.disk and options.disk.resolve(),
            disk_size=options.disk_size,
            disk_fs=options.disk_fs,
            share=options.share and options.share.resolve(strict=True),
            reset_after=options.reset_after,
            stock=options.stock,
            console=options.console,
            environment=dict(pair.partition("=")[::2] for pair in options.env),
        )
        outcome = run(machine, command)
    except (VmError, OSError) as error:
        print(f"vm/run: {error}", file=sys.stderr)
        return NO_STATUS
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if outcome.reason:
        say(f"{options.kernel}: {outcome.reason}")
    if options.times:
        say(f"{options.kernel}: booted in {outcome.boot:.1f} s of guest time, {outcome.seconds:.1f} s in all")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
