"""``python -m tests.fuzz TARGET...|all``: see docs/fuzzing.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from .child import Job, limit
from .run import Result, best_engine, run_all
from .target import load
from .trial import Crash, Trial

CACHE = Path(os.environ.get("NYDUS_EROFS_CACHE", Path.home() / ".cache" / "nydus-erofs"))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Try broken inputs. See docs/fuzzing.md.")
    parser.add_argument("target", nargs="*", help="names of targets, or all")
    parser.add_argument("--seconds", type=float, default=0.0, help="for each target (default: 60, without --inputs)")
    parser.add_argument("--inputs", type=int, default=0, help="for each target")
    parser.add_argument(
        "--corpus", type=Path, default=CACHE / "fuzz", help="folder of inputs and crashes (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--engine", choices=["atheris", "plain"], default=best_engine(), help="(%(default)s)")
    parser.add_argument("--targets", default="tests.fuzz.targets", help="module with the targets")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.add_argument("--list", action="store_true", help="print the names of all targets")
    parser.add_argument("--input", type=Path, help="try this one input of a target, here, and tell what comes of it")
    return parser


def folders(corpus: Path, name: str) -> dict[str, str]:
    """Those of a target."""
    made = {kind: corpus / name / kind for kind in ("corpus", "crashes")}
    for path in made.values():
        path.mkdir(parents=True, exist_ok=True)
    return {kind: str(path) for kind, path in made.items()}


def try_one(trial: Trial, path: Path) -> int:
    outcome = trial(path.read_bytes())
    if isinstance(outcome, Crash):
        sys.stdout.write(f"{outcome.text}{outcome.signature}\n")
        return 1
    sys.stdout.write(f"{outcome!r}\n")
    return 0


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    parser = arguments()
    given = parser.parse_args()
    targets = load(given.targets)
    if given.list:
        sys.stdout.write("".join(f"{name}\n" for name in targets))
        return 0
    names = list(targets) if given.target == ["all"] else given.target
    if not names or not set(names) <= set(targets):
        parser.error(f"name a target, or all; there are: {', '.join(targets)}")
    if given.input:
        limit(targets[names[0]].memory)
        return try_one(Trial(targets[names[0]]), given.input)
    seconds = given.seconds or (0.0 if given.inputs else 60.0)
    jobs = [
        Job(given.targets, name, given.engine, given.seed, seconds, given.inputs, current="",
            **folders(given.corpus.absolute(), name))
        for name in names
    ]  # fmt: skip
    say(f"{given.engine}, seed {given.seed}")
    results = run_all(jobs, given.jobs, say)
    report(results, as_json=given.json)
    return 1 if any(result.crashes for result in results) else 0


def report(results: list[Result], *, as_json: bool) -> None:
    """The whole run, in a few numbers."""
    inputs, crashes = sum(result.executions for result in results), sum(len(result.crashes) for result in results)
    if as_json:
        summary = {"inputs": inputs, "crashes": crashes, "targets": [result.summary() for result in results]}
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    else:
        sys.stdout.write(f"{inputs} inputs to {len(results)} targets, {crashes} crashes\n")


if __name__ == "__main__":
    sys.exit(main())
