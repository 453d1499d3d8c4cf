"""A wrong command line: one line that says what is wrong, one that says what to do, exit code 2."""

from __future__ import annotations

import subprocess

import pytest

from tests.kit.command import PYTHON, cli

ALL = ["build", "check", "doctor", "inspect", "mount", "push", "serve", "status", "umount"]

WRONG = {
    ("mount",): "missing argument 'IMAGE'",
    ("mount", "x"): "missing argument 'MOUNTPOINT'",
    ("mount", "x", "y", "z"): "got unexpected extra argument (z)",
    ("mount", "x", "y", "a\nb", "c\x1b[2J"): "got unexpected extra arguments (a b c\\x1b[2J)",
    ("umount",): "missing argument 'MOUNTPOINT'",
    ("status", "x"): "got unexpected extra argument (x)",
    ("serve", "x"): "got unexpected extra argument (x)",
    ("serve", "--log-level", "loud"): "invalid value for '--log-level': 'loud' is not one of 'trace', 'debug',",
    ("check",): "missing argument 'BOOTSTRAP'",
    ("check", "x", "--blob-dir", "/nonexistent"): "invalid value for '--blob-dir': Directory '/nonexistent'",
    ("inspect", "x", "blob"): "'blob' is not one of 'summary', 'superblock',",
    ("inspect", "x", "chunks"): "chunks needs a PATH",
    ("push",): "missing argument 'BOOTSTRAP'",
    ("push", "x"): "say where to push to: with --backend-config-file, or a REFERENCE",
    ("build",): "name one directory, as the argument or with --source-dir",
    ("build", "x", "--chunk-size", "many"): "invalid value for '--chunk-size': 'many' is not a number",
    ("build", "x", "-o"): "option '-o' requires an argument",
    ("build", "x", "--backend-type", "s3"): "--backend-type and --backend-config-file need --backend-push",
    ("mounts",): "no such command 'mounts'",
    ("--xyzzy",): "no such option '--xyzzy'",
}


def says(done: subprocess.CompletedProcess[str], what: str, hint: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("nydus-erofs: ")
    assert what in first
    assert not first.endswith(".")
    assert second == f"  hint: {hint}"


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: repr(" ".join(arguments)))
def test_wrong(arguments: tuple[str, ...]) -> None:
    verb = f"{arguments[0]} " if arguments[0] in ALL else ""
    says(cli(*arguments), WRONG[arguments], f"see nydus-erofs {verb}--help")


@pytest.mark.parametrize("verb", ALL)
def test_an_option_that_no_verb_has(verb: str) -> None:
    says(cli(verb, "--xyzzy"), "no such option '--xyzzy'", f"see nydus-erofs {verb} --help")


def test_an_option_that_is_nearly_right() -> None:
    done = cli("mount", "x", "y", "--prefetsch")
    says(done, "no such option '--prefetsch'", "did you mean --prefetch or --no-prefetch?")


def test_without_a_verb() -> None:
    """The help, but as an error."""
    done = cli()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: nydus-erofs [OPTIONS] [COMMAND]")
    assert done.stderr == cli("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        ([], "an image and a mountpoint are needed, not 0 names", "usage: mount.nydus-erofs IMAGE MOUNTPOINT"),
        (["x"], "an image and a mountpoint are needed, not 1 names", "usage: "),
        (["x", "y", "z"], "an image and a mountpoint are needed, not 3 names", "usage: "),
        (["x", "y", "-o"], "-o needs a value", "usage: "),
        (["x", "y", "--nonsense"], "unknown option --nonsense", "usage: "),
        (["x", "y", "-o", "ro,nonsense=1"], "unknown mount option 'nonsense=1'", "known: "),
    ],
)
def test_the_mount_helper(arguments: list[str], what: str, hint: str) -> None:
    program = "from nydus_erofs.cli.mount_helper import main; main()"
    done = subprocess.run(
        [*PYTHON, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first == f"nydus-erofs: {what}"
    assert second.startswith(f"  hint: {hint}")
