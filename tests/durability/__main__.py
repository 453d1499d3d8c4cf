"""``python -m tests.durability``: power cuts by the hundred. See docs/durability.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.durability.replay import DISKS, Point, replay
from tests.kit.engines import ENGINES


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.durability", description="Replay power cuts.")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=list(ENGINES), default="fanotify")
    parser.add_argument("--disk", action="append", choices=list(DISKS), help="some of them only")
    parser.add_argument("--work", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")))
    given = parser.parse_args()
    disks = [DISKS[name] for name in given.disk or DISKS]
    began, points = time.monotonic(), list[Point]()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        for point in replay(Path(work).resolve(), ENGINES[given.engine], disks, given.points, given.seed, again=True):
            points.append(point)
            sys.stderr.write(f"{point}\n")
            sys.stderr.flush()
    verdicts = [point.verdict for point in points]
    summary = {
        "points": len(points),
        "files_right": sum(verdict.files for verdict in verdicts),
        "wrong": sum(len(verdict.wrong) for verdict in verdicts),
        "errors_while_unserved": sum(verdict.unserved for verdict in verdicts),
        "errors": sum(len(verdict.errors) for verdict in verdicts),
        "lost": sum(len(verdict.lost) for verdict in verdicts),
        "seconds": round(time.monotonic() - began),
    }
    sys.stdout.write(f"{json.dumps(summary)}\n")
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
