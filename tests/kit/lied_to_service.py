"""``nydus-erofs`` whose workers lie (``lying_worker.py``) as long as there is a file FLAG:
``lied_to_service.py FLAG KIND ARGUMENTS``."""

import os
import sys
from pathlib import Path
from typing import Any

flag, kind = sys.argv[1], sys.argv[2]
LIAR = str(Path(__file__).with_name("lying_worker.py"))
_spawn = os.posix_spawn


def spawn(path: str, command: list[str], *arguments: Any, **options: Any) -> int:
    if "nydus_erofs.fscache.worker" in command and os.path.exists(flag):
        module = command.index("-m")
        command = [*command[:module], LIAR, kind, *command[module + 2 :]]
    return _spawn(path, command, *arguments, **options)


os.posix_spawn = spawn  # type: ignore[assignment]
sys.argv[1:3] = []
sys.argv[0] = "nydus-erofs"
from nydus_erofs.cli import main  # noqa: E402 - after the function was replaced

main()
