"""Executions and their contexts: one row each, large context values in rows of their own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from flowmonkeyd import jsontext
from flowmonkeyd.context import Change, Context
from flowmonkeyd.model import Execution, ExecutionStatus, Timeouts
from flowmonkeyd.store.store import Tx
from flowmonkeyd.store.tasks import PRIORITIES

__all__ = [
    "Page",
    "Record",
    "children_from",
    "context_text",
    "counts",
    "full_context",
    "insert",
    "key_of",
    "list_page",
    "live_children",
    "load",
    "load_all",
    "next_deadline_ms",
    "overdue",
    "save",
    "save_pins",
    "shown",
    "with_keys",
]

Source = Tx | sqlite3.Connection

# The writer keeps the records of executions with no more context than this (bytes of its text).
REMEMBERED_BYTES = 1024
PINS_MAX = 256


class Record(NamedTuple):
    """An execution's row: what the API shows, and what only the engine needs."""

    key: int
    flow_key: int
    flow_digest: str
    execution: Execution
    context: Context
    pins: Mapping[str, str]
    parent_key: int | None
    child_index: int | None
    depth: int
    execution_ms: int
    wait_ms: int
    deadline_ms: int | None
    saved_status: ExecutionStatus  # of the row; `execution` may be ahead of it


# What an execution that waits shows besides is looked up, and never kept.
_REMEMBERED = frozenset({ExecutionStatus.PENDING, ExecutionStatus.RUNNING})

_COLUMNS = (
    "e.key, e.flow, f.digest, e.id, f.id, f.version, e.status, e.step_id, e.step_count, e.tenant,"
    " e.priority, e.created_at_ms, e.updated_at_ms, e.started_at_ms, e.finished_at_ms, e.error,"
    " e.idempotency_key, e.metadata, e.cancellation, e.attempt, e.context, e.spilled,"
    " e.context_bytes, e.pins, e.parent, e.child_index, e.depth, e.execution_ms, e.wait_ms,"
    " e.deadline_ms"
)
_FROM = " FROM executions e JOIN flows f ON f.key = e.flow"
# What a waiting execution shows besides, looked up only where it is shown.
_SHOWN = (
    ", p.id, w.wake_at_ms, w.reason,"
    " (SELECT t.token FROM tokens t WHERE t.execution = e.key AND t.state = 'active' LIMIT 1)"
)
_SHOWN_FROM = " LEFT JOIN executions p ON p.key = e.parent LEFT JOIN waits w ON w.execution = e.key"


def insert(
    tx: Tx,
    execution: Execution,
    flow: tuple[int, str],
    pins: Mapping[str, str],
    change: Change,
    parent: Record | None,
    child_index: int | None,
    timeouts: Timeouts,
) -> Record:
    """Add an execution of `flow` (key, digest). Raises sqlite3.IntegrityError: the id is taken."""
    deadline_ms = execution.created_at_ms + timeouts.execution_ms
    context = change.context
    depth = parent.depth + 1 if parent else 0
    parent_key = parent.key if parent else None
    cursor = tx.execute(
        "INSERT INTO executions (id, flow, pins, status, step_id, step_count, attempt, tenant,"
        " priority, context, spilled, context_bytes, metadata, idempotency_key, parent,"
        " child_index, depth, execution_ms, wait_ms, created_at_ms, updated_at_ms, deadline_ms)"
        " VALUES (?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            execution.id,
            flow[0],
            jsontext.dumps(pins) if pins else None,
            execution.status.value,
            execution.current_step_id,
            execution.tenant_id,
            PRIORITIES.index(execution.priority),
            jsontext.dumps(context.inline),
            jsontext.dumps(context.spilled) if context.spilled else None,
            context.total_bytes,
            jsontext.dumps(execution.metadata) if execution.metadata else None,
            execution.idempotency_key,
            parent_key,
            child_index,
            depth,
            timeouts.execution_ms,
            timeouts.wait_ms,
            execution.created_at_ms,
            execution.updated_at_ms,
            deadline_ms,
        ),
    )
    key = cursor.lastrowid
    assert key is not None
    _save_rows(tx, key, change)
    tx.hints.due(deadline_ms)
    record = Record(
        key=key,
        flow_key=flow[0],
        flow_digest=flow[1],
        execution=execution,
        context=context,
        pins=pins,
        parent_key=parent_key,
        child_index=child_index,
        depth=depth,
        execution_ms=timeouts.execution_ms,
        wait_ms=timeouts.wait_ms,
        deadline_ms=deadline_ms,
        saved_status=execution.status,
    )
    return _remember(tx, record)


