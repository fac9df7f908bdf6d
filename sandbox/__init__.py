"""Untrusted Python in processes that can reach nothing: a library that knows nothing of flows.

`Pool` runs a `Call` in a fresh, confined process and always comes back with a `Reply`;
`HostedPool` has a process of its own do that. They import nothing of ours. Importing this package
costs nothing: what it names is loaded when it is first used, and a fork server uses none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox.host.hosted import HostedPool
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
    from sandbox.pool import Pool

__all__ = [
    "ALL_LAYERS",
    "DEFAULT_REQUIRED",
    "Call",
    "Contact",
    "Denial",
    "Egress",
    "Ending",
    "HostedPool",
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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    places = {"Pool": "sandbox.pool", "HostedPool": "sandbox.host.hosted"}
    module = importlib.import_module(places.get(name, "sandbox.model"))
    value = globals()[name] = getattr(module, name)
    return value
