"""Flows and handlers: apply, publish, list, show, yank, deprecate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd import trust
from flowmonkeyd.api import publishers, wire
from flowmonkeyd.api.publishers import known, shown_handler
from flowmonkeyd.api.requests import (
    Api,
    Unsupported,
    answer,
    bounded,
    cursor,
    decode,
    page_of,
    peer,
    read_body,
    read_json,
)
from flowmonkeyd.builder import runtime_of
from flowmonkeyd.documents.manifest import Manifest
from flowmonkeyd.documents.text import parse_text
from flowmonkeyd.documents.versions import is_version, newest, sort_key
from flowmonkeyd.errors import Invalid, NotFound, Unavailable
from flowmonkeyd.model import Signed
from flowmonkeyd.store import catalog

__all__ = [
    "apply_flow",
    "deprecate",
    "handler_of",
    "list_flows",
    "list_handlers",
    "publish",
    "show_flow",
    "show_handler",
    "yank",
]

YAML = ("application/yaml", "application/x-yaml", "text/yaml")
ZIP = ("application/zip", "application/octet-stream")


async def apply_flow(api: Api, request: Request) -> Response:
    """Apply a flow document, JSON or YAML: 201 new, 200 unchanged, 409 other content."""
    if _media_type(request) in YAML:
        body = await read_body(request, api.settings.api.bodyBytesMax)
        document = await asyncio.to_thread(parse_text, body)  # YAML takes its time
    else:
        document = await read_json(request, api)
        if not isinstance(document, dict):
            raise Invalid("cannot accept the flow: the document must be an object")
    applied = await api.engine.apply_flow(document, peer(request))
    shown = {
        **wire.flow_json(applied.row, document=True),
        "created": applied.created,
        "warnings": wire.problems_json(applied.warnings),
    }
    return answer(shown, 201 if applied.created else 200)


async def list_flows(api: Api, request: Request) -> Response:
    """Flow versions in the order they were applied."""
    limit, after = bounded(request), page_of(request) or 0
    rows = await api.engine.store.read(lambda c: catalog.list_flows(c, after, limit + 1))
    more = cursor(rows[limit - 1].key) if len(rows) > limit else None
    return answer({"items": [wire.flow_json(row) for row in rows[:limit]], "nextCursor": more})


async def show_flow(api: Api, request: Request) -> Response:
    """A flow version with its document; without a version, the newest."""
    flow_id = request.path_params["id"]
    version = request.path_params.get("version")
    store = api.engine.store
    if version is None:
        version = newest(await store.read(lambda c: catalog.flow_versions(c, flow_id)), None)
    wanted = version or ""
    row = await store.read(lambda c: catalog.flow_row(c, flow_id, wanted))
    if row is None:
        name = f"{flow_id}@{wanted}" if wanted else flow_id
        raise NotFound(f"no flow {name!r}", code="FLOW_NOT_FOUND")
    return answer(wire.flow_json(row, document=True))


async def publish(api: Api, request: Request) -> Response:
    """Publish a handler package (a ZIP): 201 new, 200 identical, 409 other content."""
    kind = _media_type(request)
    if kind not in ZIP:
        raise Unsupported(f"cannot read {kind!r}: send application/zip")
    body = await read_body(request, api.settings.api.bodyBytesMax)
    keys = await known(api)

    runtime: str | None = None

    def judge(manifest: Manifest, files: Mapping[str, bytes]) -> Signed | None:
        nonlocal runtime
        if manifest.stateful is not None:
            runtime = runtime_of(manifest, files)
        return trust.check(manifest, files, keys, api.settings)

    received = await asyncio.to_thread(api.packages.receive, body, judge)
    manifest = received.manifest
    if manifest.stateful is not None:
        await _containers(api, manifest)
    row, created = await api.engine.publish(
        manifest.type,
        manifest.version,
        received.digest,
        received.manifest_json,
        received.size_bytes,
        peer(request),
        received.signed,
        runtime,
    )
    shown = {**wire.handler_json(row), "created": created, "warnings": []}
    return answer(shown, 201 if created else 200)


async def list_handlers(api: Api, request: Request) -> Response:
    """Handler versions in the order they were published."""
    limit, after = bounded(request), page_of(request) or 0
    rows = await api.engine.store.read(lambda c: catalog.list_handlers(c, after, limit + 1))
    more = cursor(rows[limit - 1].key) if len(rows) > limit else None
    return answer({"items": [wire.handler_json(r) for r in rows[:limit]], "nextCursor": more})


async def show_handler(api: Api, request: Request) -> Response:
    """A handler version; without a version, all of them, newest first."""
    handler_type, version = _name(request.path_params["name"])
    store = api.engine.store
    if version is not None:
        row = await store.read(lambda c: catalog.handler_row(c, handler_type, version))
        if row is None:
            raise NotFound(f"no handler {handler_type}@{version}", code="HANDLER_NOT_FOUND")
        return answer(await shown_handler(api, row))
    rows = await store.read(lambda c: catalog.handler_versions(c, handler_type))
    if not rows:
        raise NotFound(f"no handler {handler_type!r}", code="HANDLER_NOT_FOUND")
    rows.sort(key=lambda row: sort_key(row.version), reverse=True)
    start = page_of(request) or 0  # SemVer order is not the tables' to know: a place in the list
    end = start + bounded(request)
    more = cursor(end) if len(rows) > end else None
    return answer(
        {"items": [wire.handler_json(row) for row in rows[start:end]], "nextCursor": more}
    )


async def deprecate(api: Api, request: Request) -> Response:
    """Who uses a version is told the message from now on; null takes it back."""
    handler_type, version = _name(request.path_params["name"])
    if version is None:
        raise NotFound(f"no handler version in {request.path_params['name']!r}")
    body = decode(publishers.DEPRECATE, await read_json(request, api))
    row = await api.engine.deprecate(handler_type, version, body.message, peer(request))
    return answer(wire.handler_json(row))


async def yank(api: Api, request: Request) -> Response:
    """No new execution takes this version; those that have it go on."""
    handler_type, version = _name(request.path_params["name"])
    if version is None:
        raise NotFound(f"no handler version in {request.path_params['name']!r}")
    row = await api.engine.yank(handler_type, version, peer(request))
    return answer(wire.handler_json(row))


async def handler_of(api: Api, path: str) -> catalog.HandlerRow:
    """The version of a handler that a path names, or its newest one. Raises NotFound."""
    handler_type, version = _name(path)
    store = api.engine.store
    if version is None:
        rows = await store.read(lambda c: catalog.handler_versions(c, handler_type))
        version = newest([row.version for row in rows if row.yanked_at_ms is None], None)
    wanted = version or ""
    row = await store.read(lambda c: catalog.handler_row(c, handler_type, wanted))
    if row is None:
        name = f"{handler_type}@{wanted}" if wanted else handler_type
        raise NotFound(f"no handler {name!r}", code="HANDLER_NOT_FOUND")
    return row


async def _containers(api: Api, manifest: Manifest) -> None:
    """Raises Unavailable where containers cannot be run."""
    problem: str | None = "this daemon has none"
    if api.builder is not None:
        await api.builder.ready()
        problem = api.builder.problem
    if problem is not None:
        raise Unavailable(
            f"cannot publish {manifest.type}: it is stateful, and containers cannot be run on "
            f"this host: {problem}; see `flowctl status`",
            code="CONTAINERS_UNAVAILABLE",
        )


def _name(path: str) -> tuple[str, str | None]:
    """`acme/resize/1.2.0` and `acme%2Fresize/1.2.0` (decoded) are a type and a version."""
    head, _, tail = path.rpartition("/")
    return (head, tail) if head and is_version(tail) else (path, None)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
