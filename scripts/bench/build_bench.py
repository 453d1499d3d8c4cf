#!/usr/bin/env python3
"""Build the same tree with nydus-erofs and with each peer there is, in turns, and compare.

Peers are taken from the options, from NYDUS_IMAGE and MKFS_EROFS, or from PATH; without any, only our own
figures are shown.  The page cache is warm: everything is read once before.  Every builder gets zstd and
1 MiB chunks; mkfs.erofs, which has no chunks, level 3, 64 KiB clusters and 2 workers.  Ratios are made of
medians of this one run; seconds of two machines say nothing.

"peak" is the sum over all processes of a builder, sampled every 50 ms.
"""

import environment

# isort: split
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import measure

CHUNK = "0x100000"


@dataclass
class Builder:
    """A program, how it is called, and what came of it."""

    name: str
    command: Callable[[Path, Path], list[str]]  # (tree, empty output folder) -> arguments
    is_bootstrap: Callable[[Path], bool]
    runs: list[measure.Usage] = field(default_factory=list)
    blob: int = 0  # bytes, all blobs
    bootstrap: int = 0  # bytes

    def build(self, tree: Path, out: Path) -> None:
        self.runs.append(measure.run(self.command(tree, out)))
        files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".json"]
        self.bootstrap = sum(path.stat().st_size for path in files if self.is_bootstrap(path))
        self.blob = sum(path.stat().st_size for path in files if not self.is_bootstrap(path))

    def figures(self) -> dict[str, float]:
        """Medians over all runs; seconds and bytes."""
        return {
            "wall": median(run.wall for run in self.runs),
            "cpu": median(run.cpu for run in self.runs),
            "peak": median(max(run.peak, 1) for run in self.runs),
            "blob": self.blob,
            "bootstrap": self.bootstrap,
        }


def ours(program: str, extra: list[str]) -> Builder:
    def command(tree: Path, out: Path) -> list[str]:
        return [program, "build", str(tree), "-o", str(out), "--compressor", "zstd", "--chunk-size", CHUNK, *extra]

    return Builder("nydus-erofs", command, lambda path: path.suffix == ".meta")


def nydus_image(program: str, name: str) -> Builder:
    def command(tree: Path, out: Path) -> list[str]:
        options = ["-t", "dir-rafs", "--fs-version", "6", "--compressor", "zstd", "--chunk-size", CHUNK]
        return [program, "create", *options, "--bootstrap", f"{out}/bootstrap", "--blob-dir", str(out), str(tree)]

    return Builder(name, command, lambda path: path.name == "bootstrap")


def mkfs_erofs(program: str) -> Builder:
    def command(tree: Path, out: Path) -> list[str]:
        return [program, "-zzstd,level=3", "-C65536", "--workers=2", f"{out}/image.erofs", str(tree)]

    return Builder("mkfs.erofs", command, lambda _: False)


def contenders(arguments: argparse.Namespace) -> list[Builder]:
    builders = [ours(arguments.nydus_erofs, arguments.extra)]
    images = arguments.nydus_image or [os.environ.get("NYDUS_IMAGE") or shutil.which("nydus-image")]
    for label, program in measure.labelled(list(filter(None, images)), "nydus-image"):
        builders.append(nydus_image(program, label))
    mkfs = arguments.mkfs_erofs or os.environ.get("MKFS_EROFS") or shutil.which("mkfs.erofs")
    if mkfs:
        builders.append(mkfs_erofs(mkfs))
    return [builder for builder in builders if builder.name not in arguments.without]


def warm(tree: Path) -> None:
    """Read everything once."""
    tar = subprocess.Popen(["tar", "-C", str(tree), "-cf", "-", "."], stdout=subprocess.PIPE)
    subprocess.run(["wc", "-c"], stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)
    tar.wait()


def show(builders: list[Builder]) -> str:
    first = builders[0].figures()
    rows = [["builder", "wall s", "CPU s", "peak MB", "blob MB", "bootstrap MB", "wall of this", "size of this"]]
    for builder in builders:
        figures = builder.figures()
        size = (first["blob"] + first["bootstrap"]) / max(1, figures["blob"] + figures["bootstrap"])
        rows.append(
            [
                builder.name,
                f"{figures['wall']:.2f}",
                f"{figures['cpu']:.2f}",
                *(f"{figures[what] / 1e6:.1f}" for what in ("peak", "blob", "bootstrap")),
                f"{first['wall'] / figures['wall']:.2f}",
                f"{size:.3f}",
            ]
        )
    return measure.table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", metavar="TREE", type=Path, help="for example made by make_tree.py")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each builder (default: 3)")
    parser.add_argument("--nydus-erofs", default=environment.PROGRAM, metavar="PROGRAM")
    parser.add_argument("--nydus-image", action="append", metavar="[LABEL=]PROGRAM", help="may be given again")
    parser.add_argument("--mkfs-erofs", metavar="PROGRAM")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out, say, mkfs.erofs")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="ARG", help="a further argument for our build"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="for the images (default: TMPDIR or /var/tmp)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run to FILE")
    arguments = parser.parse_args()
    if not arguments.tree.is_dir():
        parser.error(f"{arguments.tree} is not a directory")
    if not (builders := contenders(arguments)):
        parser.error("no builder is left")
    measure.allow_files()
    warm(arguments.tree)
    work = arguments.work or Path(os.environ.get("TMPDIR", "/var/tmp"))
    for round_number in range(arguments.rounds):
        for builder in builders:
            with tempfile.TemporaryDirectory(prefix="build-bench.", dir=work) as out:
                os.sync()  # or one builder pays for what the one before it left to be written
                try:
                    builder.build(arguments.tree, Path(out))
                except subprocess.CalledProcessError as error:
                    lines = error.output.decode(errors="replace").strip().splitlines()
                    sys.exit(f"build_bench: error: {builder.name} failed: {lines[-1] if lines else error}")
            print(f"round {round_number + 1}: {builder.name} {builder.runs[-1].wall:.2f} s", file=sys.stderr)
    print(show(builders))
    if arguments.json:
        result = {
            builder.name: {**builder.figures(), "runs": [asdict(run) for run in builder.runs]} for builder in builders
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
