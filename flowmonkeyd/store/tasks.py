"""The queue: one task at most for each execution, claimed in order, leased, fenced.

The place in the line is `rank_ms`: the time a task was queued plus a penalty by priority. A low
task therefore waits behind newer normal ones for a minute at the most, and nothing starves.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from flowmonkeyd.model import Lane, Priority
from flowmonkeyd.store.store import Tx

__all__ = [
    "PENALTY_MS",
    "TaskRow",
    "claim",
    "delay",
    "depth",
    "drop",
    "enqueue",
    "expired",
    "extend",
    "get",
    "leased",
    "next_due_ms",
    "next_queued",
    "release",
    "release_of_earlier_boots",
    "requeue_due",
]

# By priority number: what a task gives way by. High first, but never for more than a minute.
PENALTY_MS = (0, 10_000, 60_000)
PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class TaskRow(NamedTuple):
    execution: int
    step_id: str
    attempt: int
    lane: str
    type: str
    version: str
    state: str
    queued_at_ms: int
    lease_id: int | None
    claimed_at_ms: int | None
    worker: str | None


_COLUMNS = (
    "execution, step_id, attempt, lane, type, version, state, queued_at_ms, lease_id,"
    " claimed_at_ms, worker"
)


def enqueue(
    tx: Tx,
    execution: int,
    step_id: str,
    attempt: int,
    lane: Lane,
    handler_type: str,
    version: str,
    priority: int,
) -> None:
    """Put the execution's next attempt into the line; it replaces the one just finished."""
    now_ms = tx.now_ms
    row = (
        step_id,
        attempt,
        lane.value,
        handler_type,
        version,
        priority,
        now_ms + PENALTY_MS[priority],
        now_ms,
        execution,
    )
    # Hardly ever the first attempt of all: an update is half an upsert's work.
    changed = tx.execute(
        "UPDATE tasks SET step_id = ?, attempt = ?, lane = ?, type = ?, version = ?, priority = ?,"
        " state = 'queued', rank_ms = ?, queued_at_ms = ?, due_at_ms = NULL, lease_id = NULL,"
        " worker = NULL, claimed_at_ms = NULL, deliveries = 0 WHERE execution = ?",
        row,
    )
    if changed.rowcount == 0:
        tx.execute(
            "INSERT INTO tasks (step_id, attempt, lane, type, version, priority, rank_ms,"
            " queued_at_ms, execution, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued')",
            row,
        )
    tx.hints.ready.add(lane.value)


def next_queued(tx: Tx, lane: Lane) -> TaskRow | None:
    """The first task of a lane's line, left where it is."""
    row = tx.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE lane = ? AND state = 'queued'"
        " ORDER BY rank_ms LIMIT 1",
        (lane.value,),
    ).fetchone()
    return TaskRow(*row) if row else None


def claim(
    tx: Tx,
    lane: Lane,
    limit: int,
    first_lease_id: int,
    lease_ms: int,
    worker: str,
    handler_type: str | None = None,
    execution: int | None = None,
) -> list[TaskRow]:
    """Lease the first `limit` tasks of the line, of one handler type or execution if named."""
    rows = tx.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE lane = :lane AND state = 'queued'"
        " AND (:type IS NULL OR type = :type) AND (:execution IS NULL OR execution = :execution)"
        " ORDER BY rank_ms LIMIT :limit",
        {"lane": lane.value, "type": handler_type, "execution": execution, "limit": limit},
    ).fetchall()
    if not rows:
        return []
    now_ms = tx.now_ms
    due_at_ms = now_ms + lease_ms
    tx.executemany(
        "UPDATE tasks SET state = 'leased', lease_id = ?, worker = ?, claimed_at_ms = ?,"
        " due_at_ms = ?, deliveries = deliveries + 1 WHERE execution = ?",
        [
            (lease_id, worker, now_ms, due_at_ms, row[0])
            for lease_id, row in enumerate(rows, first_lease_id)
        ],
    )
    tx.hints.due(due_at_ms)
    return [
        TaskRow(*(*row[:6], "leased", row[7], lease_id, now_ms, worker))
        for lease_id, row in enumerate(rows, first_lease_id)
    ]


