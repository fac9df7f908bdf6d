"""Landlock (landlock(7)): rules on files, TCP and signals that a process puts on itself for good.

Owns what a ruleset of ours says. `prepare` makes one in the fork server, once a profile; a child
only enforces it (one system call), as a step after no_new_privs and before the filter. It stands
behind the private root: even a host file that could be named could not be opened for writing or
executed. It never mounts, and it never widens what something else forbids.

A rule hangs on a file or folder and counts for everything below it, whatever is mounted there and
whenever that was; but what a mount covers is skipped on the way up, the mount point itself
included. So a writable tmpfs must be mounted on a folder *in* the one that has the rule.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from sandbox import linux

__all__ = ["abi", "enforce", "prepare", "shortcomings"]

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1

_READ = _READ_FILE | _READ_DIR
# No devices, no sockets, no pipes with names; REFER: links and moves between folders below it.
_CHANGE = _WRITE_FILE | _TRUNCATE | _REFER
_CHANGE |= _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# What each ABI brought (landlock(7)), and what is not held on an older one.
_SINCE = (
    (2, "moves between folders cannot be allowed: they all fail"),
    (3, "truncating a file is not refused"),
    (4, "TCP is not refused"),
    (5, "requests to devices (ioctl) are not refused"),
    (6, "abstract sockets and signals reach beyond the sandbox"),
)


def abi() -> int:
    """The kernel's Landlock version; 0: it has none, or it is switched off at boot (lsm=)."""
    try:
        return linux.landlock_abi()
    except OSError:
        return 0


def shortcomings(version: int) -> list[str]:
    """What a kernel of this ABI does not hold that a newer one would, in words."""
    return [text for since, text in _SINCE if version < since]


def prepare(
    read: Sequence[str | int],
    write: Sequence[str | int],
    execute: Sequence[str | int] = (),
    *,
    allow_tcp: bool = False,
) -> int:
    """A ruleset as a descriptor (close-on-exec); raises OSError.

    Each place is a path, or a descriptor of a file that has no path here. Below the places of
    `read` files can be read and listed, below `write` changed as well (files, folders, symbolic
    links), and of `execute` executed. `allow_tcp` lets connect; no TCP port can be bound in any
    case. Everything else is refused, as far as the kernel's ABI goes (`shortcomings`).
    """
    handled, tcp, scopes, words = _handled(linux.landlock_abi())
    if allow_tcp:
        tcp &= ~_CONNECT_TCP
    ruleset = linux.landlock_create_ruleset(handled, tcp, scopes, words)
    try:
        _allow(ruleset, read, _READ & handled)
        _allow(ruleset, write, (_READ | _CHANGE) & handled)
        _allow(ruleset, execute, (_READ | _EXECUTE) & handled)
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def enforce(ruleset: int) -> None:
    """Put the ruleset on this process and all that it makes, for good; raises OSError.

    Needs no_new_privs. The process can change no mounts from then on, but others can change
    its mounts.
    """
    linux.landlock_restrict_self(ruleset)


def _handled(version: int) -> tuple[int, int, int, int]:
    """All that an ABI can refuse: of files, of TCP, of scopes; and how many words these are."""
    files = (1 << 13) - 1
    if version >= 2:
        files |= _REFER
    if version >= 3:
        files |= _TRUNCATE
    if version >= 5:
        files |= _IOCTL_DEV
    tcp = _BIND_TCP | _CONNECT_TCP if version >= 4 else 0
    scopes = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    return files, tcp, scopes, 3 if scopes else 2 if tcp else 1


def _allow(ruleset: int, places: Iterable[str | int], accesses: int) -> None:
    for place in places:
        allowed = accesses
        fd = place if isinstance(place, int) else os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.stat(fd).st_mode):
                allowed &= _ON_FILES
            linux.landlock_add_path(ruleset, allowed, fd)
        finally:
            if fd != place:
                os.close(fd)
