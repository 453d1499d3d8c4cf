"""What this program calls of the C library.

``python -m nydus_erofs.fscache.kernel.libc_cdef`` compiles it into ``_libc.py``, which is in the repository:
parsing C takes as long as starting Python does, and every command would wait for it.
"""

from __future__ import annotations

import os

import cffi

DECLARATIONS = """
int capset(const char *header, const char *sets);
int fanotify_init(unsigned int flags, unsigned int event_f_flags);
int fanotify_mark(int fd, unsigned int flags, uint64_t mask, int dirfd, const char *path);
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int syncfs(int fd);
int unshare(int flags);
int statx(int dirfd, const char *path, int flags, unsigned int mask, char *status);
long syscall(long number, ...);
"""
COMPILED = os.path.join(os.path.dirname(__file__), "_libc.py")


def compile_to(path: str) -> None:
    """Write the declarations as a module of cffi's out-of-line ABI mode (no compiler is needed)."""
    ffi = cffi.FFI()
    ffi.set_source(f"{__package__}._libc", None)
    ffi.cdef(DECLARATIONS)
    ffi.emit_python_code(path)


if __name__ == "__main__":
    compile_to(COMPILED)
