"""Linux system calls that Python 3.11 lacks, one function each, with the kernel's own names.

How, never what for: the order in which these are used is `confine.py`'s. Every failure leaves by
one door, `_call`, as OSError with the call's name. Nothing here keeps state.
Sources: the man page of each call; numbers from the kernel's uapi headers.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

__all__ = [
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MNT_DETACH",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MOUNT_ATTR_RDONLY",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_REC",
    "MS_SLAVE",
    "SECCOMP_FILTER_FLAG_NEW_LISTENER",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    "Prepared",
    "close_range",
    "drop_capabilities",
    "fork",
    "fork_sharing_files",
    "keep_code_mapped",
    "landlock_abi",
    "landlock_add_path",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "last_error",
    "limit_malloc_arenas",
    "mount",
    "mount_setattr",
    "move_mount",
    "no_new_privs",
    "open_tree",
    "parent_death_signal",
    "pivot_root",
    "prepared_death_signal",
    "prepared_drop",
    "prepared_dumpable",
    "prepared_mount",
    "prepared_no_new_privs",
    "prepared_restrict_self",
    "prepared_seccomp",
    "prepared_setns",
    "prepared_unshare",
    "seccomp",
    "set_dumpable",
    "sethostname",
    "setns",
    "trim_malloc",
    "umount2",
    "unshare",
    "wipe",
]

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_FILES, _SIGCHLD = 0x400, 17
# linux/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_REC, MS_SLAVE = 0x4000, 0x80000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSYMFOLLOW = 0x8, 0x200000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 1, 4, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
# linux/capability.h: two 32-bit words of each set
_CAPABILITY_VERSION_3 = 0x20080522
# linux/seccomp.h
_SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 8, 32
# linux/landlock.h
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1
# sys/mman.h
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
# malloc.h
_M_ARENA_MAX = -8

# asm/unistd.h: these have one number on every architecture (added since 5.x) …
_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_CLOSE_RANGE, _NR_MOUNT_SETATTR = 428, 429, 436, 442
_NR_LANDLOCK_CREATE_RULESET, _NR_LANDLOCK_ADD_RULE, _NR_LANDLOCK_RESTRICT_SELF = 444, 445, 446
# … and these have not.
_NR_PIVOT_ROOT, _NR_SECCOMP, _NR_CLONE = {
    "x86_64": (155, 317, 56),
    "aarch64": (41, 277, 220),
}.get(os.uname().machine, (-1, -1, -1))

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: no release of the GIL, we have one thread
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_CAPSET_HEADER = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
_CAPSET_NOTHING = (ctypes.c_uint32 * 6)()
# Found once, not by every child again: ctypes looks for a name at its first use.
_fork, _unshare, _setns, _capset = _libc.fork, _libc.unshare, _libc.setns, _libc.capset
_unshare.argtypes, _setns.argtypes = [ctypes.c_int], [ctypes.c_int] * 2
_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clr", "propagation", "userns_fd")]


class _LandlockRuleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("fs", "net", "scoped")]


class _LandlockPathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def fork() -> int:
    """fork(2) without Python's hooks after a fork, which touch 200 pages: 0.4 ms of 0.5.

    For a process with one thread, whose interpreter is as good after it as before; the caller
    does what else must differ in the child (`random` has the same state in both).
    """
    return _call("fork", _fork())


def fork_sharing_files() -> int:
    """clone(2) with CLONE_FILES: a fork whose descriptors are the caller's, now and later.

    Like `fork`, and without libc's part of it too: for a child that soon calls `os._exit`.
    """
    return _call("clone", _syscall(_NR_CLONE, _CLONE_FILES | _SIGCHLD, None, None, None, None))


class Prepared(NamedTuple):
    """A call with its arguments, made before a fork: looking things up and making objects would
    copy pages in every child. Negative is failure, with the reason in `last_error`."""

    name: str
    call: Callable[[], int | None]


def last_error(name: str) -> OSError:
    """Why a prepared call of this name has failed."""
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2)"""
    _do(prepared_unshare(flags))


