"""Executions, their history, logs and events; user events."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd.api import wire
from flowmonkeyd.api.requests import (
    Api,
    Lines,
    answer,
    bounded,
    cursor,
    decode,
    instant,
    number,
    page_of,
    peer,
    read_json,
    until_gone,
    word,
)
from flowmonkeyd.engine import Submitted
from flowmonkeyd.errors import Invalid, NotFound, TooLarge
from flowmonkeyd.model import (
    NO_VALUE,
    CancelSource,
    ExecutionStatus,
    NewExecution,
    Priority,
    Timeouts,
)
from flowmonkeyd.references import split_ref
from flowmonkeyd.store import executions, history, ledger

__all__ = [
    "cancel",
    "create",
    "create_batch",
    "events",
    "execution_events",
    "history_of",
    "list_executions",
    "logs",
    "resume",
    "retry",
    "send_event",
    "show",
]

# The longest a request waits for an execution to end; clients ask again.
WAIT_MS_MAX = 60_000
# Rows a follower reads at a time.
FOLLOW_ROWS = 500
SEQ_MAX = 2**62


async def create(api: Api, request: Request) -> Response:
    """Start an execution; with `waitMs`, answer when it has ended or the time is up."""
    wait_ms = number(request, "waitMs", 0, 0, WAIT_MS_MAX)
    body = decode(wire.EXECUTION, await read_json(request, api))
    submitted = await api.engine.submit(_new(api, body), peer(request))
    record = submitted.record
    if wait_ms and not record.execution.status.is_final:
        await _until_ended(api, request, record.execution.id, wait_ms)
        record = await api.engine.get(record.execution.id)
    headers = {"location": f"/v1/executions/{record.execution.id}"}
    shown = wire.execution_json(record)
    if submitted.warnings:
        shown["warnings"] = wire.problems_json(submitted.warnings)
    return answer(shown, 201 if submitted.created else 200, headers)


async def create_batch(api: Api, request: Request) -> Response:
    """Start many executions, all or none, in one commit; `view=ids` answers with ids only."""
    view = word(request, "view", ("full", "ids"))
    items = await read_json(request, api)
    if not isinstance(items, list):
        raise Invalid("cannot take the batch: send a JSON list of executions")
    if len(items) > wire.BATCH_MAX:
        raise TooLarge(f"cannot take the batch: it has {len(items)} items of {wire.BATCH_MAX}")
    batch = [_new(api, body) for body in decode(wire.BATCH, items)]
    made = await api.engine.submit_batch(batch, peer(request)) if batch else []
    shown = _ids if "ids" in view else _whole
    return answer({"items": [shown(one) for one in made]}, 201)


async def list_executions(api: Api, request: Request) -> Response:
    """Executions, newest first; large context values are left out (see `contextPartial`)."""
    flow = request.query_params.get("flow")
    flow_id, version = split_ref(flow) if flow else (None, None)
    limit = bounded(request)
    parent = request.query_params.get("parent")
    page = executions.Page(
        limit=limit + 1,
        before_key=page_of(request),
        statuses=word(request, "status", tuple(status.value for status in ExecutionStatus)),
        flow_id=flow_id,
        flow_version=version,
        tenant_id=request.query_params.get("tenant"),
        since_ms=instant(request, "since"),
        parent_key=None if parent is None else await _key(api, parent),
    )
    records = await api.engine.store.read(lambda conn: executions.list_page(conn, page))
    more = cursor(records[limit - 1].key) if len(records) > limit else None
    items = []
    for record in records[:limit]:
        item = wire.execution_json(record)
        if not record.context.is_complete:
            item["contextPartial"] = True
        items.append(item)
    return answer({"items": items, "nextCursor": more})


async def show(api: Api, request: Request) -> Response:
    """One execution; with `waitMs`, when it has ended or the time is up."""
    wait_ms = number(request, "waitMs", 0, 0, WAIT_MS_MAX)
    execution_id = request.path_params["id"]
    record = await api.engine.get(execution_id)
    if wait_ms and not record.execution.status.is_final:
        await _until_ended(api, request, execution_id, wait_ms)
        record = await api.engine.get(execution_id)
    return answer(wire.execution_json(record))


async def history_of(api: Api, request: Request) -> Response:
    """Finished attempts, in order."""
    key, limit, after = await _key(api, _id(request)), bounded(request), page_of(request) or 0
    entries = await api.engine.store.read(lambda c: history.read(c, key, after, limit + 1))
    more = cursor(entries[limit - 1].seq) if len(entries) > limit else None
    items = [wire.history_json(entry) for entry in entries[:limit]]
    return answer({"items": items, "nextCursor": more})


async def logs(api: Api, request: Request) -> Response:
    """Log lines of the handlers; `follow=true` streams them as NDJSON until the end."""
    key = await _key(api, _id(request))

    def read(conn: sqlite3.Connection, after: int, limit: int) -> list[dict[str, Any]]:
        return [wire.log_json(row) for row in history.read_logs(conn, key, after, limit)]

    return await _page_or_stream(api, request, read, key)


async def execution_events(api: Api, request: Request) -> Response:
    """Events of one execution; `follow=true` streams them as NDJSON until the end."""
    key = await _key(api, _id(request))

    def read(conn: sqlite3.Connection, after: int, limit: int) -> list[dict[str, Any]]:
        rows = ledger.read_of_execution(conn, key, after, limit)
        return [wire.event_json(row) for row in rows]

    return await _page_or_stream(api, request, read, key)


async def events(api: Api, request: Request) -> Response:
    """Everything that happens, in commit order; `follow=true` streams it as NDJSON, from now on
    unless `after` says from where."""

    def read(conn: sqlite3.Connection, after: int, limit: int) -> list[dict[str, Any]]:
        return [wire.event_json(row) for row in ledger.read(conn, after, limit)]

    return await _page_or_stream(api, request, read, None)


async def cancel(api: Api, request: Request) -> Response:
    """Cancel an execution and its children."""
    body = decode(wire.CANCEL, await read_json(request, api, {}))
    source = CancelSource(body.source)
    record = await api.engine.cancel(_id(request), source, body.reason, peer(request))
    return answer(wire.execution_json(record))


async def resume(api: Api, request: Request) -> Response:
    """End an execution's wait, with data for its context; a token is checked when given."""
    body = decode(wire.RESUME, await read_json(request, api, {}))
    data = body.data if "data" in body.model_fields_set else NO_VALUE
    record = await api.engine.resume(_id(request), body.token, data, peer(request))
    return answer(wire.execution_json(record))


