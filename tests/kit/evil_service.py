"""``nydus-erofs`` with another worker: ``evil_service.py MODE ARGUMENTS``; what it does, ``evil_worker.py`` says."""

import sys
from pathlib import Path

from nydus_erofs.cli import main
from nydus_erofs.fscache.keeper.children import spawn
from nydus_erofs.fscache.processes import Process

MODE, EVIL, honest = sys.argv[1], str(Path(__file__).with_name("evil_worker.py")), spawn.program


def program(process: Process) -> list[str]:
    return [sys.executable, "-I", EVIL, MODE] if process.name == "worker" else honest(process)


spawn.program = program
sys.argv[:2] = ["nydus-erofs"]
main()
