"""``nydus-erofs`` with workers that are not what they should be: ``odd_service.py KIND ARGUMENTS``.

KIND is one of ``odd_worker.py``, or the name of a file with one in it, read for each worker that is started.
"""

import os
import sys
from pathlib import Path
from typing import Any

from nydus_erofs.cli import main

ODD = Path(__file__).with_name("odd_worker.py")
kind = sys.argv[1]
sys.argv[1:2] = []
sys.argv[0] = "nydus-erofs"
start = os.posix_spawn


def odd_start(program: str, command: list[str], *arguments: Any, **options: Any) -> int:
    python, alone, _, module, *rest = command
    if module.endswith(".worker"):
        name = Path(kind).read_text() if os.path.isabs(kind) else kind
        command = [python, alone, str(ODD), name, *rest]
    return start(program, command, *arguments, **options)


os.posix_spawn = odd_start  # type: ignore[assignment]
main()
