"""The system calls that a worker needs, once it has no privilege: network clients, decoders, threads."""

from __future__ import annotations

import errno
import socket

from ..kernel.seccomp import Check, Profile

_MEMORY = ("brk", "madvise", "mremap", "munmap")
_THREADS = ("exit", "exit_group", "futex", "get_robust_list", "gettid", "membarrier", "rseq", "sched_getaffinity",
            "sched_yield", "set_robust_list")  # fmt: skip
_SIGNALS = ("restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill")
_TIME = ("clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time")
_BYTES = ("lseek", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readv", "write",
          "writev")  # fmt: skip
_SEGMENTS = ("close", "dup", "fallocate", "fcntl", "fdatasync", "fstat", "fsync", "ftruncate", "memfd_create",
             "newfstatat", "openat", "statx")  # fmt: skip
# Certificates, credentials, the resolver's configuration, modules that are loaded late.
_NAMES = ("access", "faccessat", "faccessat2", "fstatfs", "getcwd", "getdents64", "readlink", "readlinkat", "statfs")
# Also the keeper's socket. bind and getsockname: libc asks the kernel for the host's own addresses (netlink).
_NETWORK = ("bind", "connect", "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmmsg", "recvmsg",
            "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown")  # fmt: skip
_WAITING = ("epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "poll", "ppoll", "pselect6")
# What libraries ask about the process and the machine.
_WHERE = ("getcpu", "getegid", "geteuid", "getgid", "getpid", "getppid", "getrandom", "getrusage", "getuid",
          "sysinfo", "uname")  # fmt: skip
# Libraries that keep something in files (botocore, of single sign-on): they find what they would on a read-only disk.
_CHANGES = ("chmod", "fchmod", "fchmodat", "link", "linkat", "mkdir", "mkdirat", "rename", "renameat", "renameat2",
            "rmdir", "symlink", "symlinkat", "unlink", "unlinkat", "utimensat")  # fmt: skip

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000  # every kind of namespace
_PROT_WRITE, _PROT_EXEC = 2, 4
_PR_GET_NAME, _PR_SET_NAME, _PR_SET_VMA = 16, 15, 0x53564D41
_FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451
_TCGETS, _TCGETS2 = 0x5401, 0x802C542A  # Python asks each file that it opens whether it is a terminal

PROFILE = Profile(
    allowed=frozenset((*_MEMORY, *_THREADS, *_SIGNALS, *_TIME, *_BYTES, *_SEGMENTS, *_NAMES, *_NETWORK, *_WAITING,
                       *_WHERE, "pipe2")),  # pipe2: so that a process which may not be started is an error, no end
    checked={
        "clone": Check(0, (_CLONE_THREAD,), errno.EPERM, mask=_CLONE_THREAD | _CLONE_NEW),
        "ioctl": Check(1, (_TCGETS, _TCGETS2, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX), errno.ENOTTY),
        # Memory that can be run comes from files (modules that are loaded late), and was never written.
        "mmap": Check(2, (0, _PROT_WRITE, _PROT_EXEC), errno.EACCES, mask=_PROT_WRITE | _PROT_EXEC),
        "mprotect": Check(2, (0,), errno.EACCES, mask=_PROT_EXEC),
        "prctl": Check(0, (_PR_GET_NAME, _PR_SET_NAME, _PR_SET_VMA), errno.EINVAL),
        "prlimit64": Check(0, (0,), errno.EPERM),  # its own
        # Unix: servers behind a socket, and services that libc asks for names. Netlink: the host's own addresses.
        "socket": Check(0, (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK), errno.EAFNOSUPPORT),
    },
    # Threads yes, processes no: a profile of AWS that names a program to ask for keys finds that it cannot be run.
    refused={"fork": errno.EPERM, "vfork": errno.EPERM, **dict.fromkeys(_CHANGES, errno.EROFS)},
)  # fmt: skip
