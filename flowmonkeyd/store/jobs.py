"""Jobs, one for each visit of a stateful step."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.jobmodel import (
    Checkpoint,
    Job,
    JobPlan,
    JobState,
    Progress,
    Resumed,
)
from flowmonkeyd.model import StepError
from flowmonkeyd.store import checkpoints
from flowmonkeyd.store.store import Tx

__all__ = [
    "Page",
    "Shown",
    "counts",
    "get",
    "heard",
    "insert",
    "instances",
    "last_of_step",
    "list_page",
    "live",
    "move",
    "of_visit",
    "save",
    "shown",
]

Source = Tx | sqlite3.Connection

_COLUMNS = (
    "j.key, j.id, j.execution, j.visit, j.step_id, j.type, j.version, j.state, j.step_attempt,"
    " j.attempt, j.failures, j.attempts_max, j.instance, j.container, j.seq, j.resources,"
    " j.nanos_per_s, j.ttl_default_ms, j.ttl_ms, j.ttl_soft_ms, j.ttl_hard_ms, j.active_before_ns,"
    " j.checkpoint_bytes_max, j.percent, j.message, j.eta_ms, j.progress_at_ms,"
    " j.progress_told_at_ms, j.heartbeat_at_ms, j.resume, j.resuming, j.paused_by_hand,"
    " j.paused_at_ms, j.last_pause_ms, j.paused_ms, j.error, j.created_at_ms, j.updated_at_ms,"
    " j.started_at_ms, j.finished_at_ms, j.expires_at_ms"
)


def insert(
    tx: Tx,
    job_id: str,
    execution: int,
    visit: int,
    step_id: str,
    handler: tuple[str, str],
    step_attempt: int,
    plan: JobPlan,
) -> Job:
    """A new job, queued."""
    cursor = tx.execute(
        "INSERT INTO jobs (id, execution, visit, step_id, type, version, state, step_attempt,"
        " attempt, failures, attempts_max, seq, resources, nanos_per_s, ttl_default_ms, ttl_ms,"
        " ttl_soft_ms, ttl_hard_ms, active_before_ns, checkpoint_bytes_max,"
        " paused_by_hand, last_pause_ms, paused_ms, created_at_ms, updated_at_ms) VALUES"
        " (?, ?, ?, ?, ?, ?, 'queued', ?, 0, 0, ?, 0, ?, ?, ?, ?, ?, ?, 0, ?, 0, 0, 0, ?, ?)",
        (
            job_id,
            execution,
            visit,
            step_id,
            handler[0],
            handler[1],
            step_attempt,
            plan.attempts_max,
            plan.resources,
            plan.nanos_per_s,
            plan.ttl_ms,
            plan.ttl_ms,
            plan.ttl_soft_ms,
            plan.ttl_hard_ms,
            plan.checkpoint_bytes_max,
            tx.now_ms,
            tx.now_ms,
        ),
    )
    assert cursor.lastrowid is not None
    job = get(tx, cursor.lastrowid)
    assert job is not None
    return job


def get(source: Source, key: int) -> Job | None:
    return _one(source.execute(f"SELECT {_COLUMNS} FROM jobs j WHERE j.key = ?", (key,)))


def of_visit(source: Source, execution: int, step_id: str, visit: int) -> Job | None:
    """The job of one visit of a step."""
    return _one(
        source.execute(
            f"SELECT {_COLUMNS} FROM jobs j"
            " WHERE j.execution = ? AND j.step_id = ? AND j.visit = ?",
            (execution, step_id, visit),
        )
    )


def last_of_step(source: Source, execution: int, step_id: str) -> Job | None:
    """The job of a step's last visit that had one."""
    return _one(
        source.execute(
            f"SELECT {_COLUMNS} FROM jobs j WHERE j.execution = ? AND j.step_id = ?"
            " ORDER BY j.visit DESC LIMIT 1",
            (execution, step_id),
        )
    )


def live(source: Source, execution: int) -> Job | None:
    """The job of an execution that has not ended; there is one at most."""
    return _one(
        source.execute(
            f"SELECT {_COLUMNS} FROM jobs j WHERE j.execution = ? AND j.finished_at_ms IS NULL",
            (execution,),
        )
    )


def save(tx: Tx, job: Job) -> Job:
    """Write all of a job that can change."""
    resume, error = job.resume, job.error
    tx.execute(
        "UPDATE jobs SET state = ?, step_attempt = ?, attempt = ?, failures = ?, instance = ?,"
        " container = ?, seq = ?, ttl_ms = ?, active_before_ns = ?, percent = ?, message = ?,"
        " eta_ms = ?, progress_at_ms = ?, progress_told_at_ms = ?, heartbeat_at_ms = ?,"
        " resume = ?, resuming = ?, paused_by_hand = ?, paused_at_ms = ?, last_pause_ms = ?,"
        " paused_ms = ?, error = ?, updated_at_ms = ?, started_at_ms = ?, finished_at_ms = ?,"
        " expires_at_ms = ? WHERE key = ?",
        (
            job.state.value,
            job.step_attempt,
            job.attempt,
            job.failures,
            job.instance,
            job.container,
            job.seq,
            job.ttl_ms,
            job.active_before_ns,
            job.progress.percent,
            job.progress.message,
            job.progress.eta_ms,
            job.progress_at_ms,
            job.progress_told_at_ms,
            job.heartbeat_at_ms,
            None if resume is None else _resume_text(resume),
            job.resuming,
            int(job.paused_by_hand),
            job.paused_at_ms,
            job.last_pause_ms,
            job.paused_ms,
            None if error is None else _error_text(error),
            job.updated_at_ms,
            job.started_at_ms,
            job.finished_at_ms,
            job.expires_at_ms,
            job.key,
        ),
    )
    if job.expires_at_ms is not None:
        tx.hints.due(job.expires_at_ms)
    return job


