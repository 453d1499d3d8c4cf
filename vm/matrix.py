"""``vm/matrix``: run batteries on every kernel, write docs/support-matrix.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import report
from .kernels import Kernel, kernel, usual
from .machine import Machine, run
from .prepare import Prepared, prepare
from .process import VmError, say

_HOME = Path(__file__).resolve().parent.parent
_DOCUMENT = _HOME / "docs/support-matrix.md"


@dataclass(frozen=True, slots=True)
class Battery:
    """A command that runs in the guest, in the checkout, and reports as ``report`` says."""

    name: str
    command: tuple[str, ...]
    timeout: float


BATTERIES = (
    Battery("smoke", ("python", "-P", "-m", "vm.smoke"), timeout=120),
    Battery("contract", ("python", "-P", "-m", "vm.contract"), timeout=1500),
)
_AT_ONCE = 2  # guests: each keeps one processor busy


@dataclass(slots=True)
class Row:
    """What one kernel did: results of all batteries, and batteries that did not end well."""

    kernel: Kernel
    prepared: Prepared
    results: list[report.Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and bool(self.results) and all(result.passed for result in self.results)


def run_kernel(of: Kernel, batteries: Sequence[Battery]) -> Row:
    """Every battery in a guest of its own."""
    row = Row(of, prepare(of.name))
    for battery in batteries:
        with tempfile.TemporaryDirectory() as share:
            environment = {
                "PYTHONPATH": str(_HOME),
                report.PATH: "/share/report",
                report.ENGINE: of.engine,
                "NYDUS_EROFS_VM_SERIES": of.series,
            }
            machine = Machine(
                of.name, row.prepared, timeout=battery.timeout, share=Path(share), environment=environment
            )
            say(f"{of.name}: {battery.name}")
            outcome = run(machine, battery.command)
            row.results += report.read(Path(share) / "report")
        if outcome.code:
            row.failures.append(f"{battery.name}: {outcome.reason or f'exit code {outcome.code}'}")
        say(f"{of.name}: {battery.name} ended with {outcome.code} after {outcome.seconds:.1f} s")
    return row


def document(rows: Sequence[Row]) -> str:
    """The support matrix: kernels across, checks down. The same results give the same text."""
    checks: dict[tuple[str, str], Mapping[str, report.Result]] = {}
    for row in rows:
        for result in row.results:
            key = (result.engine, result.check)
            checks[key] = {**checks.get(key, {}), row.kernel.name: result}
    table = [
        ("", *(row.kernel.name for row in rows)),
        ("---", *("---" for _ in rows)),
        ("release", *(row.prepared.release for row in rows)),
        ("Debian's version", *(row.prepared.version for row in rows)),
        ("modules", *(_modules(row.kernel) for row in rows)),
        ("engine", *(row.kernel.engine for row in rows)),
    ]
    for (engine, check), cells in checks.items():
        title = check if engine == "any" else f"{engine}: {check}"
        table.append((title, *(_cell(cells.get(row.kernel.name)) for row in rows)))
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    trouble = [f"- {row.kernel.name}: {failure}" for row in rows for failure in row.failures]
    return "\n".join(
        [
            "# Support matrix",
            "",
            "Written by `vm/matrix` from its last run: each kernel was booted in a virtual machine and did what",
            "the table says. An empty cell was not asked of that kernel.",
            "",
            *lines,
            *(["", "Batteries that did not end well:", "", *trouble] if trouble else []),
            "",
        ]
    )


def _modules(of: Kernel) -> str:
    if of.config:
        return "built whole, from Debian's source"
    return "erofs, cachefiles rebuilt" if of.rebuild else "as Debian ships them"


def _cell(result: report.Result | None) -> str:
    if result is None:
        return ""
    return "yes" if result.passed else f"**no**: {result.detail}".replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vm/matrix", description="Run the batteries on the kernels and write docs/support-matrix.md."
    )
    parser.add_argument("kernel", nargs="*", help="some kernels only: the table goes to the terminal")
    names = [battery.name for battery in BATTERIES]
    parser.add_argument("--battery", action="append", choices=names, help="some batteries only (likewise)")
    parser.add_argument("--jobs", type=int, default=_AT_ONCE, metavar="N", help="kernels at a time (%(default)s)")
    parser.add_argument("--output", type=Path, help="where to write the table")
    options = parser.parse_args(arguments)
    try:
        batteries = [battery for battery in BATTERIES if battery.name in (options.battery or names)]
        kernels = [kernel(name) for name in options.kernel or usual()]
        with ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(lambda of: run_kernel(of, batteries), kernels))
    except (VmError, OSError) as error:
        print(f"vm/matrix: {error}", file=sys.stderr)
        return 1
    text = document(rows)
    partial = bool(options.kernel or options.battery)
    if output := options.output or (None if partial else _DOCUMENT):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
        say(f"wrote {output}")
    else:
        print(text)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
