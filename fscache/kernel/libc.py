"""The C library through cffi (ABI mode: no compiler at install), and errno turned into OSError. What is called is
declared in ``libc_cdef.py``."""

from __future__ import annotations

import os
from typing import Any

from . import _libc

ffi: Any = _libc.ffi
lib: Any = ffi.dlopen(None)


def checked(result: int, what: str) -> int:
    """``result`` of a call, or OSError with errno and ``what`` failed when it is negative."""
    if result < 0:
        raise OSError(ffi.errno, f"{what}: {os.strerror(ffi.errno)}")
    return result


def integer(value: int) -> Any:
    """A variadic integer argument of ``syscall``."""
    return ffi.cast("long", value)


def text(value: str | bytes | None) -> Any:
    """A variadic string argument of ``syscall``; keep the result alive during the call."""
    return ffi.NULL if value is None else ffi.new("char[]", os.fsencode(value))
