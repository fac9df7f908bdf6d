"""How an execution ended, decided from the facts: pure functions, tested by table.

`classify` turns the facts of a death without a result into one of the closed set of endings;
`checked_result` accepts or refuses the shape of a result that a child sent.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any

from sandbox.model import Ending
from sandbox.wire import EMITS_MAX, ProtocolError

__all__ = ["FORBIDDEN_CALL", "Facts", "checked_result", "classify"]

FORBIDDEN_CALL = "the handler's process made a system call that no handler may make"

_CODE_MAX = 200
_TEXT_MAX = 64 * 1024
# Near the memory limit that is why: abort() ends so (with SIGSEGV or SIGILL where SIGABRT is
# ignored, as it is by process 1), so do a failed allocation in C and V8's own checks, and so ends
# what the kernel kills to have memory.
_ALLOCATION_DEATHS = (
    *(signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP),
    signal.SIGKILL,
)
_NEAR_LIMIT = 0.9
# The limit counts the clock's ticks, rusage the time run. On a busy CPU whoever is there at the
# tick pays for others who ran between two: 820 ms of rusage have been seen at a limit of 1000.
_CPU_SPENT = 0.5


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an execution that brought no result."""

    cause: Ending | None = None  # the pool ended it, or the child said why
    message: str = ""
    wait_status: int | None = None  # as wait4(2) gave it; None: never reaped
    over_memory: bool = False
    cpu_ms: int = 0
    cpu_limit_ms: int = 0
    peak_memory_bytes: int = 0
    memory_limit_bytes: int = 0
    full_bytes: int = 0  # a peak that is near the limit; 0: nine tenths of it
    wall_limit_ms: int = 0


def classify(facts: Facts) -> tuple[Ending, str]:
    """The ending and one line that says it."""
    if facts.over_memory:
        return Ending.MEMORY, f"used more than {facts.memory_limit_bytes >> 20} MiB of memory"
    if facts.cause is Ending.TIMEOUT:
        return Ending.TIMEOUT, f"ran longer than {facts.wall_limit_ms} ms"
    if facts.cause is not None:
        return facts.cause, facts.message
    if facts.wait_status is None:
        return Ending.UNAVAILABLE, "the fork server ended during the execution"
    code = os.waitstatus_to_exitcode(facts.wait_status)
    if code >= 0:
        return Ending.CRASH, f"the handler's process exited with status {code} without a result"
    number = -code
    spent = facts.cpu_ms >= _CPU_SPENT * facts.cpu_limit_ms > 0
    if number in (signal.SIGKILL, signal.SIGXCPU) and spent:
        return Ending.CPU, f"used more than {facts.cpu_limit_ms} ms of CPU time"
    if number == signal.SIGSYS:
        return Ending.CRASH, FORBIDDEN_CALL
    full = facts.full_bytes or _NEAR_LIMIT * facts.memory_limit_bytes
    near = facts.peak_memory_bytes >= full > 0
    if number in _ALLOCATION_DEATHS and near:
        return Ending.MEMORY, f"used more than {facts.memory_limit_bytes >> 20} MiB of memory"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return Ending.CRASH, f"the handler's process was killed by {name}"


def checked_result(value: Any) -> dict[str, Any]:
    """A result of the right shape, with unknown keys left out; raises ProtocolError."""
    _require(isinstance(value, dict), "a result must be an object")
    outcome = value.get("outcome")
    _require(outcome in ("success", "failure", "wait"), "unknown outcome")
    updates, emitted = value.get("updates", {}), value.get("emitted", [])
    _require(isinstance(updates, dict), "updates must be an object")
    _require(isinstance(emitted, list), "emitted must be a list")
    _require(len(emitted) <= EMITS_MAX, f"more than {EMITS_MAX} events")
    for event in emitted:
        _require(isinstance(event, list) and len(event) == 2, "an event is a name and data")
        _require(_is_text(event[0], _CODE_MAX), "an event's name must be a short text")
    result = {"outcome": outcome, "updates": updates, "emitted": emitted}
    if outcome == "success":
        if "output" in value:
            result["output"] = value["output"]
        if "next" in value:
            _require(value["next"] is None or _is_text(value["next"], _CODE_MAX), "bad next")
            result["next"] = value["next"]
    elif outcome == "failure":
        result["error"] = _checked_error(value.get("error"))
    else:
        result["wait"] = _checked_wait(value.get("wait"))
    return result


def _checked_error(error: Any) -> dict[str, Any]:
    _require(isinstance(error, dict), "a failure needs an error")
    _require(_is_text(error.get("code"), _CODE_MAX), "an error's code must be a short text")
    _require(_is_text(error.get("message", ""), _TEXT_MAX), "an error's message must be a text")
    retryable = error.get("retryable", True)
    _require(isinstance(retryable, bool), "retryable must be true or false")
    return {
        "code": error["code"],
        "message": error.get("message", ""),
        "retryable": retryable,
        "details": error.get("details"),
    }


def _checked_wait(wait: Any) -> dict[str, Any]:
    _require(isinstance(wait, dict), "a wait must be an object")
    checks = {
        "durationMs": lambda v: type(v) is int and 0 <= v < 2**53,
        "until": lambda v: (type(v) is int and 0 <= v < 2**53) or _is_text(v, _CODE_MAX),
        "event": lambda v: _is_text(v, _CODE_MAX),
        "filter": lambda v: isinstance(v, dict),
        "reason": lambda v: _is_text(v, _TEXT_MAX),
    }
    for name, value in wait.items():
        _require(name in checks and checks[name](value), f"bad {str(name)[:40]} in a wait")
    return dict(wait)


def _is_text(value: Any, size: int) -> bool:
    return isinstance(value, str) and len(value) <= size


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ProtocolError(message)
