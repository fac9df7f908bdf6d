"""The system calls that exist for a handler: one table with reasons, compiled to BPF.

`compile_filter` is called by the pool's process through libseccomp; children install the bytes.
A call is allowed (some only with certain arguments), refused with EPERM where ordinary libraries
try it (a clean exception beats a dead process), unknown (ENOSYS) where they have another way, and
kills the process where nobody tries it by accident: all that the table does not name, whatever
libseccomp does not know, other architectures, x32. Only what is newer than libseccomp is ENOSYS: a
newer libc may ask. Threads yes; no processes, programs, namespaces, mounts, keys or tracing.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ALLOWED",
    "ARGUMENT_RULES",
    "FATAL",
    "HARMLESS",
    "UNIMPLEMENTED",
    "Rule",
    "call_name",
    "compile_filter",
    "compile_filters",
    "describe",
    "rules_for",
    "without_user_namespaces",
]

ALLOWED: Mapping[str, str] = {
    "read and write what is open": "read write readv writev pread64 pwrite64 preadv pwritev "
    "lseek fsync fdatasync ftruncate fallocate copy_file_range sendfile fadvise64 close "
    "close_range dup dup2 dup3 pipe pipe2 getdents64 getdents",
    "open and look, within the private root": "open openat creat stat fstat lstat newfstatat "
    "statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir "
    "umask getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr",
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

# Refused with EPERM: what libraries and the standard libraries of Python and Node try.
HARMLESS: Mapping[str, str] = {
    "other processes and programs": "fork vfork execve execveat kill tkill setpgid setsid "
    "rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal get_robust_list",
    "the network, for a handler that has none": "socket connect sendmsg sendmmsg recvmsg "
    "recvmmsg setsockopt",
    "serving others": "bind listen accept accept4",
    "memory that can be executed or pinned": "memfd_create mlock mlock2 mlockall munlock "
    "munlockall mincore",
    "a larger share of the machine": "setpriority setrlimit sched_setaffinity sched_setparam "
    "sched_setscheduler sched_setattr sched_getattr sched_rr_get_interval ioprio_set ioprio_get "
    "mbind get_mempolicy set_mempolicy",
    "another identity": "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid "
    "setfsgid capget capset chown fchown lchown fchownat",
    "special files and attributes; waiting for the host's disks": "mknod mknodat setxattr "
    "lsetxattr fsetxattr removexattr lremovexattr fremovexattr sync syncfs sync_file_range "
    "readahead splice tee preadv2 pwritev2",
    "locks and watches on files that others share": "flock inotify_init inotify_init1 "
    "inotify_add_watch inotify_rm_watch",
    "objects of the kernel that outlive a process": "shmget shmat shmctl shmdt semget semop "
    "semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend "
    "mq_timedreceive mq_notify mq_getsetattr timer_create timer_settime timer_gettime "
    "timer_getoverrun timer_delete signalfd signalfd4",
    "the machine's clock and name": "settimeofday clock_settime adjtimex clock_adjtime "
    "sethostname setdomainname",
    "segments of the processor, set when a program starts": "arch_prctl",
}

# ENOSYS: a library that knows these asks for them first and has another way.
UNIMPLEMENTED: Mapping[str, str] = {
    "clone, whose flags can be seen": "clone3",
    "threads, epoll and plain reads": "io_uring_setup io_uring_enter io_uring_register io_setup "
    "io_destroy io_getevents io_pgetevents io_submit io_cancel",
    "the older calls": "openat2 futex_waitv futex_wake futex_wait futex_requeue cachestat "
    "setxattrat getxattrat listxattrat removexattrat file_getattr file_setattr",
    "memory without such protection": "pkey_alloc pkey_free pkey_mprotect memfd_secret mseal "
    "map_shadow_stack set_mempolicy_home_node",
    "no sandbox within the sandbox": "landlock_create_ruleset landlock_add_rule "
    "landlock_restrict_self lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    "/proc": "statmount listmount listns",
}

# These kill, as does every call that no part of the table names: nobody makes them by accident.
FATAL: Mapping[str, str] = {
    "other processes' memory and descriptors": "ptrace process_vm_readv process_vm_writev "
    "process_madvise process_mrelease pidfd_getfd kcmp migrate_pages move_pages",
    "namespaces, mounts and roots": "unshare setns mount umount2 pivot_root chroot mount_setattr "
    "open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick name_to_handle_at "
    "open_by_handle_at quotactl quotactl_fd",
    "keys": "add_key request_key keyctl",
    "programs in the kernel, and its counters": "bpf perf_event_open seccomp uretprobe uprobe "
    "lookup_dcookie syslog",
    "page faults served by the process, pages given away": "userfaultfd vmsplice remap_file_pages",
    "watches on whole file systems": "fanotify_init fanotify_mark",
    "other ways into the kernel": "personality modify_ldt iopl ioperm set_thread_area "
    "get_thread_area uselib _sysctl sysfs ustat",
    "the machine": "kexec_load kexec_file_load init_module finit_module delete_module "
    "create_module get_kernel_syms query_module reboot swapon swapoff acct vhangup",
    "numbers that stand for nothing any more": "nfsservctl getpmsg putpmsg afs_syscall tuxcall "
    "security vserver epoll_ctl_old epoll_wait_old",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`call` is allowed if all of its comparisons (argument, mask, value) hold, else EPERM.

    `only`: for handlers with network, or for Node.
    """

    call: str
    reason: str
    where: tuple[tuple[int, int, int], ...] = ()
    only: Literal["", "network", "node"] = ""


