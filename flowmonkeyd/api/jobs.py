"""Jobs, the stateful runs: how far they are, what they keep, what they have cost; pause, resume,
cancel.

Pausing a job stops its container, which only who runs it can do; resuming and cancelling act on its
execution.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictStr, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd.api import wire
from flowmonkeyd.api.requests import (
    Api,
    answer,
    bounded,
    cursor,
    decode,
    page_of,
    peer,
    read_json,
    word,
)
from flowmonkeyd.billing import amount, job_nanos
from flowmonkeyd.errors import Conflict, NotFound, Unavailable
from flowmonkeyd.jobmodel import Checkpoint, JobState
from flowmonkeyd.model import NO_VALUE, CancelSource
from flowmonkeyd.references import split_ref
from flowmonkeyd.store import jobs

__all__ = [
    "BilledShape",
    "CheckpointShape",
    "JobResumeBody",
    "JobShape",
    "LeaseShape",
    "PauseBody",
    "PauseShape",
    "ProgressShape",
    "TtlShape",
    "cancel_job",
    "checkpoint_json",
    "found",
    "list_jobs",
    "pause_job",
    "resume_job",
    "show_job",
]

MS_NS = 1_000_000


class PauseBody(wire.Body):
    reason: Annotated[StrictStr, Field(max_length=1000)] | None = None


class JobResumeBody(wire.Body):
    """`data` is what the handler's `pause.wait` returns."""

    data: Any = None


class ProgressShape(wire.Shape):
    """What the handler says; `etaMs` from `at` on."""

    percent: float | None
    message: str | None
    etaMs: int | None
    at: str


class CheckpointShape(wire.Shape):
    """`sizeBytes` as it is stored; `attempt` of the job that saved it."""

    name: str
    sizeBytes: int
    encoding: Literal["json", "bytes"]
    attempt: int
    savedAt: str
    ageMs: int


class LeaseShape(wire.Shape):
    """Which daemon has the job, and when its container gave the last sign of life."""

    worker: str
    claimedAt: str
    heartbeatAt: str | None


class TtlShape(wire.Shape):
    """Active time of this attempt of the step, to the last heartbeat: at `softMs` the handler is
    warned, at `ttlMs` it is killed, and it may extend that up to `hardMs`."""

    ttlMs: int
    softMs: int
    hardMs: int
    activeMs: int
    leftMs: int


class PauseShape(wire.Shape):
    reason: str | None
    event: str | None
    byHand: bool
    since: str
    wakeAt: str | None


class BilledShape(wire.Shape):
    """What the job has cost so far, to the last heartbeat: dollars as exact decimal text."""

    tier: str
    perSecond: str
    seconds: float
    amount: str


class JobShape(wire.Shape):
    """A stateful run. `attempt` counts its containers, `failures` those lost in this attempt of
    the step, `maxAttempts` how many may be."""

    id: str
    executionId: str
    flowId: str
    flowVersion: str
    tenantId: str
    stepId: str
    handler: wire.HandlerName
    status: Literal["queued", "running", "paused", "completed", "failed", "cancelled"]
    resources: str
    attempt: int
    stepAttempt: int
    failures: int
    maxAttempts: int
    instance: str | None
    container: str | None
    lease: LeaseShape | None
    progress: ProgressShape | None
    checkpoint: CheckpointShape | None
    ttl: TtlShape
    pause: PauseShape | None
    pausedMs: int
    billed: BilledShape
    error: dict[str, Any] | None
    createdAt: str
    startedAt: str | None
    updatedAt: str
    finishedAt: str | None
    checkpointsExpireAt: str | None


_PAUSE = TypeAdapter(PauseBody)
_RESUME = TypeAdapter(JobResumeBody)


async def list_jobs(api: Api, request: Request) -> Response:
    """Jobs, newest first."""
    flow, limit = request.query_params.get("flow"), bounded(request)
    flow_id, version = split_ref(flow) if flow else (None, None)
    page = jobs.Page(
        limit=limit + 1,
        before_key=page_of(request),
        states=word(request, "status", tuple(state.value for state in JobState)),
        flow_id=flow_id,
        flow_version=version,
        tenant_id=request.query_params.get("tenant"),
        execution_id=request.query_params.get("execution"),
    )
    rows = await api.engine.store.read(lambda conn: jobs.list_page(conn, page))
    more = cursor(rows[limit - 1].job.key) if len(rows) > limit else None
    now_ms = api.clock.now_ms()
    return answer({"items": [_json(row, now_ms) for row in rows[:limit]], "nextCursor": more})


async def show_job(api: Api, request: Request) -> Response:
    """One job."""
    return answer(_json(await found(api, request), api.clock.now_ms()))


async def pause_job(api: Api, request: Request) -> Response:
    """Freeze a running job until it is resumed; it costs nothing meanwhile."""
    body = decode(_PAUSE, await read_json(request, api, {}))
    job = (await found(api, request)).job
    if job.state is not JobState.RUNNING:
        message = f"cannot pause job {job.id}: it is {job.state.value}"
        raise Conflict(message, code="NOT_RUNNING")
    if api.jobs is None:
        raise Unavailable(f"cannot pause job {job.id}: this daemon runs no containers")
    await api.jobs.pause(job.id, peer(request), body.reason)
    return await show_job(api, request)


