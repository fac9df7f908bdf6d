"""Try what each layer forbids, from inside, and say what happened.

Runs as an ordinary handler in an ordinary execution: what it cannot do, no handler can. Returns
`{layer: [held, detail]}`; it judges only what can be seen from inside.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from typing import Any


def attempt(input: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Every attempt, each in a line; `input` has the pool's own view to compare with."""
    outside = input["namespaces"]
    found: dict[str, list[Any]] = {}
    for layer, kind in (
        ("user-namespace", "user"),
        ("pid-namespace", "pid"),
        ("mount-namespace", "mnt"),
        ("ipc-namespace", "ipc"),
        ("uts-namespace", "uts"),
        ("network-namespace", "net"),
        ("cgroup-namespace", "cgroup"),
    ):
        found[layer] = _other_namespace(kind, outside.get(kind))
    found["private-root"] = [
        not _works(lambda: os.listdir("/var")) and not _works(lambda: _write("/usr/x")),
        "/ has " + " ".join(sorted(os.listdir("/"))),
    ]
    found["proc"] = [
        [n for n in os.listdir("/proc") if n.isdigit()] == [str(os.getpid())]
        and not os.path.exists("/proc/meminfo"),
        "/proc shows process " + " ".join(n for n in os.listdir("/proc") if n.isdigit()),
    ]
    cpus = os.sched_getaffinity(0)
    found["one-core"] = [len(cpus) == 1, f"runs on CPU {sorted(cpus)}"]
    space = resource.getrlimit(resource.RLIMIT_AS)[1]
    found["rlimits"] = [
        space != resource.RLIM_INFINITY,
        f"address space {space >> 20} MiB" if space > 0 else "unlimited address space",
    ]
    found["landlock"] = [
        not _works(lambda: os.close(os.open("/dev/zero", os.O_WRONLY))),
        "nothing but temp opens for writing",
    ]
    found["seccomp"] = [
        not _works(_fork)
        and not _works(lambda: socket.socket(socket.AF_VSOCK))
        and not _works(lambda: socket.socket(socket.AF_UNIX)),
        "no process, no socket",
    ]
    return found


def _other_namespace(kind: str, outside: str | None) -> list[Any]:
    try:
        inside = os.readlink(f"/proc/self/ns/{kind}")
    except OSError as exc:
        return [False, f"cannot look: {exc.strerror}"]
    return [inside != outside, inside]


def _works(action: Callable[[], Any]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _write(path: str) -> None:
    with open(path, "w"):
        pass