_LOW_32 = 0xFFFFFFFF  # the kernel reads no more of an int (CVE-2019-10063 compared all 64)
_ALL_64 = 2**64 - 1
_CLONE_THREAD = 0x00010000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEW_ANY = 0x7E020080  # every namespace flag of sched.h, CLONE_NEWTIME included
_AF_UNIX, _AF_INET, _AF_INET6, _MSG_OOB = 1, 2, 10, 1
_SOCK_STREAM, _SOCK_DGRAM, _TCP, _UDP = 1, 2, 6, 17
_SOCK_TYPE = _LOW_32 & ~0o2004000  # without SOCK_CLOEXEC, SOCK_NONBLOCK
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_{G,S}ETFD, F_{G,S}ETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS FIONREAD FIONBIO FIONCLEX FIOCLEX
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME
# By level, socket(7), tcp(7), ip(7), ipv6(7). No filters, no BINDTODEVICE, no TCP_ULP (kernel TLS).
_GETSOCKOPT = {1: (3, 4, 38, 39)}  # SO_TYPE, SO_ERROR, SO_PROTOCOL, SO_DOMAIN
_GETSOCKOPT_NETWORK = {
    1: (2, 7, 8, 9, 13, 20, 21, 30),  # …, SO_ACCEPTCONN
    6: (1, 4, 5, 6, 11, 12, 18),  # …, TCP_INFO
    41: (26,),
}
_SETSOCKOPT = {
    1: (7, 8, 9, 13, 20, 21),  # SO_SNDBUF SO_RCVBUF SO_KEEPALIVE SO_LINGER SO_{RCV,SND}TIMEO
    6: (1, 4, 5, 6, 12, 18),  # NODELAY KEEPIDLE KEEPINTVL KEEPCNT QUICKACK USER_TIMEOUT
    0: (1, 11),  # IP_TOS: Node 24; IP_RECVERR: glibc's resolver
    41: (25, 26, 67),  # IPV6_RECVERR, IPV6_V6ONLY, IPV6_TCLASS
}
_NODE_FD, _AT_EMPTY_PATH, _ARCH_SET_FS = 1000, 0x1000, 0x1002


def _each(
    call: str, reason: str, argument: int, values: tuple[int, ...], only: Any = ""
) -> list[Rule]:
    return [Rule(call, reason, ((argument, _LOW_32, value),), only) for value in values]


def _options(
    call: str, reason: str, options: Mapping[int, tuple[int, ...]], only: Any = ""
) -> list[Rule]:
    return [
        Rule(call, reason, ((1, _LOW_32, level), (2, _LOW_32, option)), only)
        for level, numbers in options.items()
        for option in numbers
    ]


