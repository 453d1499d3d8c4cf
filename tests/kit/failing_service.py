"""``nydus-erofs`` in which a function fails: ``failing_service.py FLAG ERRNO MODULE NAME[.NAME] ARGUMENTS``.

It fails as long as there is a file FLAG: for what no real part of the host can be made to do without harm to others.
"""

import functools
import importlib
import os
import sys
from operator import attrgetter
from typing import Any

flag, number, module = sys.argv[1], int(sys.argv[2]), importlib.import_module(sys.argv[3])
*path, name = sys.argv[4].split(".")
owner = attrgetter(".".join(path))(module) if path else module
function = getattr(owner, name)


@functools.wraps(function)
def failing(*arguments: Any, **options: Any) -> Any:
    if os.path.exists(flag):
        raise OSError(number, os.strerror(number))
    return function(*arguments, **options)


setattr(owner, name, failing)
sys.argv[1:5] = []
sys.argv[0] = "nydus-erofs"
from nydus_erofs.cli import main  # noqa: E402 - after the function was replaced

main()