def load_all(tx: Tx, keys: Sequence[int]) -> dict[int, Record]:
    """As `load`, of several executions, by key."""
    records = {key: tx.known[key] for key in keys if key in tx.known}
    missing = [key for key in keys if key not in records]
    if missing:
        marks = ", ".join("?" * len(missing))
        rows = tx.execute(f"SELECT {_COLUMNS}{_FROM} WHERE e.key IN ({marks})", missing)
        for row in rows.fetchall():
            records[row[0]] = _remember(tx, _record(row))
    return records


def load(source: Source, key: int) -> Record:
    """The execution's record; wake time, token and parent id need not be filled in."""
    if isinstance(source, Tx) and key in source.known:
        known: Record = source.known[key]
        return known
    row = source.execute(f"SELECT {_COLUMNS}{_FROM} WHERE e.key = ?", (key,)).fetchone()
    return _record(row)


def key_of(source: Source, execution_id: str) -> int | None:
    row = source.execute("SELECT key FROM executions WHERE id = ?", (execution_id,)).fetchone()
    return row[0] if row else None


def shown(source: Source, key: int) -> Record:
    """The record as the API shows it: whole context, wake time, reason, token, parent."""
    row = source.execute(
        f"SELECT {_COLUMNS}{_SHOWN}{_FROM}{_SHOWN_FROM} WHERE e.key = ?", (key,)
    ).fetchone()
    return full_context(source, _shown(row))


@dataclass(frozen=True, slots=True)
class Page:
    """Which executions to list, newest first; every filter is optional."""

    limit: int
    before_key: int | None = None
    statuses: tuple[str, ...] = ()
    flow_id: str | None = None
    flow_version: str | None = None
    tenant_id: str | None = None
    since_ms: int | None = None
    parent_key: int | None = None


def list_page(conn: sqlite3.Connection, page: Page) -> list[Record]:
    """One page of executions without their large context values."""
    where = ["TRUE"]
    if page.before_key is not None:
        where.append("e.key < :before")
    if page.statuses:
        marks = ", ".join(f":status{n}" for n in range(len(page.statuses)))
        where.append(f"e.status IN ({marks})")
    if page.flow_id is not None:
        where.append(
            "e.flow IN (SELECT key FROM flows WHERE id = :flow"
            " AND (:version IS NULL OR version = :version))"
        )
    if page.tenant_id is not None:
        where.append("e.tenant = :tenant")
    if page.since_ms is not None:
        where.append("e.created_at_ms >= :since")
    if page.parent_key is not None:
        where.append("e.parent = :parent")
    # Keys first: what has to be sorted (a flow's executions, several statuses) is then integers.
    rows = conn.execute(
        f"SELECT {_COLUMNS}{_SHOWN}{_FROM}{_SHOWN_FROM} WHERE e.key IN (SELECT e.key"
        f" FROM executions e WHERE {' AND '.join(where)} ORDER BY e.key DESC LIMIT :limit)"
        " ORDER BY e.key DESC LIMIT :limit",
        {
            "before": page.before_key,
            "flow": page.flow_id,
            "version": page.flow_version,
            "tenant": page.tenant_id,
            "since": page.since_ms,
            "parent": page.parent_key,
            "limit": page.limit,
            **{f"status{n}": status for n, status in enumerate(page.statuses)},
        },
    )
    return [_shown(row) for row in rows]


