"""The tools our other evidence rests on: a comparison that overlooks something would make all of it worthless."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def make(root: Path) -> Path:
    """A small tree with something of each kind."""
    root.mkdir()
    (root / "folder").mkdir()
    (root / "folder" / "big").write_bytes(bytes(range(256)) * 9000)
    (root / "empty").write_bytes(b"")
    os.link(root / "folder" / "big", root / "linked")
    os.symlink("folder/big", root / "symlink")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "empty", "user.colour", b"blue")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(10**18 + 7, 10**18 + 7), follow_symlinks=False)
    return root


def test_equal_trees_are_equal(tmp_path: Path) -> None:
    done = run("compare_trees.py", make(tmp_path / "a"), make(tmp_path / "b"))
    assert (done.returncode, done.stderr) == (0, "")
    # The linked file's bytes are compared once, under its first name.
    assert done.stdout.startswith("equal: 3 files, 2 directories, 1 symlinks, 1 others, 2,304,000 bytes")


def flip_a_byte(root: Path) -> None:
    before = os.stat(root / "folder" / "big")
    with open(root / "folder" / "big", "r+b") as file:
        file.seek(1_500_000)
        file.write(b"\xff" if file.read(1) != b"\xff" else b"\x00")
    os.utime(root / "folder" / "big", ns=(before.st_atime_ns, before.st_mtime_ns))


def break_link(root: Path) -> None:
    before = os.stat(root / "linked")
    data = (root / "linked").read_bytes()
    (root / "linked").unlink()
    (root / "linked").write_bytes(data)
    os.utime(root / "linked", ns=(before.st_atime_ns, before.st_mtime_ns))
    touch_back(root)


def touch_back(path: Path) -> None:
    os.utime(path, ns=(10**18 + 7, 10**18 + 7))


def add_file(root: Path) -> None:
    (root / "folder" / "new").touch()
    touch_back(root / "folder")


def retarget(root: Path) -> None:
    (root / "symlink").unlink()
    os.symlink("folder/bog", root / "symlink")
    os.utime(root / "symlink", ns=(10**18 + 7, 10**18 + 7), follow_symlinks=False)
    touch_back(root)


def to_directory(root: Path) -> None:
    (root / "empty").unlink()
    (root / "empty").mkdir()


CHANGES = {
    "contents differ from byte 1,500,001 on": flip_a_byte,
    "hard link to one file in A, to another in B": break_link,
    "only in B": add_file,
    "target b'folder/big' in A, b'folder/bog' in B": retarget,
    "mode 0o100644 in A, 0o100640 in B": lambda root: (root / "empty").chmod(0o640),
    "mtime_ns": lambda root: os.utime(root / "folder", ns=(1, 10**18 + 8)),
    "extended attributes differ: user.colour": lambda root: os.setxattr(root / "empty", "user.colour", b"red"),
    "extended attributes differ: user.other": lambda root: os.setxattr(root / "folder", "user.other", b""),
    "size": lambda root: os.truncate(root / "folder" / "big", 2_303_999),
    "only in A": lambda root: (root / "fifo").unlink(),
    "mode 0o100644 in A, 0o40755 in B": to_directory,
}


@pytest.mark.parametrize("said", CHANGES)
def test_each_kind_of_difference_is_found(tmp_path: Path, said: str) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    CHANGES[said](b)
    done = run("compare_trees.py", a, b)
    assert done.returncode == 1
    assert said in done.stdout
    assert done.stderr == ""


@pytest.mark.root
def test_owners_are_compared(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    os.lchown(b / "symlink", 12, 34)
    done = run("compare_trees.py", a, b)
    assert "'/symlink': uid 0 in A, 12 in B" in done.stdout
    assert "'/symlink': gid 0 in A, 34 in B" in done.stdout
    assert done.returncode == 1


def test_names_outside_the_tree_do_not_count(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    os.link(a / "empty", tmp_path / "outside")
    assert run("compare_trees.py", a, b).returncode == 0
    assert run("compare_trees.py", b, a).returncode == 1


def test_time_limit_and_missing_directory(tmp_path: Path) -> None:
    a = make(tmp_path / "a")
    done = run("compare_trees.py", a, a, "--time-limit", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not finished after 0 s" in done.stderr
    done = run("compare_trees.py", a, tmp_path / "none")
    assert done.returncode == 2
    assert "is not a directory" in done.stderr


def test_benchmark_tree_is_the_same_everywhere(tmp_path: Path) -> None:
    """Figures of two machines may be compared only if this never changes."""
    done = run("bench/make_tree.py", tmp_path / "tree", "--scale", 0.001)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("135 files, 68 directories, 1 symlinks, 2,300,000 bytes")
    assert done.stdout.split()[-1] == "86d825ebae127bba"
    again = run("bench/make_tree.py", tmp_path / "tree")
    assert again.returncode == 2
    assert "exists" in again.stderr
