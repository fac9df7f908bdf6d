"""The `ctx` that a stateless Python handler is given.

Holds what the request said, collects what the handler wants to say (`emit`, `update`), and builds
its answers (`success`, `failure`, `wait`). It promises that what it accepts has the right shape,
with TypeError or ValueError in the handler for what has not. It does no I/O of its own: logging
and the late fetching of the context go through two functions that `runner` hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sandbox.wire import EMITS_MAX

__all__ = ["Answer", "Context", "Log", "Secrets"]

_NOTHING: Any = object()


class Answer:
    """What `ctx.success`, `ctx.failure` and `ctx.wait` return; hand it back with `return`."""

    __slots__ = ("value",)

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value


class Log:
    """`ctx.log.info("working", size=3)`; levels debug, info, warning, error."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._write = write

    def debug(self, message: object, **fields: Any) -> None:
        """Log for whoever looks for a fault."""
        self._write("debug", str(message), fields)

    def info(self, message: object, **fields: Any) -> None:
        """Log that something happened."""
        self._write("info", str(message), fields)

    def warning(self, message: object, **fields: Any) -> None:
        """Log what someone should look at some day."""
        self._write("warning", str(message), fields)

    def error(self, message: object, **fields: Any) -> None:
        """Log what went wrong."""
        self._write("error", str(message), fields)


class Secrets(Mapping[str, str]):
    """`ctx.secrets["apiKey"]`; shows names, never values, when printed."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"no secret {name!r}: not in handler.json, or not set") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<secrets {', '.join(self._values)}>"


class Context:
    """Everything a handler may ask of the step it runs in."""

    def __init__(
        self,
        request: dict[str, Any],
        write_log: Callable[[str, str, dict[str, Any]], None],
        fetch_context: Callable[[], dict[str, Any]],
    ) -> None:
        self.has_input: bool = request["has_input"]
        self.execution_id: str = request["execution_id"]
        self.flow_id: str = request["flow_id"]
        self.step_id: str = request["step_id"]
        self.attempt: int = request["attempt"]
        self.tenant_id: str = request["tenant_id"]
        self.task_id: str = request["task_id"]
        self.config: Any = request["config"]
        self.secrets = Secrets(request["secrets"])
        self.log = Log(write_log)
        self._fetch_context = fetch_context
        self._context: Mapping[str, Any] | None = None
        self._updates: dict[str, Any] = {}
        self._emitted: list[tuple[str, Any]] = []

    @property
    def context(self) -> Mapping[str, Any]:
        """The execution's context, read only; fetched when it is first read."""
        if self._context is None:
            self._context = MappingProxyType(self._fetch_context())
        return self._context

    def emit(self, event: str, data: Any = None) -> None:
        """Publish an event of the execution."""
        if len(self._emitted) == EMITS_MAX:
            raise ValueError(f"cannot emit more than {EMITS_MAX} events in one execution")
        self._emitted.append((_text("event", event), data))

    def update(self, key: str, value: Any) -> None:
        """Set a key of the context; applied only if the handler succeeds."""
        self._updates[_text("key", key)] = value

    def success(self, output: Any = _NOTHING, *, next: str | None = _NOTHING) -> Answer:
        """An answer with an output, or none, and a step to go to instead of the flow's choice."""
        answer: dict[str, Any] = {"outcome": "success"}
        if output is not _NOTHING:
            answer["output"] = output
        if next is not _NOTHING:
            answer["next"] = None if next is None else _text("next", next)
        return Answer(answer)

    def failure(
        self, code: str, message: str, retryable: bool = True, details: Any = None
    ) -> Answer:
        """An answer that says no, with a code that the flow's retry policy can name."""
        error = {
            "code": _text("code", code),
            "message": str(message),
            "retryable": bool(retryable),
            "details": details,
        }
        return Answer({"outcome": "failure", "error": error})

    def wait(
        self,
        *,
        duration_ms: int | None = None,
        until: Any = None,
        event: str | None = None,
        filter: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Answer:
        """An answer that parks the execution for a time, until a time, or until an event; with
        none of these, until somebody resumes it (by hand or with its resume token).

        `until` is ISO 8601 text, milliseconds since 1970 or a datetime. With an event, a time
        is how long to wait for it at most.
        """
        if duration_ms is not None and (type(duration_ms) is not int or duration_ms < 0):
            raise ValueError(f"cannot wait {duration_ms!r} ms: it must be a whole number from 0")
        if until is not None and hasattr(until, "isoformat"):
            until = until.isoformat()
        wait = {
            "durationMs": duration_ms,
            "until": until,
            "event": None if event is None else _text("event", event),
            "filter": None if filter is None else dict(filter),
            "reason": None if reason is None else str(reason),
        }
        kept = {name: value for name, value in wait.items() if value is not None}
        return Answer({"outcome": "wait", "wait": kept})

    def finished(self, returned: Any) -> dict[str, Any]:
        """The result of a handler that returned this."""
        if isinstance(returned, Answer):
            answer = dict(returned.value)
        elif returned is None:
            answer = {"outcome": "success"}
        else:
            answer = {"outcome": "success", "output": returned}
        return self.collected(answer)

    def collected(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer with the events and updates so far."""
        return {**answer, "updates": self._updates, "emitted": self._emitted}


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"cannot use {value!r} as {what}: it must be a text that is not empty")
    return value