async def resume_job(api: Api, request: Request) -> Response:
    """End a job's pause, with data for its handler."""
    body = decode(_RESUME, await read_json(request, api, {}))
    data = body.data if "data" in body.model_fields_set else NO_VALUE
    job = (await found(api, request)).job
    await api.engine.resume_job(job.key, data, peer(request))
    return await show_job(api, request)


async def cancel_job(api: Api, request: Request) -> Response:
    """Cancel the job's execution, and so the job."""
    body = decode(wire.CANCEL, await read_json(request, api, {}))
    job = (await found(api, request)).job
    await api.engine.cancel_job(job.key, CancelSource(body.source), body.reason, peer(request))
    return await show_job(api, request)


async def found(api: Api, request: Request) -> jobs.Shown:
    """The job of the path. Raises NotFound."""
    job_id: str = request.path_params["id"]
    row = await api.engine.store.read(lambda conn: jobs.shown(conn, job_id))
    if row is None:
        raise NotFound(f"no job {job_id!r}")
    return row


def checkpoint_json(checkpoint: Checkpoint, now_ms: int) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "sizeBytes": checkpoint.size_bytes,
        "encoding": checkpoint.encoding,
        "attempt": checkpoint.attempt,
        "savedAt": wire.rfc3339(checkpoint.saved_at_ms),
        "ageMs": max(0, now_ms - checkpoint.saved_at_ms),
    }


def _json(row: jobs.Shown, now_ms: int) -> dict[str, Any]:
    job, kept = row.job, row.checkpoint
    return {
        "id": job.id,
        "executionId": row.execution_id,
        "flowId": row.flow_id,
        "flowVersion": row.flow_version,
        "tenantId": row.tenant_id,
        "stepId": job.step_id,
        "handler": {"type": job.handler_type, "version": job.handler_version},
        "status": job.state.value,
        "resources": job.resources,
        "attempt": job.attempt,
        "stepAttempt": job.step_attempt,
        "failures": job.failures,
        "maxAttempts": job.attempts_max,
        "instance": job.instance,
        "container": job.container,
        "lease": _lease(row),
        "progress": _progress(row),
        "checkpoint": None if kept is None else checkpoint_json(kept, now_ms),
        "ttl": _ttl(row),
        "pause": _pause(row),
        "pausedMs": job.paused_ms + _pause_so_far_ms(row, now_ms),
        "billed": {
            "tier": job.resources,
            "perSecond": amount(job.nanos_per_s),
            "seconds": row.active_ns / 10**9,
            "amount": amount(job_nanos(row.active_ns, job.nanos_per_s)),
        },
        "error": None
        if job.error is None
        else {
            "code": job.error.code,
            "message": job.error.message,
            "retryable": job.error.retryable,
            "details": job.error.details,
        },
        "createdAt": wire.rfc3339(job.created_at_ms),
        "startedAt": wire.rfc3339(job.started_at_ms),
        "updatedAt": wire.rfc3339(job.updated_at_ms),
        "finishedAt": wire.rfc3339(job.finished_at_ms),
        "checkpointsExpireAt": wire.rfc3339(job.expires_at_ms),
    }


def _lease(row: jobs.Shown) -> dict[str, Any] | None:
    if row.worker is None:
        return None
    return {
        "worker": row.worker,
        "claimedAt": wire.rfc3339(row.claimed_at_ms),
        "heartbeatAt": wire.rfc3339(row.job.heartbeat_at_ms),
    }


def _progress(row: jobs.Shown) -> dict[str, Any] | None:
    progress, at_ms = row.job.progress, row.job.progress_at_ms
    if at_ms is None:
        return None
    return {
        "percent": progress.percent,
        "message": progress.message,
        "etaMs": progress.eta_ms,
        "at": wire.rfc3339(at_ms),
    }


def _ttl(row: jobs.Shown) -> dict[str, Any]:
    job = row.job
    active_ms = (row.active_ns - job.active_before_ns) // MS_NS
    return {
        "ttlMs": job.ttl_ms,
        "softMs": job.ttl_soft_ms,
        "hardMs": job.ttl_hard_ms,
        "activeMs": active_ms,
        "leftMs": max(0, job.ttl_ms - active_ms),
    }


def _pause(row: jobs.Shown) -> dict[str, Any] | None:
    job = row.job
    if job.state is not JobState.PAUSED:
        return None
    return {
        "reason": row.wait_reason,
        "event": row.wait_event,
        "byHand": job.paused_by_hand,
        "since": wire.rfc3339(job.paused_at_ms),
        "wakeAt": wire.rfc3339(row.wake_at_ms),
    }


def _pause_so_far_ms(row: jobs.Shown, now_ms: int) -> int:
    since_ms = row.job.paused_at_ms
    return 0 if since_ms is None else max(0, now_ms - since_ms)