def heard(tx: Tx, key: int) -> None:
    """The instance is alive: nothing else has changed."""
    tx.execute("UPDATE jobs SET heartbeat_at_ms = ? WHERE key = ?", (tx.now_ms, key))


def move(tx: Tx, key: int, visit: int) -> None:
    """The job goes on as that of another visit of its step."""
    tx.execute("UPDATE jobs SET visit = ? WHERE key = ?", (visit, key))


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """How many jobs there are, by state."""
    rows = conn.execute("SELECT state, count(*) FROM jobs GROUP BY state LIMIT 10")
    return dict(rows.fetchall())


def instances(source: Source) -> dict[str, tuple[int, JobState]]:
    """Every instance that has a job: the job's key and state."""
    rows = source.execute(
        "SELECT instance, key, state FROM jobs WHERE instance IS NOT NULL LIMIT 100000"
    )
    return {instance: (key, JobState(state)) for instance, key, state in rows}


# --- shown -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Which jobs to list, newest first; every filter is optional."""

    limit: int
    before_key: int | None = None
    states: tuple[str, ...] = ()
    flow_id: str | None = None
    flow_version: str | None = None
    tenant_id: str | None = None
    execution_id: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A job with what is told of it besides: whose it is, its lease, its active time, its newest
    checkpoint."""

    job: Job
    execution_id: str
    flow_id: str
    flow_version: str
    tenant_id: str
    worker: str | None
    claimed_at_ms: int | None
    active_ns: int
    wake_at_ms: int | None
    wait_reason: str | None
    wait_event: str | None
    checkpoint: Checkpoint | None


_SHOWN = (
    ", e.id, f.id, f.version, e.tenant, t.worker, t.claimed_at_ms,"
    " (SELECT ifnull(sum(s.last_ns - s.started_ns), 0) FROM segments s WHERE s.job = j.key),"
    " w.wake_at_ms, w.reason, w.event"
)
_SHOWN_FROM = (
    " FROM jobs j JOIN executions e ON e.key = j.execution JOIN flows f ON f.key = e.flow"
    " LEFT JOIN tasks t ON t.execution = j.execution AND j.finished_at_ms IS NULL"
    " AND t.state = 'leased'"
    " LEFT JOIN waits w ON w.execution = j.execution AND j.state = 'paused'"
)


def list_page(conn: sqlite3.Connection, page: Page) -> list[Shown]:
    """One page of jobs."""
    where = ["TRUE"]
    if page.before_key is not None:
        where.append("j.key < :before")
    if page.states:
        marks = ", ".join(f":state{n}" for n in range(len(page.states)))
        where.append(f"j.state IN ({marks})")
    if page.flow_id is not None:
        where.append(
            "e.flow IN (SELECT key FROM flows WHERE id = :flow"
            " AND (:version IS NULL OR version = :version))"
        )
    if page.tenant_id is not None:
        where.append("e.tenant = :tenant")
    if page.execution_id is not None:
        where.append("j.execution IN (SELECT key FROM executions WHERE id = :execution)")
    # Keys first, as in the list of executions.
    rows = conn.execute(
        f"SELECT {_COLUMNS}{_SHOWN}{_SHOWN_FROM} WHERE j.key IN (SELECT j.key FROM jobs j"
        f" JOIN executions e ON e.key = j.execution WHERE {' AND '.join(where)}"
        " ORDER BY j.key DESC LIMIT :limit) ORDER BY j.key DESC LIMIT :limit",
        {
            "before": page.before_key,
            "flow": page.flow_id,
            "version": page.flow_version,
            "tenant": page.tenant_id,
            "execution": page.execution_id,
            "limit": page.limit,
            **{f"state{n}": state for n, state in enumerate(page.states)},
        },
    )
    return [_shown(conn, row) for row in rows.fetchall()]


def shown(conn: sqlite3.Connection, job_id: str) -> Shown | None:
    """One job as the API shows it."""
    row = conn.execute(
        f"SELECT {_COLUMNS}{_SHOWN}{_SHOWN_FROM} WHERE j.id = ?", (job_id,)
    ).fetchone()
    return _shown(conn, row) if row else None


def _shown(conn: sqlite3.Connection, row: tuple[Any, ...]) -> Shown:
    job = _job(row[:-10])
    return Shown(*(job, *row[-10:], checkpoints.newest(conn, job.key)))


# --- rows --------------------------------------------------------------------------------------


def _one(cursor: sqlite3.Cursor) -> Job | None:
    row = cursor.fetchone()
    return _job(row) if row else None


def _job(row: tuple[Any, ...]) -> Job:
    resume, error = row[29], row[35]
    values = (
        *row[:7],
        JobState(row[7]),
        *row[8:23],
        Progress(*row[23:26]),
        *row[26:29],
        None if resume is None else Resumed(**jsontext.loads(resume)),
        row[30],
        bool(row[31]),
        *row[32:35],
        None if error is None else StepError(**jsontext.loads(error)),
        *row[36:],
    )
    return Job(*values)


def _resume_text(resume: Resumed) -> str:
    return jsontext.dumps(
        {
            "by": resume.by,
            "data": resume.data,
            "reason": resume.reason,
            "event": resume.event,
            "paused_ms": resume.paused_ms,
        }
    )


def _error_text(error: StepError) -> str:
    return jsontext.dumps(
        {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "details": error.details,
        }
    )
