"""Which layers a host gives: what is asked for, tried, seen and concluded.

The trial is an ordinary execution of a handler of ours that tries what each layer forbids. What
cannot be seen from inside is read from outside. It owns no process: the pool runs the trial.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sandbox.model import ALL_LAYERS, Call, Layer, PoolSettings, Reply

__all__ = [
    "TRIAL",
    "as_set_up",
    "judged",
    "not_tried",
    "seen_from_outside",
    "trial",
    "wanted",
]

TRIAL = str(Path(__file__).resolve().parent / "trial")
# These mean nothing without the first.
_NEEDS = {
    "private-root": ("mount-namespace",),
    "proc": ("pid-namespace",),
    "capabilities": ("user-namespace",),  # after setuid only a new one allows to empty the sets
    # landlock_restrict_self(2); and its rules are about the files of the private root.
    "landlock": ("no-new-privs", "private-root"),
    "seccomp": ("no-new-privs",),  # seccomp(2): or privileges that a child has not
    "network": ("network-namespace",),
}
_NAMESPACES = ("user", "pid", "mnt", "ipc", "uts", "net", "cgroup")


def wanted(settings: PoolSettings) -> tuple[frozenset[str], dict[str, str]]:
    """The layers to set up, and why the others are not."""
    names = frozenset(ALL_LAYERS) - settings.without
    problems = dict.fromkeys(settings.without, "left out by the settings")
    if not settings.ports and "network" in names:
        problems["network"] = "no ports are configured for it"
        names -= {"network"}
    for layer, needs in _NEEDS.items():
        for needed in needs:
            if needed not in names and layer in names:
                problems[layer] = f"it needs the layer {needed}"
                names -= {layer}
    return names, problems


def trial() -> Call:
    """The call that tries every layer from inside."""
    namespaces = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in _NAMESPACES}
    return Call(TRIAL, "attempts.py:attempt", input={"namespaces": namespaces})


def as_set_up(
    names: frozenset[str],
    problems: Mapping[str, str],
    required: frozenset[str],
    details: Mapping[str, str] | None = None,
) -> dict[str, Layer]:
    """The layers as far as setting them up tells."""
    found = {}
    for name in ALL_LAYERS:
        held = name in names and name not in problems
        detail = problems.get(name) or (details or {}).get(name, "set up")
        found[name] = Layer(name, held, name in required, detail)
    return found


def not_tried(
    names: frozenset[str], problems: Mapping[str, str], required: frozenset[str], reason: str
) -> dict[str, Layer]:
    """The layers of a host on which not even the trial could run."""
    rest = dict.fromkeys(ALL_LAYERS, f"not tried: {reason}")
    return as_set_up(names, {**rest, **problems}, required)


def judged(
    names: frozenset[str],
    problems: Mapping[str, str],
    required: frozenset[str],
    outside: Mapping[str, tuple[bool, str]],
    reply: Reply,
) -> dict[str, Layer]:
    """The layers after the trial: what was seen from outside, and what it found inside."""
    if reply.result is None or reply.result["outcome"] != "success":
        reason = f"the trial failed: {reply.message or reply.result}"
        return not_tried(names, problems, required, reason)
    found = {**outside, **reply.result["output"]}
    told = dict(problems)
    for name, (held, detail) in found.items():
        if not held:
            told.setdefault(name, detail)
    details = {name: detail for name, (_held, detail) in found.items()}
    return as_set_up(names, told, required, details)


def seen_from_outside(host_pid: int) -> dict[str, tuple[bool, str]]:
    """What /proc/PID/status (proc(5)) says of a child that is confined and alive."""
    try:
        text = Path(f"/proc/{host_pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    status = {
        name: value.split() for name, _, value in (x.partition(":") for x in text.split("\n"))
    }
    uids = status["Uid"]
    sets = {name: status[name][0] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
    return {
        "unprivileged-uid": ("0" not in uids, f"user {uids[1]} on the host"),
        "capabilities": (not any(int(x, 16) for x in sets.values()), f"bounding {sets['CapBnd']}"),
        "no-new-privs": (status.get("NoNewPrivs") == ["1"], "set"),
    }
