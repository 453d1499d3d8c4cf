"""``nydus-erofs cache``"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from ..erofs.errors import ConfigError, CorruptError, NydusErofsError, ServiceError
from ..fscache.client import NONSENSE, not_understood, request
from ..fscache.config.defaults import control_socket
from . import options
from .exits import require_root
from .output import to_json
from .units import size_text

_LOOK_SECONDS, _LINE_SECONDS = 0.2, 5.0
_MIB = 1 << 20


@click.group(short_help="Look after the cache: verify what it holds.", no_args_is_help=False)
def command() -> None:
    """Look after the cache of a running service."""


@command.command("verify")
@click.argument("image", required=False, type=click.Path())
@click.option("--all", "everything", is_flag=True, help="Verify all that is kept, mounted or not.")
@click.option("--repair", is_flag=True, help="Fetch again what is wrong; of images not mounted, when it is read.")
@click.option(
    "--rate",
    type=click.IntRange(1, 1 << 20),
    default=64,
    show_default=True,
    metavar="MIB",
    help="MiB to read a second.",
)
@options.run_dir_option
@options.json_output
def verify(image: str | None, everything: bool, repair: bool, rate: int, run_dir: str, as_json: bool) -> None:
    """Compare every byte in the cache with the digests of its image again, while it is in use.

    IMAGE is a mountpoint, or an image as it was mounted. The exit code is 0 only if nothing is wrong or
    all was repaired. Ctrl-C ends it; what was repaired stays repaired.
    """
    require_root("verifying the cache")
    if (image is None) != everything:
        raise ConfigError("name an image, or give --all", hint="see nydus-erofs cache verify --help")
    socket = control_socket(run_dir)
    from .ask import named

    asked = {"image": named(image)[0] if image else "", "repair": repair, "rate": rate * _MIB}
    try:
        answer = _verified(socket, asked, quiet=as_json)
        text = to_json(answer) if as_json else "\n".join(_report(answer))
        left, finished = answer["damaged"] - answer["repaired"], answer["finished"]
    except NONSENSE:
        raise not_understood() from None
    click.echo(text)
    sys.stdout.flush()
    if left:
        raise _DamagedError(
            f"{_count(left, 'place')} in the cache {'is' if left == 1 else 'are'} wrong",
            hint="the report says what is left to do" if repair else "have them fetched again with --repair",
        )
    if not finished:
        raise ServiceError("the cache was not verified to its end", hint="somebody ended that; the log tells")


def _verified(socket: str, asked: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """What came of it, once it is over; ended when this is interrupted."""
    answer = request(socket, "scrub", **asked)
    run = answer["run"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with _shown(quiet=quiet) as show:
            while answer["running"]:
                show(answer)
                time.sleep(_LOOK_SECONDS)
                answer = request(socket, "scrubbing", run=run)
    except BaseException:
        with suppress(NydusErofsError, OSError):  # there may be nothing to end any more
            request(socket, "scrubbing", run=run, stop=True)
        raise
    return answer


def _end(number: int, _: object) -> NoReturn:
    """A signal that ends this ends what it began."""
    sys.exit(128 + number)


class _DamagedError(CorruptError):
    """Something is wrong, and still is."""


def _report(answer: dict[str, Any]) -> Iterator[str]:
    for damage in answer["damages"]:
        where = ", ".join(damage["mounted"]) or "not mounted"
        what = f"segment {damage['segment']} from byte {damage['byte']} on" if damage["segment"] >= 0 else "the store"
        name = f"store {damage['store'][:12]} ({where}): {what}" if damage["store"] else f"image ({where})"
        state = "repaired" if damage["repaired"] else "wrong"
        yield ": ".join(filter(None, (name, state, damage["error"])))
    more = answer["damaged"] - len(answer["damages"])
    if more:
        yield f"and {more} more"
    line = f"{_count(answer['stores_done'], 'store')} verified, {size_text(answer['bytes'])}"
    if answer["bytes_unknown"]:
        line += f" ({size_text(answer['bytes_unknown'])} without a digest)"
    if answer["skipped"]:
        line += f", {answer['skipped']} skipped (see docs/serving.md)"
    if answer["bootstraps"]:
        line += f", {_count(answer['bootstraps'], 'bootstrap')}"
    yield f"{line}; {answer['damaged']} wrong, {answer['repaired']} repaired"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """How far it is, on standard error: one line that changes on a terminal, now and then a line elsewhere."""
    terminal, last = sys.stderr.isatty(), [time.monotonic()]

    def show(answer: dict[str, Any]) -> None:
        now = time.monotonic()
        if quiet or (not terminal and now - last[0] < _LINE_SECONDS):
            return
        last[0] = now
        stores = f"store {answer['stores_done']} of {answer['stores']}"
        text = f"{stores}, {size_text(answer['bytes'])}, {answer['damaged']} wrong"
        click.echo(f"\r\x1b[K{text}" if terminal else text, err=True, nl=not terminal)

    try:
        yield show
    finally:
        if terminal and not quiet:
            click.echo("\r\x1b[K", err=True, nl=False)