def save(tx: Tx, before: Record, execution: Execution, change: Change | None) -> Record:
    """Write what a decision changed."""
    deadline_ms = before.deadline_ms
    if execution.status.is_final:
        deadline_ms = None
    elif deadline_ms is None:  # it runs again
        deadline_ms = tx.now_ms + before.execution_ms
        tx.hints.due(deadline_ms)
    old = before.execution
    sets = {
        "status": execution.status.value,
        "step_id": execution.current_step_id,
        "step_count": execution.step_count,
        "attempt": execution.attempt,
        "updated_at_ms": execution.updated_at_ms,
        "started_at_ms": execution.started_at_ms,
        "finished_at_ms": execution.finished_at_ms,
        "deadline_ms": deadline_ms,
    }
    if execution.status is before.saved_status:  # three indexes are left alone
        for unchanged in ("status", "started_at_ms", "finished_at_ms", "deadline_ms"):
            del sets[unchanged]
    if execution.error is not old.error or execution.cancellation is not old.cancellation:
        sets["error"] = _text(execution.error)
        sets["cancellation"] = _text(execution.cancellation)
    context = before.context
    if change is not None:
        context = change.context
        sets["context"] = jsontext.dumps(context.inline)
        sets["spilled"] = jsontext.dumps(context.spilled) if context.spilled else None
        sets["context_bytes"] = context.total_bytes
    names = ", ".join([f"{name} = ?" for name in sets])
    tx.execute(f"UPDATE executions SET {names} WHERE key = ?", (*sets.values(), before.key))
    if change is not None:
        _save_rows(tx, before.key, change)
    if execution.status.is_final:
        tx.hints.ended.add(execution.id)
    record = before._replace(
        execution=execution,
        context=context,
        deadline_ms=deadline_ms,
        saved_status=execution.status,
    )
    return _remember(tx, record)


def save_pins(tx: Tx, key: int, pins: Mapping[str, str]) -> None:
    tx.execute("UPDATE executions SET pins = ? WHERE key = ?", (jsontext.dumps(pins), key))
    tx.known.pop(key, None)


def with_keys(source: Source, record: Record, names: Iterable[str]) -> Record:
    """The record with these context values in memory (those that exist)."""
    context = record.context
    missing = [n for n in names if n in context.spilled and n not in context.loaded]
    if not missing:
        return record
    loaded = dict(context.loaded)
    for name in missing:
        (text,) = source.execute(
            "SELECT value FROM context_values WHERE execution = ? AND name = ?", (record.key, name)
        ).fetchone()
        loaded[name] = jsontext.stored(text)
    return record._replace(context=replace(context, loaded=loaded))


def full_context(source: Source, record: Record) -> Record:
    """The record with its whole context in memory."""
    return with_keys(source, record, record.context.spilled)


def context_text(conn: sqlite3.Connection, key: int) -> bytes:
    """The whole context as JSON text, put together without parsing the large values."""
    (inline,) = conn.execute("SELECT context FROM executions WHERE key = ?", (key,)).fetchone()
    rows = conn.execute("SELECT name, value FROM context_values WHERE execution = ?", (key,))
    members = [f"{jsontext.dumps(name)}:{value}" for name, value in rows]
    if inline != "{}":
        members.append(inline[1:-1])
    return ("{" + ",".join(members) + "}").encode()


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """How many executions there are, by status."""
    rows = conn.execute("SELECT status, count(*) FROM executions GROUP BY status LIMIT 10")
    return dict(rows.fetchall())


def overdue(tx: Tx) -> tuple[int, int] | None:
    """(key, deadline) of the execution that has been longest over the time it may take."""
    row: tuple[int, int] | None = tx.execute(
        "SELECT key, deadline_ms FROM executions WHERE deadline_ms <= ?"
        " ORDER BY deadline_ms LIMIT 1",
        (tx.now_ms,),
    ).fetchone()
    return row


def next_deadline_ms(tx: Tx) -> int | None:
    due: int | None = tx.execute(
        "SELECT min(deadline_ms) FROM executions WHERE deadline_ms IS NOT NULL"
    ).fetchone()[0]
    return due


