"""The system calls that the verifier needs, once it has no privilege: descriptors it is given, memory, threads."""

from __future__ import annotations

import errno

from ..kernel.seccomp import Check, Profile

_MEMORY = ("brk", "madvise", "memfd_create", "mremap", "munmap")
_THREADS = ("exit", "exit_group", "futex", "get_robust_list", "gettid", "membarrier", "rseq", "sched_getaffinity",
            "sched_yield", "set_robust_list")  # fmt: skip
_SIGNALS = ("restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill")
_TIME = ("clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time")
_BYTES = ("lseek", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readv", "write",
          "writev")  # fmt: skip
_SEGMENTS = ("close", "dup", "fcntl", "fstat", "ftruncate", "newfstatat", "openat", "statx")
_SOCKETS = ("getpeername", "getsockname", "getsockopt", "recvmsg", "sendmsg", "sendto", "socketpair")
_ITSELF = ("getpid", "getrandom", "sysinfo")
_NAMES = ("access", "faccessat", "faccessat2", "getcwd", "getdents64", "readlink", "readlinkat")  # for a traceback

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000  # every kind of namespace
_PROT_EXEC = 4
_FIONBIO = 0x5421
_TCGETS, _TCGETS2 = 0x5401, 0x802C542A  # Python asks each file that it opens whether it is a terminal

PROFILE = Profile(
    allowed=frozenset((*_MEMORY, *_THREADS, *_SIGNALS, *_TIME, *_BYTES, *_SEGMENTS, *_SOCKETS, *_ITSELF, *_NAMES)),
    checked={
        "clone": Check(0, (_CLONE_THREAD,), errno.EPERM, mask=_CLONE_THREAD | _CLONE_NEW),
        "ioctl": Check(1, (_TCGETS, _TCGETS2, _FIONBIO), errno.ENOTTY),
        # Nothing new is run: all modules are loaded.
        "mmap": Check(2, (0,), errno.EACCES, mask=_PROT_EXEC),
        "mprotect": Check(2, (0,), errno.EACCES, mask=_PROT_EXEC),
        "prlimit64": Check(0, (0,), errno.EPERM),  # its own
    },
    refused={},
)
