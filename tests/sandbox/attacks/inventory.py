"""What there is on a host at one moment, as far as a sandbox could have left it there.

Owns the list of places to look: processes, namespaces, descriptors, mounts, sockets, temporary
files, System V objects. Meant for a process in PID, mount, network and IPC namespaces of its own,
where nobody else makes any. It only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from pathlib import Path

__all__ = ["inventory", "left_since", "numbers"]

_PATIENCE_S = 5.0
_TEMP = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")
_TABLES = ("net/unix", "net/tcp", "net/tcp6", "net/udp", "net/udp6", "net/raw", "net/packet")
_SYSTEM_V = ("sysvipc/shm", "sysvipc/msg", "sysvipc/sem")


def inventory(ignore: Path) -> dict[str, dict[str, int]]:
    """For each kind of thing the names of what there is, and how many of each; `ignore` is a
    folder that the caller fills."""
    return {
        "processes": Counter(_processes()),
        "namespaces": Counter(_namespaces()),
        "descriptors": Counter(_descriptors()),
        "mounts": Counter(Path("/proc/self/mountinfo").read_text().splitlines()),
        "sockets": Counter(line for table in _TABLES for line in _lines(table)),
        "system V": Counter(line for table in _SYSTEM_V for line in _lines(table)),
        "files": Counter(_files(ignore)),
    }


async def left_since(before: dict[str, dict[str, int]], ignore: Path) -> dict[str, dict[str, int]]:
    """What there is more of than `before`, after a while: the last processes die by themselves."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while _difference(before, inventory(ignore)):  # noqa: ASYNC110  no event to await
                await asyncio.sleep(0.01)
    except TimeoutError:
        pass
    return _difference(before, inventory(ignore))


def _difference(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """What there is more of afterwards."""
    more = {kind: Counter(after[kind]) - Counter(before[kind]) for kind in after}
    return {kind: dict(names) for kind, names in more.items() if names}


def _processes() -> list[str]:
    """By number and name, and whether it is a zombie: one that slept before and runs now, or the
    other way round, is the same one."""
    found = []
    for pid in numbers("/proc"):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            zombie = " (zombie)" if state == "Z" else ""
            found.append(f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}{zombie}")
    return found


def _namespaces() -> set[str]:
    found = set()
    for pid in numbers("/proc"):
        for thread in numbers(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                folder = f"/proc/{pid}/task/{thread}/ns"
                found |= {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    return found


def numbers(folder: str) -> list[str]:
    """The processes or threads in there. One that ends between two looks is not left over."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(folder) if name.isdigit()]
    return []


def _descriptors() -> list[str]:
    """By kind: the numbers of sockets and pipes differ each time."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{name}")))
    return found


def _lines(table: str) -> list[str]:
    """Without the first column, an address or number that differs each time, and the inode."""
    with contextlib.suppress(OSError):
        rows = Path(f"/proc/{table}").read_text().splitlines()[1:]
        return [table + " " + " ".join(row.split()[1:6]) for row in rows]
    return []


def _files(ignore: Path) -> list[str]:
    found = []
    for top in _TEMP:
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if Path(folder, name) != ignore]
            found += [f"{folder}/{name}" for name in names + files]
    return found
