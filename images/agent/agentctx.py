"""The `ctx` of a stateful Python handler: that of any handler, and checkpoints, progress, pauses.

Collects what the handler wants to say (`emit`, `update`) and builds its answers; what has to last
(a checkpoint, a pause, a longer time to live) is there when the call returns. What it accepts has
the right shape, with TypeError or ValueError in the handler for what has not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from agentblobs import Refused, pack, unpack
from agentjson import cut, decode
from agentline import Line
from agentlogs import Logs

TYPE_CHECKING = False  # typing itself would cost 0.6 MiB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["Answer", "CheckpointTooLarge", "Context"]

EMITS_MAX = 1000
NAME_MAX = 200
PROGRESS_S = 0.1  # so often at most it is told
_NOTHING: Any = object()


class Answer:
    """What `ctx.success`, `ctx.failure` and `ctx.wait` return; hand it back with `return`."""

    __slots__ = ("value",)

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value


class _Log:
    """`ctx.log.info("working", size=3)`; levels debug, info, warning, error."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._write = write

    def debug(self, message: object, **fields: Any) -> None:
        self._write("debug", str(message), fields)

    def info(self, message: object, **fields: Any) -> None:
        self._write("info", str(message), fields)

    def warning(self, message: object, **fields: Any) -> None:
        self._write("warning", str(message), fields)

    def error(self, message: object, **fields: Any) -> None:
        self._write("error", str(message), fields)


class _Secrets(Mapping[str, str]):
    """`ctx.secrets["apiKey"]`; shows names, never values, when printed."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"no secret {name!r}: declare it in handler.json") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<secrets {', '.join(self._values)}>"


class _Clock:
    """Active time of the job: the container's clock runs on while it is frozen, and is told how
    long that was."""

    def __init__(self, ttl: dict[str, Any]) -> None:
        self.ttl_ms: int = ttl["ttlMs"]
        self._since: float = time.monotonic() - ttl["activeMs"] / 1000

    def paused(self, paused_ms: int) -> None:
        self._since += paused_ms / 1000

    def active_s(self) -> float:
        return time.monotonic() - self._since


class CheckpointTooLarge(Refused):
    """A checkpoint has no room; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__("CHECKPOINT_TOO_LARGE", message, is_retryable=False)


class _Checkpoints:
    """`ctx.checkpoint`: named values that outlive this process."""

    TooLarge = CheckpointTooLarge

    def __init__(self, line: Line, about: dict[str, Any], pause: _Pauses) -> None:
        self._line = line
        self._max_bytes: int = about["maxSize"]
        self._sizes = {name: one["size"] for name, one in about["names"].items()}
        self._pause = pause

    def save(self, data: Any, name: str = "default") -> None:
        """Keep a JSON value or bytes under a name, in the place of what was there. Returns once it
        is on disk. Raises CheckpointTooLarge if all names together have more than `maxSize`."""
        head, blob = self.fitting(data, name)
        message = {"type": "checkpoint", "name": name, "settled": self._pause.is_settled, **head}
        _check(self._line.ask(message, blob))
        self._sizes[name] = len(blob)

    def load(self, name: str = "default", default: Any = None) -> Any:
        """What was saved last under that name, by this process or one before it."""
        answer, blob = self._line.fetch({"type": "load", "name": _name(name)})
        return unpack(answer, blob) if answer["found"] else default

    def clear(self, name: str | None = None) -> None:
        """Forget what is saved under a name, or everything."""
        name = None if name is None else _name(name)
        _check(self._line.ask({"type": "clear", "name": name}))
        if name is None:
            self._sizes.clear()
        else:
            self._sizes.pop(name, None)

    def names(self) -> list[str]:
        """The names under which something is saved."""
        return sorted(self._sizes)

    def fitting(self, data: Any, name: str) -> tuple[dict[str, Any], bytes]:
        """The data as it is sent. Raises CheckpointTooLarge."""
        head, blob = pack(data)
        others = sum(size for other, size in self._sizes.items() if other != _name(name))
        if others + len(blob) > self._max_bytes:
            raise CheckpointTooLarge(
                f"cannot save {len(blob)} bytes as {name!r}: with {others} under other names that "
                f"is more than the manifest's checkpoint.maxSize, {self._max_bytes}"
            )
        return head, blob

    def saved(self, name: str, size: int) -> None:
        self._sizes[name] = size


