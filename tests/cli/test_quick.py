"""Plain command lines are understood without click, and mean exactly what click takes them for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.cli import mount, quick, status, umount

COMMANDS = {"mount": mount.command, "umount": umount.command, "status": status.command}

words = st.sampled_from(
    ["image.meta", "/mnt", "a b", "", "x=y", "-", "--", "-h", "--help", "--pre", "--json=1", "\udcff"]
)
options = st.sampled_from(
    ["--run-dir", "--state-dir", "--blob-dir", "--run-dir=/r", "--blob-dir=", "--blob-dir=a=b", "--prefetch",
     "--no-prefetch", "--plain-http", "--insecure", "--json", "--config", "--prefetch=1"]
)  # fmt: skip


@given(st.sampled_from(list(COMMANDS)), st.lists(words | options, max_size=6))
def test_as_click(verb: str, arguments: list[str]) -> None:
    fields = quick.parse([verb, *arguments])
    if fields is None:
        return  # click is asked
    known = COMMANDS[verb].make_context(verb, list(arguments)).params
    for name in known.keys() - fields.keys():
        default = next(p for p in COMMANDS[verb].params if p.name == name).get_default(click.Context(COMMANDS[verb]))
        assert known[name] in (default, ())
    assert fields.pop("verb") == verb
    assert {**known, **{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}} == known


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("mount i.meta /mnt", {"image": "i.meta", "mountpoint": "/mnt"}),
        ("mount --no-prefetch --insecure i.meta --run-dir /r /mnt --blob-dir=a --blob-dir b", {
            "image": "i.meta", "mountpoint": "/mnt", "prefetch": False, "insecure": True, "run_dir": "/r",
            "blob_dirs": ["a", "b"],
        }),
        ("umount /mnt --run-dir=/r", {"mountpoint": "/mnt", "run_dir": "/r"}),
        ("status", {}),
        ("status --json", {"as_json": True}),
    ],
)  # fmt: skip
def test_plain_lines_are_understood(
    line: str, fields: dict[str, bool | list[str] | str] | dict[str, bool] | dict[str, str]
) -> None:
    assert quick.parse(line.split()) == {"verb": line.split()[0], **fields}


@pytest.mark.parametrize(
    "line", ["", "serve", "--version", "mount", "mount i", "mount -h", "umount a b", "status --js"]
)
def test_the_rest_is_for_click(line: str) -> None:
    assert quick.parse(line.split()) is None


@pytest.mark.parametrize("line", ["mount /i /m", "umount /m", "status", "status --json"])
def test_little_is_imported(line: str, tmp_path: Path) -> None:
    """What takes longer to import than the service takes to answer is not imported."""
    code = (
        "import sys; from nydus_erofs.cli import main\n"
        "try: main()\n"
        "finally: print(*{'click', 'typing', 'dataclasses', 'asyncio', 'msgspec', 'cffi'} & set(sys.modules))"
    )
    command = [sys.executable, "-I", "-c", code, *line.split(), "--run-dir", str(tmp_path / "nobody")]
    if line.startswith("mount"):
        command += ["--state-dir", "/dev/null/none"]  # no service can start there
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.startswith("nydus-erofs: "), done.stderr
    assert done.returncode
    if not line.startswith("mount"):
        assert done.stdout == "\n"