def get(tx: Tx, execution: int) -> TaskRow | None:
    row = tx.execute(f"SELECT {_COLUMNS} FROM tasks WHERE execution = ?", (execution,)).fetchone()
    return TaskRow(*row) if row else None


def leased(tx: Tx, execution: int, lease_id: int) -> TaskRow | None:
    """The task, if this lease still holds it: the fence before every write of a worker."""
    row = tx.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE execution = ? AND lease_id = ?", (execution, lease_id)
    ).fetchone()
    return TaskRow(*row) if row else None


def extend(tx: Tx, execution: int, lease_id: int, lease_ms: int) -> bool:
    cursor = tx.execute(
        "UPDATE tasks SET due_at_ms = ? WHERE execution = ? AND lease_id = ?",
        (tx.now_ms + lease_ms, execution, lease_id),
    )
    return cursor.rowcount == 1


def release(tx: Tx, execution: int) -> None:
    """Back to its old place in the line."""
    row = tx.execute(
        "UPDATE tasks SET state = 'queued', lease_id = NULL, worker = NULL, due_at_ms = NULL,"
        " claimed_at_ms = NULL WHERE execution = ? RETURNING lane",
        (execution,),
    ).fetchone()
    tx.hints.ready.add(row[0])


def delay(tx: Tx, execution: int, due_at_ms: int) -> None:
    """Out of the line until `due_at_ms`."""
    tx.execute(
        "UPDATE tasks SET state = 'delayed', lease_id = NULL, worker = NULL, due_at_ms = ?,"
        " claimed_at_ms = NULL WHERE execution = ?",
        (due_at_ms, execution),
    )
    tx.hints.due(due_at_ms)


def drop(tx: Tx, execution: int, tell: bool = True) -> None:
    """The task is finished or no longer wanted. A worker that still runs it is told."""
    row = tx.execute(
        "DELETE FROM tasks WHERE execution = ? RETURNING lease_id", (execution,)
    ).fetchone()
    if tell and row and row[0] is not None:
        tx.hints.dropped.add((execution, row[0]))


def expired(tx: Tx, limit: int) -> list[tuple[int, int | None, str]]:
    """(execution, lease, state) of tasks whose lease or delay is over."""
    return tx.execute(
        "SELECT execution, lease_id, state FROM tasks"
        " WHERE state <> 'queued' AND due_at_ms <= ? ORDER BY due_at_ms LIMIT ?",
        (tx.now_ms, limit),
    ).fetchall()


def requeue_due(tx: Tx, limit: int) -> int:
    """Tasks whose lease or delay is over go back into the line; how many."""
    rows = expired(tx, limit)
    for execution, lease_id, _ in rows:
        release(tx, execution)
        if lease_id is not None:
            tx.hints.dropped.add((execution, lease_id))
    return len(rows)


def release_of_earlier_boots(tx: Tx, first_lease_id: int) -> int:
    """At start: every lease of an earlier boot is dead, whatever its time says; how many."""
    cursor = tx.execute(
        "UPDATE tasks SET state = 'queued', lease_id = NULL, worker = NULL, due_at_ms = NULL,"
        " claimed_at_ms = NULL WHERE state = 'leased' AND lease_id < ?",
        (first_lease_id,),
    )
    return cursor.rowcount


def next_due_ms(tx: Tx) -> int | None:
    due: int | None = tx.execute(
        "SELECT min(due_at_ms) FROM tasks WHERE state <> 'queued'"
    ).fetchone()[0]
    return due


def depth(conn: sqlite3.Connection) -> list[dict[str, Any]]:
    """The queue by handler type and priority, delayed tasks counted as queued."""
    rows = conn.execute(
        "SELECT type, priority, sum(state <> 'leased'), sum(state = 'leased'),"
        " min(CASE WHEN state <> 'leased' THEN queued_at_ms END)"
        " FROM tasks GROUP BY type, priority ORDER BY type, priority LIMIT 10000"
    )
    return [
        {
            "handler_type": handler_type,
            "priority": PRIORITIES[priority].value,
            "queued": queued,
            "leased": taken,
            "oldest_at_ms": oldest_at_ms,
        }
        for handler_type, priority, queued, taken, oldest_at_ms in rows
    ]