class _Pauses:
    """`ctx.pause`: `wait` stops the bill until something happens; `by` is what ended the last one
    ("event", "hand" or "time"), None before there was one."""

    def __init__(self, line: Line, task: dict[str, Any]) -> None:
        self.by: str | None = None
        self.checkpoints: Any = None
        self.before: Callable[[], None] = lambda: None
        self._line = line
        self._max_ms: int = task["pauseMaxMs"]
        self._resume: dict[str, Any] | None = task["resume"]  # not taken yet

    @property
    def is_settled(self) -> bool:
        """Whether the handler has what the job was resumed with."""
        return self._resume is None

    def wait(
        self,
        reason: str,
        max_wait_ms: int | None = None,
        event: str | None = None,
        filter: Mapping[str, Any] | None = None,
        checkpoint: Any = _NOTHING,
    ) -> Any:
        """Pause until the event, or a hand, or the time; returns the event's data, if it has any.

        `checkpoint` is saved as "default" in the same moment. The process may be gone in between:
        then the handler starts anew, and the same call returns at once with that data.
        """
        self._check(max_wait_ms)
        reason, event = cut(str(reason), 1000), None if event is None else _name(event)
        resume, self._resume = self._resume, None
        if resume and (resume["reason"], resume["event"]) == (reason, event):
            self.by = resume["by"]
            return resume["data"]
        head, blob = None, None
        if checkpoint is not _NOTHING:
            head, blob = self.checkpoints.fitting(checkpoint, "default")
            head["name"] = "default"
        self.before()
        answer = self._line.ask(
            {
                "type": "pause",
                "reason": reason,
                "maxWaitMs": max_wait_ms,
                "event": event,
                "filter": None if filter is None else dict(filter),
                "checkpoint": head,
            },
            blob,
        )
        _check(answer)
        if blob is not None:
            self.checkpoints.saved("default", len(blob))
        self.by = answer["by"]
        return answer["data"]

    def _check(self, max_wait_ms: int | None) -> None:
        if not self._max_ms:
            raise Refused(
                "PAUSE_NOT_ENABLED", "cannot pause: set execution.pause.enabled in handler.json"
            )
        if max_wait_ms is None:
            return
        if type(max_wait_ms) is not int or not 0 <= max_wait_ms <= self._max_ms:
            raise ValueError(
                f"cannot pause for {max_wait_ms!r} ms: it must be a whole number from 0 to the "
                f"manifest's pause.maxPauseDuration, {self._max_ms}"
            )