def prepared_unshare(flags: int) -> Prepared:
    """unshare(2)"""
    return Prepared("unshare", functools.partial(_unshare, flags))


def setns(fd: int, kind: int) -> None:
    """setns(2); entering a mount namespace also moves root and working directory to its root."""
    _do(prepared_setns(fd, kind))


def prepared_setns(fd: int, kind: int) -> Prepared:
    """setns(2)"""
    return Prepared("setns", functools.partial(_setns, fd, kind))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)"""
    _do(prepared_mount(source, target, kind, flags, data))


def prepared_mount(source: str, target: str, kind: str, flags: int, data: str = "") -> Prepared:
    """mount(2)"""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())
    name = f"mount {kind or 'flags'} on {target}"
    return Prepared(name, functools.partial(_mount, *arguments))


def umount2(target: str, flags: int) -> None:
    """umount2(2)"""
    _call(f"umount {target}", _libc.umount2(os.fsencode(target), ctypes.c_int(flags)))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)"""
    _call("pivot_root", _syscall(_NR_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)))


def open_tree(path: bytes | memoryview) -> int:
    """open_tree(2): a detached copy of the mount at `path`, without what is mounted below it.

    A memoryview (writable, ending in a zero byte) is used in place: no copy of it remains.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    text = path if isinstance(path, bytes) else (ctypes.c_char * len(path)).from_buffer(path)
    return _call("open_tree", _syscall(_NR_OPEN_TREE, _AT_FDCWD, text, ctypes.c_uint(flags)))


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attach a detached mount."""
    path = os.fsencode(target)
    done = _syscall(_NR_MOVE_MOUNT, fd, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)
    _call(f"move_mount to {target}", done)


def mount_setattr(fd: int, attributes: int) -> None:
    """mount_setattr(2) on the mount that `fd` refers to."""
    change = _MountAttr(attributes, 0, 0, 0)
    done = _syscall(
        _NR_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, ctypes.byref(change), ctypes.sizeof(change)
    )
    _call("mount_setattr", done)


def sethostname(name: bytes) -> None:
    """sethostname(2)"""
    _call("sethostname", _libc.sethostname(name, ctypes.c_size_t(len(name))))


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2): close every descriptor from `first` to `last`."""
    _call("close_range", _syscall(_NR_CLOSE_RANGE, first, ctypes.c_uint(last), 0))


def parent_death_signal(number: int) -> None:
    """PR_SET_PDEATHSIG: cleared by every later change of credentials, so set it after them."""
    _do(prepared_death_signal(number))


def prepared_death_signal(number: int) -> Prepared:
    """PR_SET_PDEATHSIG"""
    return _prepared_prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, number)


def set_dumpable(value: int) -> None:
    """PR_SET_DUMPABLE: 0 forbids ptrace and core dumps and gives /proc/self to root."""
    _do(prepared_dumpable(value))


def prepared_dumpable(value: int) -> Prepared:
    """PR_SET_DUMPABLE"""
    return _prepared_prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, value)


def no_new_privs() -> None:
    """PR_SET_NO_NEW_PRIVS"""
    _do(prepared_no_new_privs())


def prepared_no_new_privs() -> Prepared:
    """PR_SET_NO_NEW_PRIVS"""
    return _prepared_prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Empty the bounding, ambient, effective, permitted and inheritable sets (capabilities(7))."""
    for prepared in prepared_drop():
        _do(prepared)


def prepared_drop() -> list[Prepared]:
    """The same, all capabilities that this kernel knows; raises OSError if they cannot be told."""
    number = 0
    # EINVAL past the last capability that the kernel knows; 0 to 40 in Linux 6.x.
    while _prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        number += 1
    if number == 0:
        raise last_error("PR_CAPBSET_READ")
    return [
        *(_prepared_prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, n) for n in range(number)),
        _prepared_prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL),
        Prepared("capset", functools.partial(_capset, _CAPSET_HEADER, _CAPSET_NOTHING)),
    ]


