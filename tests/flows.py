"""Flow documents in one line a step, and the handlers that tests run in them.

`flow(step("a", next="b"), step("b"))` is a document; the first step is the initial one. Handlers
that count are made afresh for each test, so that what they count is outside the database.
"""

from collections import Counter
from typing import Any

__all__ = ["Tally", "doc", "echo", "no", "parked", "step", "sub_flow", "wait_for_event"]


def step(
    id: str,
    type: str = "echo",
    *,
    next: str | None = None,
    fail: str | None = None,
    resume: str | None = None,
    input: Any = None,
    out: str | None = None,
    retry: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One step of a document; without an input selector it is given the whole context."""
    document: dict[str, Any] = {
        "id": id,
        "type": type,
        "input": {"type": "full"} if input is None else input,
        "config": config or {},
        "transitions": {"onSuccess": next, "onFailure": fail, "onResume": resume},
    }
    if out is not None:
        document["outputKey"] = out
    if retry is not None:
        document["retry"] = retry
    return document


def doc(*steps: dict[str, Any], id: str = "f", version: str = "1.0.0") -> dict[str, Any]:
    """A flow document of these steps."""
    return {
        "id": id,
        "version": version,
        "initialStepId": steps[0]["id"],
        "steps": {step["id"]: step for step in steps},
    }


def wait_for_event(id: str = "w", event: str = "go", **ways: Any) -> dict[str, Any]:
    """A wait-event step; `config` members besides the event come in `config`."""
    config = {"event": event, **ways.pop("config", {})}
    return step(id, "wait-event", config=config, **ways)


def sub_flow(id: str, flow_id: str, **ways: Any) -> dict[str, Any]:
    """A sub-flow step."""
    config = {"flowId": flow_id, **ways.pop("config", {})}
    return step(id, "sub-flow", config=config, **ways)


def echo(given: Any, ctx: Any) -> Any:
    """Puts out its input; nothing when there is none."""
    return ctx.success(given) if ctx.has_input else ctx.success()


def no(given: Any, ctx: Any) -> Any:
    """Fails as its configuration says."""
    config = ctx.config
    return ctx.failure(
        config.get("code", "NO"),
        config.get("message", "no"),
        retryable=config.get("retryable", True),
        details=config.get("details"),
    )


def parked(given: Any, ctx: Any) -> Any:
    """Waits for as long as its configuration says."""
    return ctx.wait(**ctx.config)


class Tally:
    """Counts its calls by execution, step and attempt, outside the database; fails the first
    `failures` calls of each step."""

    def __init__(self, failures: int = 0, code: str = "FLAKY") -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.attempts: list[int] = []
        self.task_ids: list[str] = []
        self._failures = failures
        self._code = code

    def __call__(self, given: Any, ctx: Any) -> Any:
        place = (ctx.execution_id, ctx.step_id)
        self.calls[place] += 1
        self.attempts.append(ctx.attempt)
        self.task_ids.append(ctx.task_id)
        if self.calls[place] <= self._failures:
            return ctx.failure(self._code, f"call {self.calls[place]}")
        return self.calls[place]

    @property
    def total(self) -> int:
        return sum(self.calls.values())
