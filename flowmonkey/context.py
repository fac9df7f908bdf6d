"""The types of what a handler is given and gives back: for editors and type checkers.

Owns the names `Context`, `StatefulContext` and `Answer`, as protocols: what runs a handler has its
own objects, which fit them. Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

__all__ = ["Answer", "Checkpoints", "Context", "Log", "Pauses", "StatefulContext"]


class Answer(Protocol):
    """What `ctx.success`, `ctx.failure` and `ctx.wait` return; hand it back with `return`."""

    @property
    def value(self) -> dict[str, Any]:
        """The answer as it is sent."""
        ...


class Log(Protocol):
    """`ctx.log`; the fields are any JSON values and are kept beside the message."""

    def debug(self, message: object, **fields: Any) -> None:
        """Log for whoever looks for a fault."""

    def info(self, message: object, **fields: Any) -> None:
        """Log that something happened."""

    def warning(self, message: object, **fields: Any) -> None:
        """Log what someone should look at some day."""

    def error(self, message: object, **fields: Any) -> None:
        """Log what went wrong."""


class Context(Protocol):
    """Everything a handler may ask of the step it runs in."""

    @property
    def has_input(self) -> bool:
        """False when the step's selector found nothing: then the input is None."""
        ...

    @property
    def execution_id(self) -> str:
        """The execution that this step belongs to."""
        ...

    @property
    def flow_id(self) -> str:
        """The flow of that execution."""
        ...

    @property
    def step_id(self) -> str:
        """This step."""
        ...

    @property
    def tenant_id(self) -> str:
        """Whose execution it is."""
        ...

    @property
    def task_id(self) -> str:
        """The same however often this attempt is run: an idempotency key."""
        ...

    @property
    def attempt(self) -> int:
        """0, then 1 for the first retry."""
        ...

    @property
    def config(self) -> Any:
        """The step's `config` in the flow."""
        ...

    @property
    def context(self) -> Mapping[str, Any]:
        """The execution's context, read only; fetched when it is first read."""
        ...

    @property
    def secrets(self) -> Mapping[str, str]:
        """The secrets that the manifest declares."""
        ...

    @property
    def log(self) -> Log:
        """The execution's log."""
        ...

    def emit(self, event: str, data: Any = None) -> None:
        """Publish an event of the execution."""

    def update(self, key: str, value: Any) -> None:
        """Set a key of the context; applied only if the handler succeeds."""

    def success(self, output: Any = ..., *, next: str | None = ...) -> Answer:
        """An answer with an output, or none, and a step to go to instead of the flow's choice."""
        ...

    def failure(
        self, code: str, message: str, retryable: bool = True, details: Any = None
    ) -> Answer:
        """An answer that says no, with a code that the flow's retry policy can name."""
        ...

    def wait(
        self,
        *,
        duration_ms: int | None = None,
        until: datetime | str | int | None = None,
        event: str | None = None,
        filter: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Answer:
        """An answer that parks the execution for a time, until a time, or until an event."""
        ...


class Checkpoints(Protocol):
    """`ctx.checkpoint`: named values that outlive the process and the machine's restarts."""

    @property
    def TooLarge(self) -> type[Exception]:
        """What `save` raises when there is no room; left alone, it is the failure
        CHECKPOINT_TOO_LARGE."""
        ...

    def save(self, data: Any, name: str = "default") -> None:
        """Keep a JSON value or bytes under a name, in the place of what was there. Returns once it
        is on disk."""

    def load(self, name: str = "default", default: Any = None) -> Any:
        """What was saved last under that name, by this process or one before it."""

    def clear(self, name: str | None = None) -> None:
        """Forget what is saved under a name, or everything."""

    def names(self) -> list[str]:
        """The names under which something is saved."""
        ...


class Pauses(Protocol):
    """`ctx.pause`."""

    @property
    def by(self) -> str | None:
        """What ended the last pause: "event", "hand" or "time"; None before there was one."""
        ...

    def wait(
        self,
        reason: str,
        max_wait_ms: int | None = None,
        event: str | None = None,
        filter: Mapping[str, Any] | None = None,
        checkpoint: Any = ...,
    ) -> Any:
        """Stop, and stop the bill, until the event, a hand or the time; returns the event's data,
        None if there is none. `checkpoint` is saved as "default" in the same moment."""


class StatefulContext(Context, Protocol):
    """What a stateful handler is given: all of `Context`, and what lasts."""

    @property
    def checkpoint(self) -> Checkpoints:
        """What is saved."""
        ...

    @property
    def pause(self) -> Pauses:
        """Waiting that costs nothing."""
        ...

    def progress(self, percent: float, message: object = None) -> None:
        """Say how far it is, from 0 to 100; as often as one likes."""

    @property
    def cancelled(self) -> bool:
        """Whether the execution was cancelled: the process is killed soon."""
        ...

    @property
    def ttl_left_ms(self) -> int:
        """How much active time is left before it is killed."""
        ...

    @property
    def ttl_warned(self) -> bool:
        """Whether the end of that time is near."""
        ...

    def extend_ttl(self, ms: int) -> int:
        """Have more time, up to the manifest's hard ttl; returns what is left then."""
        ...
