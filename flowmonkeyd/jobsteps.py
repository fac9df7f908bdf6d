"""What becomes of a job with what becomes of its step: the writes that `Steps` and `JobWork` share.

The functions run on the writer thread inside the caller's transaction. They keep three promises: a
job ends with its step or its execution, never later; its active time is over when it ends or
pauses; and it is billed in the very transaction that ends its attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from flowmonkeyd.billing import job_nanos
from flowmonkeyd.context import Context
from flowmonkeyd.errors import Superseded
from flowmonkeyd.jobmodel import Job, JobState, PauseEnd, Resumed
from flowmonkeyd.lifecycle import job_after
from flowmonkeyd.model import (
    NO_VALUE,
    Charge,
    Execution,
    JobEnd,
    Limits,
    StepError,
    TaskResult,
)
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.store import Tx, billing, jobs, ledger, segments, waits
from flowmonkeyd.store.executions import Record

__all__ = [
    "attempted",
    "fits",
    "moved",
    "orphaned",
    "reopened",
    "resumed",
    "stopped",
    "told",
    "visit_of",
]


def visit_of(execution: Execution) -> int:
    """Which visit of its current step an execution is in: the same for all retries of the step by
    its own policy, each of which counts as a step, and never twice for one step."""
    return execution.step_count - execution.attempt


def told(tx: Tx, job: Job, name: str, data: Mapping[str, Any] | None = None) -> None:
    """An event of the job."""
    ledger.append(tx, job.execution, [(name, job.step_id, {"jobId": job.id, **(data or {})})])


def moved(tx: Tx, job: Job, move: str, **changes: Any) -> Job:
    """Save the job after a move of its state machine, with what else has changed."""
    state = job_after(job.state, move)
    return jobs.save(tx, replace(job, state=state, updated_at_ms=tx.now_ms, **changes))


def stopped(tx: Tx, job: Job, at_ns: int | None) -> None:
    """It is active no more, since `at_ns` or (None) since its last heartbeat."""
    if at_ns is not None:
        segments.renew(tx, job.key, at_ns)
    segments.end(tx, job.key)


def attempted(
    tx: Tx,
    record: Record,
    result: TaskResult,
    error: StepError | None,
    is_retried: bool,
    keep_ms: int,
    quotas: Quotas,
) -> None:
    """An attempt of a stateful step has ended, with what `error` says: so has its job, unless the
    step is retried. It is billed for its active time, if it had any.

    `record` is as it was before. Raises Superseded when another instance has the job.
    """
    step_id = record.execution.current_step_id
    assert step_id is not None
    job = jobs.of_visit(tx, record.key, step_id, visit_of(record.execution))
    if job is None or job.state.is_final:
        return  # its input could not be had, say: there was nothing to run
    end = result.job or JobEnd(job.key, job.instance)
    if (end.job, end.instance) != (job.key, job.instance):
        raise Superseded(f"job {job.id} is another instance's")
    if job.instance is not None:
        tx.hints.evicted.add(job.instance)
    stopped(tx, job, end.at_ns)
    active_ns = segments.active_ns(tx, job.key)
    _bill(tx, job, active_ns, record, record.execution.step_count + 1, quotas)
    shown: dict[str, Any] = {"attempt": job.attempt, "activeMs": active_ns // 10**6}
    if error is None:
        job = _ended(tx, job, "complete", keep_ms, None)
        told(tx, job, "job.completed", shown)
        return
    shown |= {"code": error.code, "message": error.message, "retry": is_retried}
    if is_retried:
        job = _again(tx, job, "again", active_ns, error)
    else:
        job = _ended(tx, job, "fail", keep_ms, error)
    told(tx, job, "job.failed", shown)


def orphaned(
    tx: Tx, record: Record, move: Literal["cancel", "fail"], keep_ms: int, quotas: Quotas
) -> None:
    """The execution has ended: so has the job it may still have, with its container."""
    job = jobs.live(tx, record.key)
    if job is None:
        return
    stopped(tx, job, None)
    active_ns = segments.active_ns(tx, job.key)
    _bill(tx, job, active_ns, record, None, quotas)
    if job.instance is not None:
        tx.hints.evicted.add(job.instance)
    why = record.execution.error or {}
    error = StepError(str(why.get("code")), str(why.get("message")), retryable=False)
    job = _ended(tx, job, move, keep_ms, error)
    name = "job.cancelled" if move == "cancel" else "job.failed"
    shown = {"attempt": job.attempt, "activeMs": active_ns // 10**6, "code": error.code}
    told(tx, job, name, shown)


def fits(data: Any, limits: Limits) -> StepError | None:
    """Why a pause cannot end with this data: it is bounded as a value of a context is."""
    change = Context().change({} if data is NO_VALUE else {"data": data}, limits)
    return change if isinstance(change, StepError) else None


def resumed(tx: Tx, wait: waits.WaitRow, how: PauseEnd, data: Any) -> None:
    """The pause of the execution's job is over; who has its instance is told by its task."""
    job = jobs.live(tx, wait.execution)
    assert job is not None
    assert job.paused_at_ms is not None
    pause_ms = max(0, tx.now_ms - job.paused_at_ms)
    resume = job.resume
    if not job.paused_by_hand:
        value = None if data is NO_VALUE else data
        resume = Resumed(how, value, wait.wait.reason, wait.wait.event, pause_ms)
    moved(
        tx,
        job,
        "resume",
        resume=resume,
        resuming=how,
        paused_at_ms=None,
        last_pause_ms=pause_ms,
        paused_ms=job.paused_ms + pause_ms,
    )


