"""``nydus-erofs`` in which one function takes five seconds: ``slow_service.py MODULE FUNCTION ARGUMENTS``.

It is slow in the keeper and in its forked children alike; a program that they start (rm, sync) is slow by PATH.
"""

import functools
import importlib
import sys
import time
from typing import Any

module = importlib.import_module(sys.argv[1])
name = sys.argv[2]
function = getattr(module, name)


@functools.wraps(function)
def slow(*arguments: Any, **options: Any) -> Any:
    time.sleep(5)
    return function(*arguments, **options)


setattr(module, name, slow)
sys.argv[1:3] = []
sys.argv[0] = "nydus-erofs"
from nydus_erofs.cli import main  # noqa: E402 - after the function was replaced

main()
