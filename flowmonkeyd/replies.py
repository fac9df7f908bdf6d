"""A sandbox's reply as a task's result: pure.

What comes from a handler is bytes from a stranger. The sandbox has parsed them; here they become a
result only when every part has the right shape, else the attempt ends with `INVALID_RESULT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.masking import Masks
from flowmonkeyd.model import NO_VALUE, Charge, Outcome, StepError, TaskResult, Wait, WaitKind
from sandbox.model import Denial, Ending, Reply, Traffic

__all__ = ["denial_text", "masked", "result_of"]

# The last moment RFC 3339 can write: the end of the year 9999.
_LATEST_MS = 253_402_300_799_999
_NAME_MAX = 300

_ERRORS = {
    Ending.TIMEOUT: "TIMEOUT",
    Ending.MEMORY: "MEMORY_LIMIT",
    Ending.CPU: "CPU_LIMIT",
    Ending.OUTPUT: "OUTPUT_TOO_LARGE",
    Ending.CRASH: "HANDLER_CRASHED",
    Ending.PROTOCOL: "INVALID_RESULT",
    Ending.UNAVAILABLE: "SANDBOX_UNAVAILABLE",
}


def result_of(
    reply: Reply, now_ms: int, charge: Charge | None = None, worker_id: str = "sandbox"
) -> TaskResult:
    """The result a reply amounts to; `charge` is what it costs, if a handler was reached. Pure."""
    if reply.ending is Ending.UNAVAILABLE:
        charge = None
    usage: dict[str, Any] = {
        "peakMemoryBytes": reply.usage.peak_memory_bytes,
        "cpuMs": reply.usage.cpu_ms,
    }
    if reply.traffic is not None:
        usage["network"] = _network(reply.traffic)
    made = partial(
        TaskResult,
        worker_id=worker_id,
        duration_ms=reply.usage.wall_ms,
        usage=usage,
        charge=charge,
    )
    if reply.ending is not Ending.RESULT or reply.result is None:
        retryable = reply.ending is not Ending.UNAVAILABLE
        error = StepError(_ERRORS.get(reply.ending, "INVALID_RESULT"), reply.message, retryable)
        return made(Outcome.ERROR, error=error)
    try:
        return _result(made, reply.result, now_ms)
    except (KeyError, TypeError, ValueError) as exc:
        error = StepError("INVALID_RESULT", f"the handler's answer is not a result: {exc}")
        return made(Outcome.ERROR, error=error)


def denial_text(denial: Denial) -> str:
    """A refused target as a line of the execution's log."""
    again = f" ({denial.count} times)" if denial.count > 1 else ""
    return _plain(f"network: refused {denial.target}: {denial.reason}{again}")


def masked(reply: Reply, masks: Masks) -> Reply:
    """The reply without the secrets that its handler was given. Its log lines are masked as they
    come."""
    traffic = reply.traffic
    if traffic is not None:
        contacts = tuple(replace(one, host=masks.text(one.host)) for one in traffic.contacts)
        denials = tuple(
            replace(one, target=masks.text(one.target), reason=masks.text(one.reason))
            for one in traffic.denials
        )
        traffic = replace(traffic, contacts=contacts, denials=denials)
    result = None if reply.result is None else masks.tree(reply.result)
    return replace(reply, result=result, message=masks.text(reply.message), traffic=traffic)


def _network(traffic: Traffic) -> dict[str, Any]:
    return {
        "contacts": [
            {
                "host": _plain(one.host),
                "address": one.address,
                "port": one.port,
                "connections": one.connections,
                "sentBytes": one.sent_bytes,
                "receivedBytes": one.received_bytes,
            }
            for one in traffic.contacts
        ],
        "denials": [
            {"target": _plain(one.target), "reason": one.reason, "count": one.count}
            for one in traffic.denials
        ],
        "dnsQueries": traffic.dns_queries,
        "sentBytes": traffic.sent_bytes,
        "receivedBytes": traffic.received_bytes,
    }


def _plain(text: str) -> str:
    """A name that a handler chose, as text that every table can keep."""
    return text[:_NAME_MAX].encode(errors="replace").decode()


def _result(made: Callable[..., TaskResult], answer: Mapping[str, Any], now_ms: int) -> TaskResult:
    jsontext.size_bytes(answer)  # ValueError for text that is no Unicode, such as a lone surrogate
    emitted = tuple((str(name), data) for name, data in answer.get("emitted", ()))
    outcome = answer["outcome"]
    if outcome == "success":
        return made(
            Outcome.SUCCESS,
            output=answer.get("output", NO_VALUE),
            next_step=_next(answer),
            updates=_object(answer.get("updates", {}), "updates"),
            emitted=emitted,
        )
    if outcome == "failure":
        error = _object(answer["error"], "error")
        return made(
            Outcome.FAILURE,
            error=StepError(
                _text(error["code"], 200),
                _text(error["message"], 16_384),
                error.get("retryable", True) is not False,
                error.get("details"),
            ),
            next_step=_next(answer),
            emitted=emitted,
        )
    if outcome == "wait":
        wait = _wait(_object(answer["wait"], "wait"), now_ms)
        return made(Outcome.WAIT, wait=wait, emitted=emitted)
    raise ValueError(f"unknown outcome {outcome!r:.100}")


def _wait(wait: Mapping[str, Any], now_ms: int) -> Wait:
    wake_at_ms = None
    if wait.get("durationMs") is not None:
        duration_ms = wait["durationMs"]
        if isinstance(duration_ms, bool) or not isinstance(duration_ms, int | float):
            raise TypeError("durationMs is not a number")
        if not 0 <= duration_ms < 2**47:
            raise ValueError("durationMs is out of range")
        wake_at_ms = now_ms + int(duration_ms)
    elif wait.get("until") is not None:
        wake_at_ms = max(0, _moment(wait["until"]))  # before 1970 is as over as 1970
        if wake_at_ms > _LATEST_MS:
            raise ValueError("`until` is after the year 9999")
    reason = None if wait.get("reason") is None else _text(wait["reason"], 1000)
    if wait.get("event") is not None:
        event = _text(wait["event"], 200)
        filters = wait.get("filter")
        if filters is not None:
            filters = _object(filters, "filter")
        return Wait(WaitKind.EVENT, wake_at_ms, reason, event, filters)
    kind = WaitKind.SIGNAL if wake_at_ms is None else WaitKind.TIME
    return Wait(kind, wake_at_ms, reason)


def _moment(until: Any) -> int:
    if isinstance(until, str):
        moment = datetime.fromisoformat(until)
        if moment.tzinfo is None:
            raise ValueError("`until` has no time zone")
        return int(moment.timestamp() * 1000)
    if isinstance(until, bool) or not isinstance(until, int | float):
        raise TypeError("`until` is neither a time nor milliseconds")
    return int(until)


def _next(answer: Mapping[str, Any]) -> Any:
    following = answer.get("next", NO_VALUE)
    if following is None or following is NO_VALUE or isinstance(following, str):
        return following
    raise TypeError("`next` is not a step id")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is not an object")
    return value


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is missing")
    return value[:longest]
