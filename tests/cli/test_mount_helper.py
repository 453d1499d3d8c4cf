"""`mount.nydus-erofs`: what mount(8) hands to it, and what becomes of mount options."""

from __future__ import annotations

import subprocess

import pytest

from nydus_erofs.cli.mount_helper import Wanted, interpret, parse
from nydus_erofs.erofs.errors import ConfigError
from tests.kit.command import PYTHON

PROGRAM = "from nydus_erofs.cli.mount_helper import main; main()"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As mount(8) runs it."""
    command = [*PYTHON, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "options", "fake"),
    [
        (["image", "/mnt"], [], False),
        (["image", "/mnt", "-o", "ro,nosuid"], ["ro", "nosuid"], False),  # as mount(8) does it
        (["-o", "a=1", "image", "-o", "b", "/mnt"], ["a=1", "b"], False),
        (["-t", "nydus-erofs", "-N", "/proc/1/ns/mnt", "image", "/mnt"], [], False),
        (["image", "/mnt", "-n", "-s", "-v", "-r"], [], False),
        (["image", "/mnt", "-sfnv"], [], True),
        (["image", "/mnt", "-o", ",,"], [], False),
    ],
)
def test_the_command_line_of_mount(arguments: list[str], options: list[str], fake: bool) -> None:
    assert parse(arguments) == ("image", "/mnt", options, fake)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage"),
        (["image"], "usage"),
        (["image", "/mnt", "more"], "usage"),
        (["image", "/mnt", "-o"], "-o needs a value"),
        (["image", "/mnt", "-x"], "unknown option -x"),
        (["image", "/mnt", "--help"], "unknown option --help"),
    ],
)
def test_what_mount_does_not_say(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(arguments)


def test_options_of_ours() -> None:
    wanted = interpret(
        ["blob_dir=/a", "blob_dir=/b=c", "backend_config=/f", "digest=sha256:1", "run_dir=/r", "state_dir=/s"]
    )
    assert (wanted.blob_dirs, wanted.backend_file, wanted.digest) == (["/a", "/b=c"], "/f", "sha256:1")
    assert (wanted.run_dir, wanted.state_dir) == ("/r", "/s")


@pytest.mark.parametrize(("option", "prefetch"), [("prefetch", True), ("noprefetch", False), ("ro", None)])
def test_prefetching_is_asked_for_denied_or_left_to_the_service(option: str, prefetch: bool | None) -> None:
    assert interpret([option]).prefetch is prefetch


@pytest.mark.parametrize("option", ["rw", "defaults", "_netdev", "nofail", "x-systemd.automount", "comment=mine"])
def test_what_fstab_says_to_others(option: str) -> None:
    assert interpret([option]) == Wanted()


@pytest.mark.parametrize("option", ["nosuch", "blob_dir", "blob_dir=", "digest=", "run_dir", "prefetch=yes", "="])
def test_options_nobody_knows(option: str) -> None:
    with pytest.raises(ConfigError, match="unknown mount option") as caught:
        interpret([option])
    assert repr(option) in caught.value.message
    assert caught.value.hint


def test_a_dry_run_asks_nobody() -> None:
    """`mount -f`: the options are looked at, the image is not."""
    done = run("/nowhere/image", "/nowhere/mnt", "-f", "-o", "run_dir=/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_is_one_line_and_a_hint() -> None:
    done = run("image", "/mnt", "-f", "-o", "nosuch")
    assert done.returncode == 2
    line, hint = done.stderr.splitlines()
    assert line == "nydus-erofs: unknown mount option 'nosuch'"
    assert hint.startswith("  hint: ")
