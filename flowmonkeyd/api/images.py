"""Images of stateful handlers: list, build, prune, what a build prints."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd.api import wire
from flowmonkeyd.api.catalog import handler_of
from flowmonkeyd.api.requests import (
    Api,
    Lines,
    answer,
    decode,
    operators_only,
    read_json,
)
from flowmonkeyd.builder import Builder
from flowmonkeyd.errors import Invalid, NotFound, Unavailable
from flowmonkeyd.store import images as table
from images.runtimes import RUNTIMES

__all__ = [
    "BuildBody",
    "HandlerNameShape",
    "ImageShape",
    "LineShape",
    "NamedShape",
    "PrunedShape",
    "build",
    "list_images",
    "log_of",
    "prune",
]


class BuildBody(wire.Body):
    """`name`: a runtime, a handler (TYPE or TYPE@VERSION), or `all` for every runtime. With `again`
    anew, from what the archives have now."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=300)]
    again: StrictBool = False


class HandlerNameShape(wire.Shape):
    type: str
    version: str
    yanked: bool


class ImageShape(wire.Shape):
    """`ownBytes` are those of its uppermost layer; `images` stand on it, `jobs` need it now."""

    name: str
    kind: Literal["runtime", "handler"]
    runtime: str
    handlers: list[HandlerNameShape]
    state: Literal["wanted", "building", "ready", "failed", "absent"]
    imageId: str | None
    sizeBytes: int
    ownBytes: int
    builtAt: str | None
    usedAt: str | None
    images: int
    jobs: int
    log: str | None


class NamedShape(wire.Shape):
    name: str


class LineShape(wire.Shape):
    """One of a build's log: a `line`, or at its end `state` and `imageId`."""

    line: str | None = None
    state: Literal["ready", "failed", "absent"] | None = None
    imageId: str | None = None


class PrunedShape(wire.Shape):
    removed: list[str]
    bytes: int


_BUILD = TypeAdapter(BuildBody)


async def list_images(api: Api, request: Request) -> Response:
    """All images, those of the runtimes first, whether they are built or not."""

    def read(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        rows = table.every(conn)
        names, jobs = table.names_of(conn), table.in_use(conn)
        over: dict[str, int] = {}
        for row in rows:
            if row.kind == "handler" and row.state == "ready":
                over[row.runtime] = over.get(row.runtime, 0) + 1
        shown = [_shown(row, names, over, jobs) for row in rows]
        known = {row.name for row in rows}
        return shown + [_unbuilt(name) for name in _runtimes() if name not in known]

    items = await api.engine.store.read(read)
    items.sort(key=lambda item: (item["kind"] == "handler", item["name"]))
    return answer({"items": items, "nextCursor": None})


async def build(api: Api, request: Request) -> Response:
    """Have images built, in the background: 202 with their names. `log` follows each."""
    operators_only(request, "build images")
    builder = _builder(api)
    if builder.missing is not None:
        raise Unavailable(f"cannot build images: {builder.missing}", code="CONTAINERS_UNAVAILABLE")
    body = decode(_BUILD, await read_json(request, api))
    if body.name == "all":
        names = _runtimes()
    elif body.name in RUNTIMES:
        names = [body.name]
    else:
        return await _build_handler(api, builder, body)
    await builder.want("runtime", names, None, body.again)
    return answer({"items": [{"name": name} for name in names], "nextCursor": None}, 202)


async def prune(api: Api, request: Request) -> Response:
    """Remove the images that nothing uses now and no pin keeps; who needs one has it built."""
    operators_only(request, "prune images")
    removed, count = await _builder(api).prune()
    return answer({"removed": removed, "bytes": count})


async def log_of(api: Api, request: Request) -> Response:
    """What the build of an image prints, as NDJSON until it ends; of one that is not being built
    the end of what its last build printed."""
    builder, name = _builder(api), request.path_params["name"]
    row = await api.engine.store.read(lambda conn: table.find(conn, name))
    if row is None and name not in _runtimes():
        raise NotFound(f"no image {name!r}; see `flowctl image list`")
    return Lines(builder.follow(name))


async def _build_handler(api: Api, builder: Builder, body: BuildBody) -> Response:
    handler_type, _, version = body.name.partition("@")
    found = await handler_of(api, f"{handler_type}/{version}" if version else handler_type)
    row = await api.engine.store.read(lambda conn: table.find(conn, found.digest))
    if row is None:
        raise Invalid(f"cannot build an image of {body.name}: it is not stateful")
    await builder.want("handler", [row.name], row.runtime, body.again)
    return answer({"items": [{"name": row.name}], "nextCursor": None}, 202)


def _builder(api: Api) -> Builder:
    if api.builder is None:
        raise Unavailable("cannot look after images: this daemon has none")
    return api.builder


def _runtimes() -> list[str]:
    return [name for name, one in RUNTIMES.items() if one.languages]


def _shown(
    row: table.ImageRow,
    names: Mapping[str, list[tuple[str, str, bool]]],
    over: Mapping[str, int],
    jobs: Mapping[str, int],
) -> dict[str, Any]:
    is_handler = row.kind == "handler"
    return {
        "name": row.name,
        "kind": row.kind,
        "runtime": row.runtime,
        "handlers": [
            {"type": handler_type, "version": version, "yanked": yanked}
            for handler_type, version, yanked in (names.get(row.name, ()) if is_handler else ())
        ],
        "state": row.state,
        "imageId": row.image_id,
        "sizeBytes": row.size_bytes,
        "ownBytes": row.own_bytes,
        "builtAt": wire.rfc3339(row.built_at_ms),
        "usedAt": wire.rfc3339(row.used_at_ms),
        "images": 0 if is_handler else over.get(row.name, 0),
        "jobs": jobs.get(row.name, 0) if is_handler else 0,
        "log": row.log if row.state == "failed" else None,
    }


def _unbuilt(name: str) -> dict[str, Any]:
    row = table.ImageRow(0, "runtime", name, name, "absent", None, 0, 0, None, None, None)
    return _shown(row, {}, {}, {})
