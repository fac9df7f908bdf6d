"""Untrusted Python in processes that can reach nothing: a library that knows nothing of flows.

`Pool` runs a `Call` in a fresh, confined process and always comes back with a `Reply`. It imports
the standard library and the binding to libseccomp, nothing of ours. Importing this package is
cheap: the pool and its parts are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.model import (
    ALL_LAYERS,
    DEFAULT_REQUIRED,
    Call,
    Contact,
    Denial,
    Egress,
    Ending,
    JsonText,
    Layer,
    Limits,
    LogLine,
    OnLog,
    Policy,
    PoolSettings,
    Refused,
    Reply,
    Reuse,
    Traffic,
    Usage,
)

if TYPE_CHECKING:
    from sandbox.pool import Pool

__all__ = [
    "ALL_LAYERS",
    "DEFAULT_REQUIRED",
    "Call",
    "Contact",
    "Denial",
    "Egress",
    "Ending",
    "JsonText",
    "Layer",
    "Limits",
    "LogLine",
    "OnLog",
    "Policy",
    "Pool",
    "PoolSettings",
    "Refused",
    "Reply",
    "Reuse",
    "Traffic",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name == "Pool":
        from sandbox.pool import Pool

        return Pool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
