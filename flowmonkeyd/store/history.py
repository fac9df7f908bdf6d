"""Finished attempts and the log lines of handlers, by execution."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.model import NO_VALUE, Charge, HistoryEntry, Outcome, StepError
from flowmonkeyd.store.store import Tx

__all__ = ["LogRow", "append", "append_logs", "read", "read_logs"]


@dataclass(frozen=True, slots=True)
class LogRow:
    seq: int
    at_ms: int
    step_id: str
    attempt: int
    stream: str
    level: str | None
    message: str
    fields: Mapping[str, Any] | None


def append(
    tx: Tx,
    execution: int,
    seq: int,
    step_id: str,
    handler: tuple[str, str],
    attempt: int,
    outcome: Outcome,
    output: Any,
    error: StepError | None,
    started_at_ms: int,
    queued_ms: int,
    duration_ms: int,
    worker: str,
    usage: Mapping[str, Any],
) -> None:
    """Add a finished attempt. `seq` is the execution's step count, so a gap or a second row for
    one attempt cannot be written."""
    shown_error = None
    if error is not None:
        shown_error = jsontext.dumps(
            {
                "code": error.code,
                "message": error.message,
                "stepId": step_id,
                "retryable": error.retryable,
                "details": error.details,
                "timestampMs": tx.now_ms,
            }
        )
    tx.execute(
        "INSERT INTO history (execution, seq, step_id, type, version, attempt, outcome, output,"
        " error, started_at_ms, completed_at_ms, queued_ms, duration_ms, worker, usage)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            execution,
            seq,
            step_id,
            handler[0],
            handler[1],
            attempt,
            outcome.value,
            None if output is NO_VALUE else jsontext.dumps(output),
            shown_error,
            started_at_ms,
            tx.now_ms,
            queued_ms,
            duration_ms,
            worker,
            jsontext.dumps(usage) if usage else None,
        ),
    )


def read(conn: sqlite3.Connection, execution: int, after: int, limit: int) -> list[HistoryEntry]:
    """Entries of one execution after seq `after`, in order."""
    rows = conn.execute(
        "SELECT h.seq, step_id, type, version, attempt, outcome, output, error, started_at_ms,"
        " completed_at_ms, queued_ms, worker, duration_ms, usage, ifnull(c.tier, j.tier),"
        " ifnull(c.nanos, j.nanos) FROM history h LEFT JOIN charges c USING (execution, seq)"
        " LEFT JOIN job_charges j ON j.execution = h.execution AND j.seq = h.seq"
        " WHERE h.execution = ? AND h.seq > ? ORDER BY h.seq LIMIT ?",
        (execution, after, limit),
    )
    return [
        HistoryEntry(
            seq=row[0],
            step_id=row[1],
            handler_type=row[2],
            handler_version=row[3],
            attempt=row[4],
            outcome=Outcome(row[5]),
            output=None if row[6] is None else jsontext.loads(row[6]),
            error=None if row[7] is None else jsontext.loads(row[7]),
            started_at_ms=row[8],
            completed_at_ms=row[9],
            queued_ms=row[10],
            worker_id=row[11],
            duration_ms=row[12],
            usage={} if row[13] is None else jsontext.loads(row[13]),
            charge=None if row[14] is None else Charge(row[14], row[15]),
        )
        for row in rows
    ]


def append_logs(tx: Tx, execution: int, step_id: str, attempt: int, lines: Iterable[Any]) -> None:
    """Add log lines (at_ms, stream, level, message, fields) in order."""
    (last,) = tx.execute(
        "SELECT ifnull(max(seq), 0) FROM logs WHERE execution = ?", (execution,)
    ).fetchone()
    tx.executemany(
        "INSERT INTO logs (execution, seq, at_ms, step_id, attempt, stream, level, message, fields)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                execution,
                seq,
                at_ms,
                step_id,
                attempt,
                stream,
                level,
                message,
                jsontext.dumps(fields) if fields else None,
            )
            for seq, (at_ms, stream, level, message, fields) in enumerate(lines, last + 1)
        ],
    )
    tx.hints.events = True


def read_logs(conn: sqlite3.Connection, execution: int, after: int, limit: int) -> list[LogRow]:
    """Log lines of one execution after seq `after`, in order."""
    rows = conn.execute(
        "SELECT seq, at_ms, step_id, attempt, stream, level, message, fields FROM logs"
        " WHERE execution = ? AND seq > ? ORDER BY seq LIMIT ?",
        (execution, after, limit),
    )
    return [LogRow(*(*row[:7], None if row[7] is None else jsontext.loads(row[7]))) for row in rows]
