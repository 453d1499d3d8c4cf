"""The same input gives the same bytes: whatever the number of workers, and the order in which files were made."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.builder import parse_time, source_date_epoch
from nydus_erofs.erofs.errors import ConfigError


def plant(root: Path, seed: int) -> None:
    """The same tree for every seed, made in another order. Many chunks occur twice, near each other and far."""
    files = {
        f"{d}/{f}": random.Random((d * 37 + f) % 300).randbytes(2000) * ((d + f) % 30 + 1)
        for d in range(20)
        for f in range(30)
    }
    files |= {f"large{n}": random.Random(n % 2).randbytes(3 << 20) * 4 for n in range(3)}
    order = list(files)
    random.Random(seed).shuffle(order)
    root.mkdir()
    for name in order:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[name])
        os.link(path, path.with_name(path.name + " again")) if len(files[name]) % 7 == 0 else None
    for path in root.rglob("*"):
        os.utime(path, ns=(1, 1_700_000_000_000_000_001))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    paths = [folder / str(seed) for seed in range(2)]
    for seed, path in enumerate(paths):
        plant(path, seed)
    return paths


@pytest.mark.parametrize("chunk_size", [0x1000, 0x100000])
def test_workers_and_order_do_not_matter(
    sources: list[Path], chunk_size: int, build_image: Any, tmp_path: Path
) -> None:
    made = {
        (result.bootstrap.read_bytes(), result.blob.read_bytes())
        for source in sources
        for workers in (1, 2, 3)
        for result in [
            build_image(source, tmp_path / f"{source.name}-{workers}", workers=workers, chunk_size=chunk_size)
        ]
    }
    assert len(made) == 1


def test_chunks_are_stored_once(sources: list[Path], build_image: Any, tmp_path: Path) -> None:
    result = build_image(sources[0], tmp_path / "out", workers=3)
    # 300 different small ones; of the large files 3 chunks each in two kinds, at four places
    small = {(d * 37 + f) % 300 * 100 + (d + f) % 30 for d in range(20) for f in range(30)}
    assert result.distinct_chunks == len(small) + 2 * 3
    assert result.blob_id == hashlib.sha256(result.blob.read_bytes()).hexdigest()


# --- times ------------------------------------------------------------------------------------------------


def dated(root: Path, *times: int) -> Path:
    """A directory and its files, with one time each, in nanoseconds."""
    (root / "folder").mkdir(parents=True)
    for number, time in enumerate(times):
        (root / "folder" / f"{number}").write_text(f"{number}")
        os.utime(root / "folder" / f"{number}", ns=(1, time))
    os.symlink("0", root / "folder" / "link")
    os.utime(root / "folder" / "link", ns=(1, times[-1]), follow_symlinks=False)
    os.utime(root / "folder", ns=(1, times[-1]))
    return root


def mtimes(image: Any) -> dict[str, tuple[int, int]]:
    return {os.fsdecode(path): (inode.mtime, inode.mtime_nsec) for path, inode in image.bootstrap.walk()}


def test_times_later_than_the_latest(build_image: Any, open_image: Any, tmp_path: Path) -> None:
    second = 10**9
    tree = dated(tmp_path / "tree", 5 * second, 1000 * second, 1000 * second + 1, 2000 * second + 7)
    assert mtimes(open_image(build_image(tree, tmp_path / "out", latest_mtime=1000 * second))) == {
        "/": (0, 0),
        "/folder": (1000, 0),
        "/folder/0": (5, 0),
        "/folder/1": (1000, 0),
        "/folder/2": (1000, 0),
        "/folder/3": (1000, 0),
        "/folder/link": (1000, 0),
    }


def test_one_time_for_all(build_image: Any, open_image: Any, tmp_path: Path) -> None:
    tree = dated(tmp_path / "tree", 5, 6)
    image = open_image(build_image(tree, tmp_path / "out", mtime=-1_500_000_001, latest_mtime=-(10**12)))
    assert set(mtimes(image).values()) == {(-2, 499_999_999)}
    assert len(mtimes(image)) == 5


def test_times_of_the_command(tmp_path: Path) -> None:
    """Trees of other times give the same bytes: by the environment, and by the option, which goes first."""
    first = dated(tmp_path / "a" / "tree", 1_700_000_000_000_000_000, 1_700_000_000_000_000_001)
    second = dated(tmp_path / "b" / "tree", 1_800_000_000_000_000_000, 1_800_000_000_000_000_001)
    images = []
    for number, tree in enumerate((first, second) * 2):
        options = ["--mtime", "2023-11-14T23:13:20+01:00"] if number > 1 else []
        epoch = "1600000000" if number < 2 else "never"
        out = tmp_path / f"{number}"
        command = [sys.executable, "-m", "nydus_erofs", "build", tree, "-o", out, *options]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
        images.append((out / "tree.meta").read_bytes())
    assert images[0] == images[1] != images[2] == images[3]
    assert (1_700_000_000).to_bytes(8, "little") in images[2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("-5", -5), ("1700000000", 1_700_000_000), ("2023-11-14", 1_699_920_000),
     ("2023-11-14T22:13:20Z", 1_700_000_000), ("2023-11-14 22:13:20", 1_700_000_000),
     ("2023-11-14T22:13:20.5+02:00", 1_699_992_800.5), ("1960-01-01", -315_619_200)],
)  # fmt: skip
def test_what_a_time_is(text: str, seconds: float) -> None:
    assert parse_time(text) == int(seconds * 10) * 100_000_000


@pytest.mark.parametrize("text", ["", "now", "1.5", "2023-13-01", "0x10", "1_000", " 1", str(1 << 63), "9" * 5000])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="--mtime"):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "2023-11-14", "\u0661", " 1", "1_0", str(1 << 63), "9" * 5000])
def test_a_source_date_epoch_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH="):
        source_date_epoch({"SOURCE_DATE_EPOCH": text})


def test_a_source_date_epoch() -> None:
    assert source_date_epoch({}) is None
    assert source_date_epoch({"SOURCE_DATE_EPOCH": "1700000000"}) == 1_700_000_000 * 10**9


# --- links ------------------------------------------------------------------------------------------------


def test_links_and_copies_give_the_same_image(
    build_image: Any, open_image: Any, assert_sound: Any, tmp_path: Path
) -> None:
    """With --hard-dereference; without it they are told apart."""
    made: dict[bool, list[bytes]] = {False: [], True: []}
    for how in ("links", "copies"):
        tree = tmp_path / how / "tree"
        tree.mkdir(parents=True)
        (tree / "a").write_bytes(random.Random(1).randbytes(3 << 20))
        with (tree / "sparse").open("wb") as file:
            file.truncate(5 << 20)
        for name in ("a", "sparse"):
            if how == "links":
                os.link(tree / name, tree / f"{name} again")
            else:
                shutil.copy(tree / name, tree / f"{name} again")
        for path in tree.iterdir():
            os.utime(path, ns=(1, 10**18))
        for dereference, images in made.items():
            result = build_image(tree, tmp_path / f"{how}{dereference}", hard_dereference=dereference)
            images.append(result.bootstrap.read_bytes() + result.blob.read_bytes())
            assert result.distinct_chunks == 3 + 1
            assert_sound(result)
            nlinks = [inode.nlink for path, inode in open_image(result).bootstrap.walk() if path != b"/"]
            assert nlinks == [1 if dereference or how == "copies" else 2] * 4
    assert made[True][0] == made[True][1] == made[False][1] != made[False][0]