ARGUMENT_RULES: list[Rule] = [
    Rule(
        "clone",
        "threads only: no process can be made, so none can outlive or impersonate the handler",
        ((0, _CLONE_THREAD | _CLONE_NEW_ANY, _CLONE_THREAD),),
    ),
    Rule(
        "socketpair",
        "a private stream; no other family, and no datagrams, which may name another peer",
        ((0, _LOW_32, _AF_UNIX), (1, _SOCK_TYPE, _SOCK_STREAM)),
    ),
    Rule(
        "sendto",
        "over such a pair: no other peer; no urgent data (CVE-2025-38236); without sendmsg no "
        "descriptor in flight (CVE-2021-0920)",
        ((3, _MSG_OOB, 0), (4, _ALL_64, 0)),
    ),
    Rule("recvfrom", "the same from the other end", ((3, _MSG_OOB, 0),)),
    *_options("getsockopt", "no process behind a socket (SO_PEERPIDFD)", _GETSOCKOPT),
    Rule("prlimit64", "read limits of itself, never set", ((0, _LOW_32, 0), (2, _ALL_64, 0))),
    Rule("tgkill", "raise() in itself, which is process 1 of its namespace", ((0, _LOW_32, 1),)),
    *_each("fcntl", "no locks, leases, owners or pipe sizes", 1, _FCNTL),
    *_each("ioctl", "no terminal input (TIOCSTI), no devices", 1, _IOCTL),
    *_each("prctl", "name a thread", 0, _PRCTL),
    # Every way out ends at the gateway, which judges the address; here only what clients do.
    *(
        Rule(
            "socket",
            "TCP and UDP over IP, what clients use; no other protocol or family",
            ((0, _LOW_32, family), (1, _SOCK_TYPE, kind), (2, _LOW_32, protocol)),
            "network",
        )
        for family in (_AF_INET, _AF_INET6)
        for kind, protocol in (
            (_SOCK_STREAM, 0),
            (_SOCK_STREAM, _TCP),
            (_SOCK_DGRAM, 0),
            (_SOCK_DGRAM, _UDP),
        )
    ),
    Rule("connect", "to the gateway, whatever the address", (), "network"),
    Rule("sendto", "datagrams name their peer", ((3, _MSG_OOB, 0),), "network"),
    *(
        Rule(call, "resolvers and asyncio use it; no urgent data", ((n, _MSG_OOB, 0),), "network")
        for call, n in (("sendmsg", 2), ("recvmsg", 2), ("sendmmsg", 3), ("recvmmsg", 3))
    ),
    *_options("setsockopt", "what clients tune; nothing that runs code", _SETSOCKOPT, "network"),
    *_options("getsockopt", "the same, read", _GETSOCKOPT_NETWORK, "network"),
    # After it the descriptor is closed, and RLIMIT_NOFILE is below it: there is no second time.
    Rule(
        "execveat",
        "become Node, which the fork server holds open",
        ((0, _LOW_32, _NODE_FD), (4, _LOW_32, _AT_EMPTY_PATH)),
        "node",
    ),
    Rule(
        "arch_prctl", "a program's start: its thread pointer", ((0, _LOW_32, _ARCH_SET_FS),), "node"
    ),
]

_LAST = 1023  # no architecture of ours has had a number above 500
_X32 = 0x40000000
_ARCHITECTURES = {"x86_64": "X86_64", "aarch64": "AARCH64"}
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06  # linux/bpf_common.h
_AT_NUMBER, _AT_ARCHITECTURE = 0, 4  # struct seccomp_data


def rules_for(runtime: str, network: bool) -> list[Rule]:
    """The argument rules of one profile."""
    words = {"", runtime} | ({"network"} if network else set())
    return [rule for rule in ARGUMENT_RULES if rule.only in words]


def compile_filter(
    runtime: Literal["python", "node"] = "python",
    network: bool = False,
    architecture: str | None = None,
) -> bytes:
    """The table as classic BPF, for this machine's architecture or another (x86_64, aarch64).

    Raises OSError without libseccomp, or for another architecture. Takes some ten milliseconds;
    the first call in a process a tenth of a second, most of it ctypes looking for the library.
    """
    pyseccomp = _library()
    machine = architecture or os.uname().machine
    if machine not in _ARCHITECTURES:
        reason = f"cannot compile the system call filter: there is no table for {machine}"
        raise OSError(errno.ENOSYS, reason)
    token = getattr(pyseccomp.Arch, _ARCHITECTURES[machine])
    known = {name: number for number, name in _numbers(pyseccomp, token)}
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    if token != pyseccomp.system_arch():
        filter_.add_arch(token)
        filter_.remove_arch(pyseccomp.system_arch())
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    # 2: a binary tree over the numbers; installing it costs a third of a linear list.
    filter_.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    rules = rules_for(runtime, network)
    unruled = {rule.call for rule in ARGUMENT_RULES} | set(_names(HARMLESS))  # EPERM by default
    allowed, absent = set(_names(ALLOWED)), set(_names(UNIMPLEMENTED))
    for name in known:
        if name in allowed:
            filter_.add_rule(pyseccomp.ALLOW, name)
        elif name in absent:
            filter_.add_rule(pyseccomp.ERRNO(errno.ENOSYS), name)
        elif name not in unruled:
            filter_.add_rule(pyseccomp.KILL_PROCESS, name)
    for rule in rules:
        if rule.call in known:
            where = [pyseccomp.Arg(n, pyseccomp.MASKED_EQ, m, v) for n, m, v in rule.where]
            filter_.add_rule(pyseccomp.ALLOW, rule.call, *where)
    return _unknown_numbers(pyseccomp, token, sorted(known.values())) + _exported(filter_)


