"""The system calls that prepare needs, once it has its request and no privilege."""

from __future__ import annotations

import errno

from ..kernel.seccomp import Check, Profile

_MEMORY = ("brk", "madvise", "mremap", "munmap")
_FILES = ("close", "fcntl", "fstat", "lseek", "mkdir", "mkdirat", "newfstatat", "openat", "statx")
_BYTES = ("ftruncate", "pread64", "preadv", "preadv2", "pwrite64", "read", "readv", "write", "writev")
_KEEPER = ("recvmsg", "sendmsg", "sendto")
# It has one thread; the lock of Python's interpreter is a futex all the same.
_ITSELF = ("exit", "exit_group", "futex", "getpid", "gettid", "getrandom", "sched_yield", "sysinfo", "tgkill")
_SIGNALS = ("restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack")
_TIME = ("clock_getres", "clock_gettime", "gettimeofday", "time")  # where the vDSO does not know it
_NAMES = ("access", "faccessat", "faccessat2", "getcwd", "getdents64", "readlink", "readlinkat")  # for a traceback

_PROT_EXEC = 4
_TCGETS, _TCGETS2 = 0x5401, 0x802C542A  # Python asks each file that it opens whether it is a terminal

PROFILE = Profile(
    allowed=frozenset((*_MEMORY, *_FILES, *_BYTES, *_KEEPER, *_ITSELF, *_SIGNALS, *_TIME, *_NAMES)),
    checked={
        "ioctl": Check(1, (_TCGETS, _TCGETS2), errno.ENOTTY),
        # Nothing new is run: all modules are loaded.
        "mmap": Check(2, (0,), errno.EACCES, mask=_PROT_EXEC),
        "mprotect": Check(2, (0,), errno.EACCES, mask=_PROT_EXEC),
        "prlimit64": Check(0, (0,), errno.EPERM),  # its own
    },
    refused={},
)
