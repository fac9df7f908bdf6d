"""Active time of jobs, in stretches; between two of them a job is paused, or nowhere."""

from __future__ import annotations

import sqlite3
from typing import Any

from flowmonkeyd.jobmodel import Segment
from flowmonkeyd.store.store import Tx

__all__ = ["active_ns", "begin", "end", "last", "of_job", "renew"]

Source = Tx | sqlite3.Connection

SEGMENTS_MAX = 100_000


def begin(tx: Tx, job: int, attempt: int, boot: str, started_ns: int) -> None:
    """Active time begins. The job's last segment must have ended."""
    tx.execute(
        "INSERT INTO segments (job, number, attempt, boot, started_ns, last_ns, ended,"
        " started_at_ms) VALUES (:job, (SELECT ifnull(max(number), 0) + 1 FROM segments"
        " WHERE job = :job), :attempt, :boot, :ns, :ns, 0, :now)",
        {"job": job, "attempt": attempt, "boot": boot, "ns": started_ns, "now": tx.now_ms},
    )


def renew(tx: Tx, job: int, at_ns: int) -> None:
    """The open segment, if there is one, goes on until `at_ns`; never back."""
    tx.execute(
        "UPDATE segments SET last_ns = max(last_ns, ?) WHERE job = ? AND ended = 0", (at_ns, job)
    )


def end(tx: Tx, job: int) -> None:
    """The open segment, if there is one, is over at its last."""
    tx.execute("UPDATE segments SET ended = 1 WHERE job = ? AND ended = 0", (job,))


def last(tx: Tx, job: int) -> Segment | None:
    row = tx.execute(
        "SELECT number, attempt, boot, started_ns, last_ns, ended, started_at_ms FROM segments"
        " WHERE job = ? ORDER BY number DESC LIMIT 1",
        (job,),
    ).fetchone()
    return _segment(row) if row else None


def of_job(source: Source, job: int) -> list[Segment]:
    """All of a job, in order."""
    rows = source.execute(
        "SELECT number, attempt, boot, started_ns, last_ns, ended, started_at_ms FROM segments"
        " WHERE job = ? ORDER BY number LIMIT ?",
        (job, SEGMENTS_MAX),
    )
    return [_segment(row) for row in rows]


def active_ns(source: Source, job: int) -> int:
    """How long a job has been active in all; an open segment counts to its last heartbeat."""
    total: int = source.execute(
        "SELECT ifnull(sum(last_ns - started_ns), 0) FROM segments WHERE job = ?", (job,)
    ).fetchone()[0]
    return total


def _segment(row: tuple[Any, ...]) -> Segment:
    return Segment(*(*row[:5], bool(row[5]), row[6]))