class _Progress:
    """`ctx.progress(percent, message)`, called as often as one likes."""

    def __init__(self, line: Line, clock: _Clock) -> None:
        self._line, self._clock = line, clock
        self._first: tuple[float, float] | None = None  # percent, at
        self._waiting: dict[str, Any] | None = None
        self._told = -PROGRESS_S

    def __call__(self, percent: float, message: object = None) -> None:
        """Say how far it is, from 0 to 100."""
        if isinstance(percent, bool) or not isinstance(percent, (int, float)) or percent != percent:
            raise TypeError(f"cannot use {percent!r} as percent: it must be a number")
        percent = min(100.0, max(0.0, float(percent)))
        text = None if message is None else cut(str(message), 1000)
        said = {"type": "progress", "percent": percent, "message": text}
        self._waiting = {**said, "etaMs": self._eta_ms(percent)}
        self.tick()

    def tick(self) -> None:
        """Tell the last one if it is time."""
        if self._waiting is not None and time.monotonic() - self._told >= PROGRESS_S:
            self.flush()

    def flush(self) -> None:
        """Tell the last one."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._told = time.monotonic()
            self._line.send(waiting)

    def _eta_ms(self, percent: float) -> int | None:
        """How long it takes if it goes on as it did since the first progress of this process."""
        now = self._clock.active_s()
        if self._first is None or percent < self._first[0]:
            self._first = (percent, now)
        done, since = percent - self._first[0], now - self._first[1]
        return int(1000 * since * (100 - percent) / done) if done > 0 and since > 0 else None


class Context:
    """Everything a handler may ask of the step it runs in."""

    def __init__(self, task: dict[str, Any], line: Line, logs: Logs) -> None:
        self.has_input: bool = task["hasInput"]
        self.execution_id: str = task["executionId"]
        self.flow_id: str = task["flowId"]
        self.step_id: str = task["stepId"]
        self.attempt: int = task["stepAttempt"]
        self.tenant_id: str = task["tenantId"]
        self.task_id: str = task["taskId"]
        self.config: Any = task["config"]
        self.secrets = _Secrets(task["secrets"])
        self.log = _Log(logs.call)
        self.pause = _Pauses(line, task)
        self.checkpoint = _Checkpoints(line, task["checkpoint"], self.pause)
        self.pause.checkpoints = self.checkpoint
        self.ttl_warned = False
        self._clock = _Clock(task["ttl"])
        self.progress = _Progress(line, self._clock)
        self.pause.before = self.progress.flush
        self._line = line
        self._context: Mapping[str, Any] | None = None
        self._updates: dict[str, Any] = {}
        self._emitted: list[tuple[str, Any]] = []
        line.on_ttl, line.on_resume = self._warn, self._clock.paused
        line.each_tick = self.progress.tick

    @property
    def cancelled(self) -> bool:
        """Whether the execution was cancelled: the process is killed soon."""
        return self._line.is_cancelled

    @property
    def ttl_left_ms(self) -> int:
        """How much active time is left before it is killed."""
        return max(0, int(self._clock.ttl_ms - 1000 * self._clock.active_s()))

    def extend_ttl(self, ms: int) -> int:
        """Have more time to live, up to the manifest's hard ttl; returns what is left then."""
        if type(ms) is not int or ms < 1:
            raise ValueError(f"cannot extend by {ms!r} ms: it must be a whole number from 1")
        answer = self._line.ask({"type": "extend", "ms": ms})
        _check(answer)
        self._clock.ttl_ms = answer["ttlMs"]
        self.ttl_warned = False
        return self.ttl_left_ms

    @property
    def context(self) -> Mapping[str, Any]:
        """The execution's context, read only; fetched when it is first read."""
        if self._context is None:
            _, text = self._line.fetch({"type": "context"})
            self._context = MappingProxyType(decode(text))
        return self._context

    def emit(self, event: str, data: Any = None) -> None:
        """Publish an event of the execution, with the result."""
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
        error = {"code": _text("code", code), "message": str(message)}
        return Answer(
            {
                "outcome": "failure",
                "error": {**error, "retryable": bool(retryable), "details": details},
            }
        )

    def wait(
        self,
        *,
        duration_ms: int | None = None,
        until: Any = None,
        event: str | None = None,
        filter: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Answer:
        """An answer that ends this job and parks the execution; to go on in it use `pause.wait`."""
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
            return self.collected(dict(returned.value))
        if returned is None:
            return self.collected({"outcome": "success"})
        return self.collected({"outcome": "success", "output": returned})

    def collected(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer with the events and updates so far."""
        return {**answer, "updates": self._updates, "emitted": self._emitted}

    def _warn(self, left_ms: int) -> None:
        """The line says that the time is nearly over; the daemon has it in the log."""
        self.ttl_warned = True


def _check(answer: dict[str, Any]) -> None:
    """Raise what an answer refuses."""
    if answer["type"] != "refused":
        return
    if answer["code"] == "CHECKPOINT_TOO_LARGE":
        raise CheckpointTooLarge(answer["message"])
    raise Refused(answer["code"], answer["message"])


def _name(value: Any) -> str:
    text = _text("name", value)
    if len(text) > NAME_MAX:
        raise ValueError(f"cannot use a name of {len(text)} characters: {NAME_MAX} are allowed")
    return text


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"cannot use {value!r} as {what}: it must be a text that is not empty")
    return value
