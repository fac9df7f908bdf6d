"""Podman's list of containers, with those that only its storage knows, as plain values."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flowmonkeyd.podman.libpod import Libpod

__all__ = ["Listed", "containers"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One container. `pid` is 0 when it does not run; `age_s` is by the clock on the wall, and
    infinite without a date."""

    id: str
    name: str
    pid: int
    labels: Mapping[str, str]
    age_s: float
    started_ms: int

    @property
    def instance(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("-")[2]


async def containers(libpod: Libpod) -> list[Listed]:
    """All there are, ours and those of image builds. Raises ContainerError."""
    params = {"all": "true", "external": "true"}
    return [_read(one) for one in await libpod.call("GET", "/containers/json", params, again=True)]


def _read(one: Mapping[str, Any]) -> Listed:
    return Listed(
        id=str(one["Id"]),
        name=str((one.get("Names") or [""])[0]),
        pid=int(one.get("Pid") or 0),
        labels=one.get("Labels") or {},
        age_s=_age_s(str(one.get("Created"))),
        started_ms=max(0, int(one.get("StartedAt") or 0)) * 1000,
    )


def _age_s(created: str) -> float:
    try:
        return time.time() - datetime.fromisoformat(f"{created[:19]}+00:00").timestamp()
    except ValueError:
        return float("inf")