async def retry(api: Api, request: Request) -> Response:
    """Run a failed or cancelled execution on, from a step."""
    body = decode(wire.RETRY, await read_json(request, api, {}))
    record = await api.engine.retry(_id(request), body.fromStepId, peer(request))
    return answer(wire.execution_json(record))


async def send_event(api: Api, request: Request) -> Response:
    """Wake every execution of the tenant that waits for this event, in one transaction."""
    body = decode(wire.EVENT, await read_json(request, api))
    sent = await api.engine.send_event(body.name, body.data, body.tenantId, peer(request))
    shown = {
        "name": body.name,
        "woken": len(sent.woken),
        "executionIds": list(sent.woken),
        "seq": sent.seq,
    }
    return answer(shown)


# --- how ---------------------------------------------------------------------------------------


def _new(api: Api, body: wire.ExecutionBody) -> NewExecution:
    defaults, asked = api.settings.timeouts, body.timeouts
    return NewExecution(
        flow_ref=body.flow,
        context=body.context,
        id=body.id,
        tenant_id=body.tenantId,
        priority=Priority(body.priority),
        idempotency_key=body.idempotencyKey,
        idempotency_window_ms=body.idempotencyWindowMs,
        timeouts=Timeouts(
            asked.executionMs if asked.executionMs is not None else defaults.executionMs,
            asked.waitMs if asked.waitMs is not None else defaults.waitMs,
        ),
        metadata=body.metadata,
    )


def _whole(one: Submitted) -> dict[str, Any]:
    return {**wire.execution_json(one.record), "created": one.created}


def _ids(one: Submitted) -> dict[str, Any]:
    execution = one.record.execution
    return {"id": execution.id, "status": execution.status.value, "created": one.created}


def _id(request: Request) -> str:
    execution_id: str = request.path_params["id"]
    return execution_id


async def _key(api: Api, execution_id: str) -> int:
    key = await api.engine.store.read(lambda conn: executions.key_of(conn, execution_id))
    if key is None:
        raise NotFound(f"no execution {execution_id!r}")
    return key


async def _until_ended(api: Api, request: Request, execution_id: str, wait_ms: int) -> None:
    """Return when it has ended, the time is up, the daemon drains or the client has gone away."""
    waiter = api.feed.expect_end(execution_id)
    try:
        # It may have ended before we began to wait.
        if (await api.engine.get(execution_id)).execution.status.is_final:
            return
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(until_gone(request.receive, waiter.cancel))
            await asyncio.wait([waiter], timeout=wait_ms / 1000)
            watching.cancel()
    finally:
        api.feed.forget(execution_id, waiter)


async def _page_or_stream(
    api: Api,
    request: Request,
    read: Callable[[sqlite3.Connection, int, int], list[dict[str, Any]]],
    key: int | None,
) -> Response:
    """A page of rows, or with `follow=true` all of them as they come; those of one execution (its
    key) end with it."""
    after = number(request, "after", 0, 0, SEQ_MAX)
    store = api.engine.store
    if "true" not in word(request, "follow", ("true", "false")):
        limit = bounded(request)
        start = page_of(request) or after
        rows = await store.read(lambda conn: read(conn, start, limit + 1))
        more = cursor(rows[limit - 1]["seq"]) if len(rows) > limit else None
        return answer({"items": rows[:limit], "nextCursor": more})
    if key is None and "after" not in request.query_params:
        after = await store.read(ledger.last_seq)

    def look(conn: sqlite3.Connection, seq: int) -> tuple[list[dict[str, Any]], bool]:
        rows = read(conn, seq, FOLLOW_ROWS)
        if key is None or len(rows) == FOLLOW_ROWS:
            return rows, False
        return rows, executions.load(conn, key).execution.status.is_final

    async def rows_after(seq: int) -> tuple[list[dict[str, Any]], bool]:
        return await store.read(lambda conn: look(conn, seq))

    return Lines(api.feed.follow(rows_after, after))
