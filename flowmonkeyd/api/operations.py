"""Health, metrics, the queue, and the description of the API itself."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd import __version__
from flowmonkeyd.api.requests import Api, answer
from flowmonkeyd.store import tasks

__all__ = ["health", "metrics", "queue", "version"]


async def health(api: Api, request: Request) -> Response:
    """Whether the daemon is ready; 503 while it is not."""
    shown = await api.vitals.health()
    return answer(shown, 200 if shown["status"] in ("ok", "degraded") else 503)


async def metrics(api: Api, request: Request) -> Response:
    """Prometheus text."""
    text = await api.vitals.metrics()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def version(api: Api, request: Request) -> Response:
    """The daemon's version and the versions of the API it speaks."""
    return answer({"version": __version__, "apiVersions": ["v1"]})


async def queue(api: Api, request: Request) -> Response:
    """Depth of the queue by handler type and priority."""
    rows = await api.engine.store.read(tasks.depth)
    now_ms = api.clock.now_ms()
    items = [
        {
            "handlerType": row["handler_type"],
            "priority": row["priority"],
            "queued": row["queued"],
            "leased": row["leased"],
            "oldestQueuedMs": _since(row["oldest_at_ms"], now_ms),
        }
        for row in rows
    ]
    totals = {name: sum(row[name] for row in rows) for name in ("queued", "leased")}
    return answer({"items": items, "totals": totals})


def _since(at_ms: int | None, now_ms: int) -> int | None:
    return None if at_ms is None else max(0, now_ms - at_ms)