def live_children(tx: Tx, key: int) -> list[int]:
    rows = tx.execute(
        "SELECT key FROM executions WHERE parent = ? AND deadline_ms IS NOT NULL", (key,)
    )
    return [child for (child,) in rows.fetchall()]


def children_from(tx: Tx, first: int, count: int) -> list[Record]:
    """The `count` children made together from key `first`, in the order they were asked for."""
    rows = tx.execute(
        f"SELECT {_COLUMNS}{_FROM} WHERE e.key >= ? AND e.key < ? ORDER BY e.key LIMIT ?",
        (first, first + count, count),
    )
    return [_record(row) for row in rows.fetchall()]


def _remember(tx: Tx, record: Record) -> Record:
    """Keep the record of an execution that runs, so that its next step need not read it again.

    What is kept is what the row says: only `insert`, `save` and `save_pins` write such rows, all
    of them on the one writer, and whatever is undone empties `Tx.known`.
    """
    context = record.context
    if (
        record.execution.status in _REMEMBERED
        and context.total_bytes <= REMEMBERED_BYTES
        and not context.spilled
    ):
        tx.known[record.key] = record
    else:
        tx.known.pop(record.key, None)
    return record


def _save_rows(tx: Tx, key: int, change: Change) -> None:
    if change.dropped_rows:
        tx.executemany(
            "DELETE FROM context_values WHERE execution = ? AND name = ?",
            [(key, name) for name in change.dropped_rows],
        )
    if change.rows:
        tx.executemany(
            "INSERT INTO context_values (execution, name, value) VALUES (?, ?, ?)"
            " ON CONFLICT (execution, name) DO UPDATE SET value = excluded.value",
            [(key, name, text) for name, text in change.rows.items()],
        )


def _record(row: tuple[Any, ...]) -> Record:
    (
        key,
        flow_key,
        flow_digest,
        execution_id,
        flow_id,
        flow_version,
        status,
        step_id,
        step_count,
        tenant,
        priority,
        created,
        updated,
        started,
        finished,
        error,
        idempotency_key,
        metadata,
        cancellation,
        attempt,
        context,
        spilled,
        context_bytes,
        pins,
        parent,
        child_index,
        depth,
        execution_ms,
        wait_ms,
        deadline_ms,
    ) = row
    execution = Execution(
        id=execution_id,
        flow_id=flow_id,
        flow_version=flow_version,
        status=ExecutionStatus(status),
        current_step_id=step_id,
        step_count=step_count,
        tenant_id=tenant,
        priority=PRIORITIES[priority],
        created_at_ms=created,
        updated_at_ms=updated,
        started_at_ms=started,
        finished_at_ms=finished,
        error=_value(error),
        idempotency_key=idempotency_key,
        metadata=_value(metadata) or {},
        cancellation=_value(cancellation),
        attempt=attempt,
    )
    kept = Context(jsontext.stored(context), _value(spilled) or {}, {}, context_bytes)
    return Record(
        key,
        flow_key,
        flow_digest,
        execution,
        kept,
        {} if pins is None else _pins(pins),
        parent,
        child_index,
        depth,
        execution_ms,
        wait_ms,
        deadline_ms,
        execution.status,
    )


def _shown(row: tuple[Any, ...]) -> Record:
    *record_row, parent_id, wake_at_ms, reason, token = row
    record = _record(tuple(record_row))
    execution = record.execution._replace(
        parent_execution_id=parent_id,
        wake_at_ms=wake_at_ms,
        wait_reason=reason,
        resume_token=token,
    )
    return record._replace(execution=execution)


def _text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else jsontext.dumps(value)


def _value(text: str | None) -> Any:
    return None if text is None else jsontext.stored(text)


@lru_cache(PINS_MAX)
def _pins(text: str) -> Mapping[str, str]:
    """The same for all executions of a flow that were made between two publishings."""
    pins: dict[str, str] = jsontext.stored(text)
    return pins