def reopened(tx: Tx, record: Record) -> None:
    """A failed or cancelled execution runs again from a step, by hand (`record` is as it is now):
    the step's last job goes on with it, from its checkpoints, unless it was completed."""
    step_id = record.execution.current_step_id
    assert step_id is not None
    job = jobs.last_of_step(tx, record.key, step_id)
    if job is None or job.state not in (JobState.FAILED, JobState.CANCELLED):
        return
    visit = visit_of(record.execution)
    if job.visit != visit:
        jobs.move(tx, job.key, visit)
    job = replace(job, visit=visit, finished_at_ms=None, expires_at_ms=None)
    _again(tx, job, "reopen", segments.active_ns(tx, job.key), job.error)


def _again(tx: Tx, job: Job, move: str, active_ns: int, error: StepError | None) -> Job:
    """Another attempt of the step: it has a TTL and failures of its own."""
    return moved(
        tx,
        job,
        move,
        instance=None,
        container=None,
        failures=0,
        ttl_ms=job.ttl_default_ms,
        active_before_ns=active_ns,
        error=error,
    )


def _ended(tx: Tx, job: Job, move: str, keep_ms: int, error: StepError | None) -> Job:
    last_pause_ms, paused_ms = job.last_pause_ms, job.paused_ms
    if job.paused_at_ms is not None:
        last_pause_ms = max(0, tx.now_ms - job.paused_at_ms)
        paused_ms += last_pause_ms
    return moved(
        tx,
        job,
        move,
        instance=None,
        container=None,
        resume=None,
        resuming=None,
        paused_at_ms=None,
        last_pause_ms=last_pause_ms,
        paused_ms=paused_ms,
        error=error,
        finished_at_ms=tx.now_ms,
        expires_at_ms=tx.now_ms + keep_ms,
    )


def _bill(
    tx: Tx, job: Job, active_ns: int, record: Record, seq: int | None, quotas: Quotas
) -> None:
    """A line for what the job has cost since the last one, if it was active since."""
    if active_ns == job.active_before_ns:
        return
    lines, nanos = billing.charged_to_job(tx, job.key)
    billed = Charge(job.resources, job_nanos(active_ns, job.nanos_per_s) - nanos)
    billing.charge_job(tx, job.key, record.key, seq, lines + 1, billed)
    quotas.spent(tx, record.execution.tenant_id, billed.nanos)
