"""``nydus-erofs`` in which one function takes five seconds: ``slow_service.py MODULE FUNCTION ARGUMENTS``.

It is slow the first time, in the keeper and in each of its forks alike.
"""

import functools
import importlib
import os
import sys
import time
from typing import Any

module = importlib.import_module(sys.argv[1])
name = sys.argv[2]
function = getattr(module, name)
slept: set[int] = set()


@functools.wraps(function)
def slow(*arguments: Any, **options: Any) -> Any:
    if os.getpid() not in slept:
        slept.add(os.getpid())
        time.sleep(5)
    return function(*arguments, **options)


setattr(module, name, slow)
sys.argv[1:3] = []
sys.argv[0] = "nydus-erofs"
from nydus_erofs.cli import main  # noqa: E402 - after the function was replaced

main()
