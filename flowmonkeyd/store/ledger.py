"""The append-only events table: feed, audit log, wake-up source. Commit order is `seq` order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.store.store import Tx

__all__ = [
    "TYPES",
    "append",
    "append_all",
    "append_one",
    "last_seq",
    "read",
    "read_of_execution",
    "sync_types",
]

# Codes are durable: a name never changes its number, and new names go to the end.
TYPES: tuple[str, ...] = (
    "execution.created",
    "execution.started",
    "execution.waiting",
    "execution.resumed",
    "execution.completed",
    "execution.failed",
    "execution.cancelled",
    "execution.progress",
    "step.started",
    "step.completed",
    "step.retry",
    "step.timeout",
    "transition",
    "idempotency.hit",
    "handler.published",
    "handler.yanked",
    "flow.applied",
    "handler.custom",
    "token.created",
    "token.used",
    "token.revoked",
    "event.received",
    "daemon.started",
    "handler.signed",
    "handler.deprecated",
    "key.trusted",
    "key.revoked",
    "namespace.given",
    "secret.set",
    "secret.removed",
    "secret.read",
    "secret.rotated",
    "job.claimed",
    "job.progress",
    "job.heartbeat",
    "job.checkpoint",
    "job.paused",
    "job.resumed",
    "job.completed",
    "job.failed",
    "job.superseded",
    "job.cancelled",
)
_CODE = {name: code for code, name in enumerate(TYPES, 1)}

Event = tuple[str, str | None, Mapping[str, Any] | None]


def sync_types(tx: Tx) -> None:
    """Make the names readable inside the database too."""
    tx.executemany(
        "INSERT INTO event_types (code, name) VALUES (?, ?) ON CONFLICT DO NOTHING",
        [(code, name) for name, code in _CODE.items()],
    )


def append(tx: Tx, execution_key: int | None, events: Iterable[Event]) -> None:
    """Append events of one execution, in order."""
    append_all(tx, [(execution_key, event) for event in events])


def append_all(tx: Tx, events: Sequence[tuple[int | None, Event]]) -> None:
    """Append events of several executions, in order."""
    now_ms = tx.now_ms
    tx.executemany(
        "INSERT INTO events (type, at_ms, execution, step_id, data) VALUES (?, ?, ?, ?, ?)",
        [
            (_CODE[name], now_ms, execution, step, None if data is None else _text(data))
            for execution, (name, step, data) in events
        ],
    )
    tx.hints.events = True


def append_one(
    tx: Tx, name: str, data: Mapping[str, Any] | None, execution_key: int | None = None
) -> int:
    """Append one event and return its seq."""
    tx.hints.events = True
    cursor = tx.execute(
        "INSERT INTO events (type, at_ms, execution, data) VALUES (?, ?, ?, ?)",
        (_CODE[name], tx.now_ms, execution_key, None if data is None else _text(data)),
    )
    seq = cursor.lastrowid
    assert seq is not None
    return seq


def read(conn: sqlite3.Connection, after: int, limit: int) -> list[dict[str, Any]]:
    """Events after `after`, oldest first."""
    return _rows(
        conn.execute(
            "SELECT v.seq, v.type, v.at_ms, e.id, v.step_id, v.data FROM events v"
            " LEFT JOIN executions e ON e.key = v.execution"
            " WHERE v.seq > :after ORDER BY v.seq LIMIT :limit",
            {"after": after, "limit": limit},
        )
    )


def read_of_execution(
    conn: sqlite3.Connection, execution_key: int, after: int, limit: int
) -> list[dict[str, Any]]:
    """Events of one execution after `after`, oldest first."""
    return _rows(
        conn.execute(
            "SELECT v.seq, v.type, v.at_ms, e.id, v.step_id, v.data FROM events v"
            " JOIN executions e ON e.key = v.execution"
            " WHERE v.execution = :execution AND v.seq > :after ORDER BY v.seq LIMIT :limit",
            {"execution": execution_key, "after": after, "limit": limit},
        )
    )


def last_seq(conn: sqlite3.Connection) -> int:
    """The seq of the newest event; 0 when there is none."""
    seq: int | None = conn.execute("SELECT max(seq) FROM events").fetchone()[0]
    return seq or 0


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    return [
        {
            "seq": seq,
            "type": TYPES[code - 1],
            "at_ms": at_ms,
            "execution_id": execution_id,
            "step_id": step_id,
            "data": None if data is None else jsontext.loads(data),
        }
        for seq, code, at_ms, execution_id, step_id, data in cursor
    ]


def _text(data: Mapping[str, Any]) -> str:
    return jsontext.dumps(data)
