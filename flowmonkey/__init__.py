"""The authoring library for handlers in Python: what a handler's file may import.

Owns `Handler`, the class that says what a handler takes, and `Input`, which declares one such
thing. A package carries its own copy of these files (a daemon knows nothing of them), so they need
the standard library only and import as little as they can: that is every execution's start-up
time. The same in JavaScript is the folder `node`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowmonkey.declared import Handler, Input, env

if TYPE_CHECKING:
    from flowmonkey.context import Answer, Context, StatefulContext

__all__ = ["Answer", "Context", "Handler", "Input", "StatefulContext", "env"]


def __getattr__(name: str) -> Any:
    """What is for annotations; most runs never need it."""
    if name in ("Answer", "Context", "StatefulContext"):
        from flowmonkey import context

        return getattr(context, name)
    raise AttributeError(f"module 'flowmonkey' has no attribute {name!r}")
