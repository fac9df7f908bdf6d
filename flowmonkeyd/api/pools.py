"""What runs handlers, and what a handler may do here: functions and their shapes."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd.api.catalog import handler_of
from flowmonkeyd.api.requests import Api, answer
from flowmonkeyd.api.wire import Shape
from flowmonkeyd.documents.manifest import parse_manifest
from flowmonkeyd.errors import NotFound
from flowmonkeyd.terms import terms_json

__all__ = [
    "CheckpointTermsShape",
    "NetworkTermsShape",
    "PoolShape",
    "PoolsShape",
    "ReuseShape",
    "StartsShape",
    "StatefulTermsShape",
    "TermsShape",
    "TtlTermsShape",
    "WarmShape",
    "pools",
    "terms",
]


class PoolShape(Shape):
    """`spares` counts confined processes that wait, by profile; `kept` those that wait to be
    reused; `started`, `reused` and `crashed` executions since the start."""

    name: str
    slots: int
    busy: int
    waiting: int
    servers: int
    spares: dict[str, int]
    kept: int
    started: int
    reused: int
    crashed: int


class WarmShape(Shape):
    """Containers that wait, of one image, size and network class: how many there are and should
    be. A `hit` had one at once, a `miss` did not; `problem` is why none can be started."""

    name: str
    resources: str
    network: bool
    isGeneric: bool
    size: int
    starting: int
    target: int
    hits: int
    misses: int
    failures: int
    problem: str | None


class StartsShape(Shape):
    """How many jobs waited how long for a container, in ms: {"<=2": 5, ">5000": 1}."""

    warm: dict[str, int]
    cold: dict[str, int]


class PoolsShape(Shape):
    items: list[PoolShape]
    warm: list[WarmShape]
    starts: StartsShape


class NetworkTermsShape(Shape):
    """`allow` null is every global address."""

    ports: list[int]
    allow: list[str] | None
    deny: list[str]
    private: list[str]
    connections: int
    bytes: int
    dnsQueries: int


class ReuseShape(Shape):
    uses: int
    idleMs: int
    ageMs: int


class TtlTermsShape(Shape):
    defaultMs: int
    softMs: int
    hardMs: int


class CheckpointTermsShape(Shape):
    """`days` is how long they are kept after the job has ended."""

    intervalMs: int
    maxSize: int
    days: int


class StatefulTermsShape(Shape):
    """What only a stateful handler has. `image` is the runtime chosen for it when it was published;
    `pauseMaxMs` 0: it may not pause; `perSecond` dollars of active time, as text."""

    resources: Literal["light", "medium", "heavy", "gpu"]
    image: str | None
    ttl: TtlTermsShape
    checkpoint: CheckpointTermsShape
    pauseMaxMs: int
    maxAttempts: int
    heartbeatMs: int
    logBytesPerS: int
    warm: int
    perSecond: str


class TermsShape(Shape):
    """What a handler may do here; without `reuse`, each execution has a process of its own. Of a
    stateful one `threads` counts processes too, `wallMs` is active time; `cpuMs` and `logRate` are
    null."""

    type: str
    version: str
    runtime: Literal["python", "node"]
    wallMs: int
    cpuShare: float
    cpuMs: int | None
    memoryBytes: int
    threads: int
    openFiles: int
    outputBytes: int
    logBytes: int
    logRate: int | None
    filesystem: Literal["none", "readonly", "temp"]
    tempBytes: int
    secrets: list[str]
    network: NetworkTermsShape | None
    reuse: ReuseShape | None
    preload: bool
    stateful: StatefulTermsShape | None


async def pools(api: Api, request: Request) -> Response:
    """What runs handlers: slots, processes waiting and kept, and counts since the start."""
    return answer(await api.vitals.pools())


async def terms(api: Api, request: Request) -> Response:
    """What a handler may do here: its manifest within the daemon's settings. Without a version:
    the newest."""
    row = await handler_of(api, request.path_params["name"])
    manifest, image = parse_manifest(row.manifest), None
    if manifest.stateful is not None and api.builder is not None:
        with suppress(NotFound):
            image = await api.builder.runtime_for(row.digest)
    return answer(terms_json(manifest, api.settings, image))
