"""What bounds a handler where a layer is missing: words for an operator, one for each layer.

Most layers have no equal: they are required unless the operator says otherwise, and then nothing
is run without them. It decides nothing; `layers` says what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.model import ALL_LAYERS, Layer

__all__ = ["STAND_INS", "described"]

_NOTHING = "nothing: do not run code of strangers here"

# By layer: who carries its duty when it is missing and was not required.
STAND_INS: Mapping[str, str] = dict.fromkeys(ALL_LAYERS, _NOTHING) | {
    "user-namespace": "its own user id, emptied capabilities and no-new-privs",
    "ipc-namespace": "the system call filter, which has no message queues or shared segments",
    "uts-namespace": "nothing: the host's name is shown, and that is all",
    "network-namespace": "the system call filter, which opens no sockets; no handler gets network",
    "cgroup-namespace": "the private root, in which no control group can be seen",
    "private-root": "landlock, where it holds: names of host files can be seen, not the content",
    "proc": "the private root without any /proc",
    "unprivileged-uid": "the user namespace, in which that id owns nothing",
    "one-core": "the CPU-time limit, over all cores together",
    "capabilities": "the unprivileged user id and no-new-privs",
    "landlock": "the private root alone: what is not in it cannot be named",
    "seccomp": "namespaces and rlimits; the kernel's whole surface is open",
    "memory-watchdog": "rlimits on address space, and the control group where there is one",
    "cgroup": "memory by rlimits and a watchdog, threads by rlimits, CPU by one core and a limit "
    "of CPU time; shares of less than a core are not kept",
    "network": "handlers that ask for network are refused",
}


def described(layer: Layer) -> dict[str, Any]:
    """A layer as plain values, with what stands in for it where it is missing."""
    return {
        "name": layer.name,
        "available": layer.available,
        "required": layer.required,
        "detail": layer.detail,
        "instead": None if layer.available else STAND_INS[layer.name],
    }
