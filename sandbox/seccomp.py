"""The system calls that exist for a handler: one table with reasons, compiled to BPF once.

`compile_filter` is called by the pool's process through libseccomp; children install the bytes.
What is not in the table fails with EPERM (a clean exception beats a dead process); a call of
another architecture or of x32 kills the process. The table admits what CPython, its standard
library and numeric extensions need to compute: threads, but no processes, programs, sockets,
namespaces, mounts, keys, tracing or signals to others.
"""

from __future__ import annotations

import errno
import os
from typing import Any

__all__ = ["ALLOWED", "ARGUMENT_RULES", "UNIMPLEMENTED", "compile_filter", "compile_filters"]

ALLOWED: dict[str, str] = {
    "read and write what is open": "read write readv writev pread64 pwrite64 preadv pwritev "
    "lseek fsync fdatasync ftruncate fallocate copy_file_range sendfile close close_range "
    "dup dup2 dup3 pipe pipe2 getdents64 getdents",
    "open and look, within the private root": "open openat stat fstat lstat newfstatat statx "
    "statfs fstatfs access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir umask",
    "change files: only a private temp can be written": "mkdir mkdirat rmdir rename renameat "
    "renameat2 unlink unlinkat link linkat symlink symlinkat truncate chmod fchmod fchmodat "
    "fchmodat2 utime utimes utimensat futimesat",
    "memory": "brk mmap munmap mprotect mremap madvise msync membarrier",
    "threads of its own": "futex set_robust_list set_tid_address rseq gettid sched_yield "
    "sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max "
    "sched_get_priority_min getpriority getcpu exit exit_group",
    "who am I": "getpid getppid getuid geteuid getgid getegid getgroups getresuid getresgid "
    "getpgrp getpgid getsid uname sysinfo times getrusage getrlimit",
    "time": "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time alarm "
    "setitimer getitimer timerfd_create timerfd_settime timerfd_gettime restart_syscall",
    "signals that reach only itself": "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending "
    "rt_sigtimedwait rt_sigsuspend sigaltstack pause",
    "wait for several things (an event loop)": "poll ppoll select pselect6 epoll_create "
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2",
    "look at the socket pair that an event loop makes": "shutdown getsockname getpeername",
    "randomness": "getrandom",
    "children: it has none, so these only say so": "wait4 waitid",
}

# A fallback exists where these are not implemented; EPERM would be taken for a refusal.
UNIMPLEMENTED = "clone3 io_uring_setup io_uring_enter io_uring_register openat2 futex_waitv"

_CLONE_THREAD = 0x00010000
_CLONE_NEW_ANY = 0x7E020080  # every namespace flag of sched.h, CLONE_NEWTIME included
_AF_UNIX, _MSG_OOB = 1, 1
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_{G,S}ETFD, F_{G,S}ETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS FIONREAD FIONBIO FIONCLEX FIOCLEX
_SOCKOPT = (3, 4, 38, 39)  # SO_TYPE, SO_ERROR, SO_PROTOCOL, SO_DOMAIN
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_LOW_32 = 0xFFFFFFFF

# (call, reason, ((argument, mask, value), …)): allowed when all of its comparisons hold. The
# kernel reads only the low 32 bits of these arguments, so only those are compared
# (CVE-2019-10063 was a comparison of all 64).
ARGUMENT_RULES: list[tuple[str, str, tuple[tuple[int, int, int], ...]]] = [
    (
        "clone",
        "threads only: no process can be made, so none can outlive or impersonate the handler",
        ((0, _CLONE_THREAD | _CLONE_NEW_ANY, _CLONE_THREAD),),
    ),
    ("socketpair", "a private pair; no other address family", ((0, _LOW_32, _AF_UNIX),)),
    (
        "sendto",
        "over such a pair: no other peer, which a datagram may name; no urgent data "
        "(CVE-2025-38236); without sendmsg no descriptor in flight (CVE-2021-0920)",
        ((3, _MSG_OOB, 0), (4, 2**64 - 1, 0)),
    ),
    ("recvfrom", "the same from the other end", ((3, _MSG_OOB, 0),)),
    *(
        (
            "getsockopt",
            "no process behind a socket (SO_PEERPIDFD)",
            ((1, _LOW_32, 1), (2, _LOW_32, c)),
        )
        for c in _SOCKOPT
    ),
    ("prlimit64", "read limits of itself, never set", ((0, _LOW_32, 0), (2, 2**64 - 1, 0))),
    ("tgkill", "raise() in itself, which is process 1 of its namespace", ((0, _LOW_32, 1),)),
    *(("fcntl", "no locks, leases, owners or pipe sizes", ((1, _LOW_32, c),)) for c in _FCNTL),
    *(("ioctl", "no terminal input (TIOCSTI), no devices", ((1, _LOW_32, c),)) for c in _IOCTL),
    *(("prctl", "name a thread", ((0, _LOW_32, c),)) for c in _PRCTL),
]


def compile_filter() -> bytes:
    """The table as classic BPF for this machine's architecture; raises OSError without libseccomp.

    Takes about a tenth of a second, most of it ctypes looking for the library.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as exc:
        raise OSError(errno.ENOSYS, f"cannot compile the system call filter: {exc}") from exc
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    # 2: a binary tree over the numbers; installing it costs a third of a linear list.
    filter_.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    for names in ALLOWED.values():
        for name in names.split():
            _add(pyseccomp, filter_, pyseccomp.ALLOW, name)
    for name in UNIMPLEMENTED.split():
        _add(pyseccomp, filter_, pyseccomp.ERRNO(errno.ENOSYS), name)
    for name, _reason, comparisons in ARGUMENT_RULES:
        arguments = [
            pyseccomp.Arg(index, pyseccomp.MASKED_EQ, mask, value)
            for index, mask, value in comparisons
        ]
        _add(pyseccomp, filter_, pyseccomp.ALLOW, name, *arguments)
    descriptor = os.memfd_create("seccomp")
    with open(descriptor, "w+b") as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def _add(library: Any, filter_: Any, action: int, name: str, *arguments: Any) -> None:
    if library.resolve_syscall(library.Arch.NATIVE, name) == -1:
        return  # unknown to this libseccomp: stays refused
    filter_.add_rule(action, name, *arguments)


def compile_filters() -> dict[str, bytes]:
    """The program of every profile."""
    program = compile_filter()
    return {"python": program, "python+network": program}
