"""A handler that does a little of everything, to warm up a fork server (`Runner.warm_up`)."""

from __future__ import annotations

from typing import Any

__all__ = ["handle"]


def handle(input: Any, ctx: Any) -> Any:
    """Return the input."""
    return {"given": input, "name": ctx.step_id}