def compile_filters(kinds: Iterable[str] | None = None) -> dict[str, bytes]:
    """The programs of these profiles (None: of every one), for this machine; raises like
    `compile_filter`."""
    return {
        kind: compile_filter(runtime, network)
        for runtime in ("python", "node")
        for network in (False, True)
        if (kind := runtime + ("+network" if network else "")) in (kinds or (kind,))
    }


def call_name(number: int, token: int) -> str:
    """A call's name for people, by its number and the architecture (AUDIT_ARCH_*) it is of."""
    library = _library()
    try:
        return str(library.resolve_syscall(token, number).decode())
    except ValueError:
        own = "" if token == library.system_arch() else f" of architecture {token:#x}"
        return f"{number:#x}{own}"


def without_user_namespaces() -> bytes:
    """A filter that refuses nothing but new user namespaces: a poorer host, for the probe.

    Raises OSError without libseccomp.
    """
    library = _library()
    filter_ = library.SyscallFilter(library.ALLOW)
    for name in ("unshare", "clone"):
        new_user = library.Arg(0, library.MASKED_EQ, _CLONE_NEWUSER, _CLONE_NEWUSER)
        filter_.add_rule(library.ERRNO(errno.EPERM), name, new_user)
    filter_.add_rule(library.ERRNO(errno.ENOSYS), "clone3")
    return _exported(filter_)


def describe(runtime: str, network: bool) -> list[str]:
    """The policy of a profile in words, a line for each group of calls."""
    lines = [f"allowed: {reason}: {names}" for reason, names in ALLOWED.items()]
    rules = rules_for(runtime, network)
    for call in dict.fromkeys(rule.call for rule in rules):
        reasons = dict.fromkeys(rule.reason for rule in rules if rule.call == call)
        lines.append(f"allowed by its arguments: {call}: {'; '.join(reasons)}")
    for verdict, table in (
        ("refused (EPERM)", HARMLESS),
        ("unknown (ENOSYS)", UNIMPLEMENTED),
        ("kills", FATAL),
    ):
        lines += [f"{verdict}: {reason}: {names}" for reason, names in table.items()]
    return [*lines, "kills: every other call, x32, calls of other architectures"]


def _library() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as exc:
        raise OSError(errno.ENOSYS, f"cannot compile the system call filter: {exc}") from exc
    return pyseccomp


def _exported(filter_: Any) -> bytes:
    with open(os.memfd_create("seccomp"), "w+b") as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def _names(table: Mapping[str, str]) -> Iterator[str]:
    for names in table.values():
        yield from names.split()


def _numbers(library: Any, token: int) -> Iterator[tuple[int, str]]:
    for number in range(_LAST + 1):
        try:
            yield number, library.resolve_syscall(token, number).decode()
        except ValueError:
            pass  # not known to this libseccomp


def _unknown_numbers(library: Any, token: int, known: list[int]) -> bytes:
    """Instructions to run first: what libseccomp has no name for never gets to its program.

    A number in a gap between known ones kills, one above all of them is ENOSYS, and one with bit
    30 or 31, which is how x32 begins, kills. Another architecture is left to the program.
    """
    pairs = itertools.pairwise(known)
    # What is below the first gap, as nearly all calls are, takes four instructions.
    gaps = [(low + 1, high - 1) for low, high in pairs if high - low > 1]
    kill, absent = library.KILL_PROCESS, library.ERRNO(errno.ENOSYS)
    body: list[tuple[int, int, int | None, int]] = []
    for low, high in gaps:
        body += [(_AT_LEAST, 0, None, low), (_GREATER, 1, 0, high), (_RETURN, 0, 0, kill)]
    body += [(_GREATER, 0, None, known[-1]), (_AT_LEAST, 1, 0, _X32)]
    body += [(_RETURN, 0, 0, absent), (_RETURN, 0, 0, kill)]
    program = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_EQUAL, 0, None, token),
        (_LOAD, 0, 0, _AT_NUMBER),
        *body,
    ]
    code = b""
    for at, (operation, jump_true, jump_false, value) in enumerate(program):
        if jump_false is None:  # on to libseccomp's program
            jump_false = len(program) - at - 1
        code += struct.pack("=HBBI", operation, jump_true, jump_false, value)
    return code