def seccomp(program: bytes, flags: int = 0) -> int:
    """seccomp(2): install a classic BPF program (8 bytes an instruction) for good; returns the
    descriptor that SECCOMP_FILTER_FLAG_NEW_LISTENER asks for."""
    return _do(prepared_seccomp(program, flags))


def prepared_seccomp(program: bytes, flags: int = 0) -> Prepared:
    """seccomp(2)"""
    given = ctypes.byref(_SockFprog(len(program) // 8, program))
    arguments = (_NR_SECCOMP, _SECCOMP_SET_MODE_FILTER, ctypes.c_ulong(flags), given)
    return Prepared("seccomp", functools.partial(_syscall, *arguments))


def landlock_abi() -> int:
    """landlock_create_ruleset(2): the newest ABI that the kernel knows; ENOSYS, EOPNOTSUPP."""
    version = _LANDLOCK_CREATE_RULESET_VERSION
    return _call("landlock", _syscall(_NR_LANDLOCK_CREATE_RULESET, None, 0, version))


def landlock_create_ruleset(fs: int, net: int, scoped: int, words: int) -> int:
    """landlock_create_ruleset(2), with the first `words` of the three masks, as the ABI has."""
    masks = _LandlockRuleset(fs, net, scoped)
    done = _syscall(_NR_LANDLOCK_CREATE_RULESET, ctypes.byref(masks), words * 8, 0)
    return _call("landlock_create_ruleset", done)


def landlock_add_path(ruleset: int, allowed: int, fd: int) -> None:
    """landlock_add_rule(2): allow these accesses on and below what `fd` refers to."""
    rule = _LandlockPathBeneath(allowed, fd)
    kind = _LANDLOCK_RULE_PATH_BENEATH
    done = _syscall(_NR_LANDLOCK_ADD_RULE, ruleset, kind, ctypes.byref(rule), 0)
    _call("landlock_add_rule", done)


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2): for good; needs no_new_privs or CAP_SYS_ADMIN."""
    _do(prepared_restrict_self(ruleset))


def prepared_restrict_self(ruleset: int) -> Prepared:
    """landlock_restrict_self(2)"""
    call = functools.partial(_syscall, _NR_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    return Prepared("landlock_restrict_self", call)


def wipe(buffer: bytearray, size: int) -> None:
    """Overwrite the beginning of a buffer with zeros."""
    ctypes.memset((ctypes.c_char * size).from_buffer(buffer), 0, size)


def limit_malloc_arenas(count: int) -> None:
    """mallopt(3) M_ARENA_MAX: each arena of glibc reserves 64 MiB of address space."""
    mallopt = getattr(_libc, "mallopt", None)  # musl has none and needs none
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(count))


def trim_malloc() -> None:
    """malloc_trim(3): give back what was freed, which every fork would copy the mapping of."""
    trim = getattr(_libc, "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(ctypes.c_size_t(0))


def keep_code_mapped() -> None:
    """Have forks copy the page tables of programs and libraries too.

    The kernel leaves out those of a file's private mapping that was never written to
    (`vma_needs_copy` in mm/memory.c), and each child would fault on every page of code again. So
    one byte of each is written, as it was. What the host does not let be writable stays as it is,
    and without a `/proc` everything does.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8") as file:
            mappings = [line.split(maxsplit=5) for line in file]
    except OSError:
        return
    for span, access, _offset, _device, inode, *_path in mappings:
        if access not in ("r--p", "r-xp") or inode == "0":
            continue
        first, end = (int(text, 16) for text in span.split("-"))
        protection = _PROT_READ | (_PROT_EXEC if access == "r-xp" else 0)
        if _mprotect(first, end - first, protection | _PROT_WRITE) == 0:
            byte = ctypes.c_ubyte.from_address(first)
            byte.value = byte.value
            _call("mprotect", _mprotect(first, end - first, protection))


def _prepared_prctl(name: str, option: int, value: int) -> Prepared:
    return Prepared(name, functools.partial(_prctl, option, value, 0, 0, 0))


def _do(prepared: Prepared) -> int:
    return _call(prepared.name, prepared.call() or 0)


def _call(name: str, result: int) -> int:
    if result < 0:
        raise last_error(name)
    return result
