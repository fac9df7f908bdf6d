"""Requests and responses as they are on the wire: camelCase lives here (and in documents).

Requests are pydantic models that refuse unknown fields and loose types. Responses are plain dicts
made by the functions below (fast: this is the hot path); the models beside them describe their
shape for the OpenAPI document, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter

from flowmonkeyd import jsontext
from flowmonkeyd.billing import amount
from flowmonkeyd.errors import Problem
from flowmonkeyd.model import DEFAULT_TENANT, HistoryEntry
from flowmonkeyd.store.catalog import FlowRow, HandlerRow
from flowmonkeyd.store.executions import Record
from flowmonkeyd.store.history import LogRow

__all__ = [
    "BATCH",
    "BATCH_MAX",
    "CANCEL",
    "EVENT",
    "EXECUTION",
    "RESUME",
    "RETRY",
    "BatchShape",
    "Body",
    "CancelBody",
    "ChargeShape",
    "CreatedShape",
    "DepthShape",
    "EventBody",
    "EventShape",
    "ExecutionBody",
    "ExecutionShape",
    "FlowAppliedShape",
    "FlowShape",
    "FlowShownShape",
    "HandlerName",
    "HandlerShape",
    "HealthShape",
    "HistoryShape",
    "ListedShape",
    "LogShape",
    "Page",
    "ProblemShape",
    "PublishedShape",
    "QueueShape",
    "ResumeBody",
    "RetryBody",
    "SentShape",
    "Shape",
    "StartedShape",
    "TimeoutsBody",
    "TotalsShape",
    "VersionShape",
    "WarningShape",
    "event_json",
    "execution_json",
    "flow_json",
    "handler_json",
    "history_json",
    "log_json",
    "problems_json",
    "rfc3339",
]

# All in one transaction: more would hold the writer for seconds.
BATCH_MAX = 10_000
WEEK_MS = 7 * 24 * 3600 * 1000
YEARS_MS = 3650 * 24 * 3600 * 1000

Name = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class TimeoutsBody(Body):
    executionMs: Annotated[StrictInt, Field(ge=1, le=YEARS_MS)] | None = None
    waitMs: Annotated[StrictInt, Field(ge=1, le=YEARS_MS)] | None = None


class ExecutionBody(Body):
    """A new execution; `flow` is an id or id@version."""

    flow: Name
    context: dict[str, Any] = Field(default_factory=dict)
    id: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")] | None = None
    tenantId: Name = DEFAULT_TENANT
    priority: Literal["high", "normal", "low"] = "normal"
    idempotencyKey: Name | None = None
    idempotencyWindowMs: Annotated[StrictInt, Field(ge=1, le=WEEK_MS)] = 24 * 3600 * 1000
    timeouts: TimeoutsBody = TimeoutsBody()
    metadata: dict[str, Any] = Field(default_factory=dict)


class CancelBody(Body):
    reason: Annotated[StrictStr, Field(max_length=1000)] | None = None
    source: Literal["user", "admin"] = "user"


class ResumeBody(Body):
    token: Name | None = None
    data: Any = None


class RetryBody(Body):
    fromStepId: Name | None = None


class EventBody(Body):
    name: Name
    data: Any = None
    tenantId: Name = DEFAULT_TENANT


EXECUTION = TypeAdapter(ExecutionBody)
BATCH = TypeAdapter(list[ExecutionBody])
CANCEL = TypeAdapter(CancelBody)
RESUME = TypeAdapter(ResumeBody)
RETRY = TypeAdapter(RetryBody)
EVENT = TypeAdapter(EventBody)


# --- shapes of responses, for the OpenAPI document ---------------------------------------------


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)  # built when somebody asks


Item = TypeVar("Item")


class Page(Shape, Generic[Item]):
    """`nextCursor` goes on with the list; null when this was all."""

    items: list[Item]
    nextCursor: str | None


class ExecutionShape(Shape):
    """One run of a flow."""

    id: str
    flowId: str
    flowVersion: str
    status: Literal[
        "pending", "running", "waiting", "cancelling", "cancelled", "completed", "failed"
    ]
    currentStepId: str | None
    context: dict[str, Any]
    stepCount: int
    tenantId: str
    priority: Literal["high", "normal", "low"]
    error: dict[str, Any] | None
    cancellation: dict[str, Any] | None
    wakeAt: str | None
    waitReason: str | None
    resumeToken: str | None
    parentExecutionId: str | None
    idempotencyKey: str | None
    metadata: dict[str, Any]
    createdAt: str
    startedAt: str | None
    updatedAt: str
    finishedAt: str | None


class WarningShape(Shape):
    path: str
    message: str


class CreatedShape(ExecutionShape):
    """`warnings` when a handler that it uses is deprecated or yanked."""

    warnings: list[WarningShape] | None = None


class ListedShape(ExecutionShape):
    """`contextPartial` when large context values were left out; show the execution for them."""

    contextPartial: bool = False


class StartedShape(Shape):
    """An execution of a batch; with `view=ids` only these fields."""

    id: str
    status: str
    created: bool


class BatchShape(Shape):
    items: list[StartedShape | dict[str, Any]]


class HandlerName(Shape):
    type: str
    version: str


class ChargeShape(Shape):
    """What an attempt has cost, in dollars; null: it never reached the handler."""

    tier: str
    amount: str


class HistoryShape(Shape):
    """A finished attempt; `usage` may have peakMemoryBytes and cpuMs."""

    seq: int
    stepId: str
    handler: HandlerName
    attempt: int
    outcome: Literal["success", "failure", "wait", "error"]
    output: Any
    error: dict[str, Any] | None
    startedAt: str
    completedAt: str
    durationMs: int
    queuedMs: int
    workerId: str
    usage: dict[str, Any]
    billing: ChargeShape | None


class EventShape(Shape):
    seq: int
    type: str
    at: str
    executionId: str | None
    stepId: str | None
    data: Any


class LogShape(Shape):
    seq: int
    at: str
    stepId: str
    attempt: int
    stream: str
    level: str | None
    message: str
    fields: dict[str, Any]


class SentShape(Shape):
    name: str
    woken: int
    executionIds: list[str]
    seq: int


class FlowShape(Shape):
    id: str
    version: str
    name: str | None
    digest: str
    stepCount: int
    appliedAt: str


class FlowShownShape(FlowShape):
    document: dict[str, Any]


class FlowAppliedShape(FlowShownShape):
    created: bool
    warnings: list[WarningShape]


class HandlerShape(Shape):
    type: str
    version: str
    name: str | None
    description: str | None
    runtime: str
    stateful: bool
    digest: str
    sizeBytes: int
    publishedAt: str
    yankedAt: str | None
    publisher: str | None
    keyId: str | None
    deprecation: str | None
    manifest: dict[str, Any]


class PublishedShape(HandlerShape):
    created: bool
    warnings: list[WarningShape]


class HealthShape(Shape):
    status: Literal["ok", "degraded", "starting", "draining"]
    version: str
    uptimeS: float
    checks: dict[str, Any]


class DepthShape(Shape):
    """`oldestQueuedMs` is how long the oldest task has been waiting."""

    handlerType: str
    priority: Literal["high", "normal", "low"]
    queued: int
    leased: int
    oldestQueuedMs: int | None


class TotalsShape(Shape):
    queued: int
    leased: int


class QueueShape(Shape):
    items: list[DepthShape]
    totals: TotalsShape


class VersionShape(Shape):
    version: str
    apiVersions: list[str]


class ProblemShape(Shape):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[WarningShape] | None = None


# --- responses -----------------------------------------------------------------------------------


def rfc3339(at_ms: int | None) -> str | None:
    """`2026-11-23T00:37:28.123Z`."""
    if at_ms is None:
        return None
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03d}Z"


@lru_cache(maxsize=1024)
def _second(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S}"


def execution_json(record: Record) -> dict[str, Any]:
    """An execution with what of its context is in memory."""
    execution = record.execution
    created = rfc3339(execution.created_at_ms)
    return {
        "id": execution.id,
        "flowId": execution.flow_id,
        "flowVersion": execution.flow_version,
        "status": execution.status.value,
        "currentStepId": execution.current_step_id,
        "context": record.context.values,
        "stepCount": execution.step_count,
        "tenantId": execution.tenant_id,
        "priority": execution.priority.value,
        "error": _timed(execution.error, "timestampMs", "timestamp"),
        "cancellation": _timed(execution.cancellation, "cancelledAtMs", "cancelledAt"),
        "wakeAt": rfc3339(execution.wake_at_ms),
        "waitReason": execution.wait_reason,
        "resumeToken": execution.resume_token,
        "parentExecutionId": execution.parent_execution_id,
        "idempotencyKey": execution.idempotency_key,
        "metadata": execution.metadata,
        "createdAt": created,
        "startedAt": rfc3339(execution.started_at_ms),
        "updatedAt": created
        if execution.updated_at_ms == execution.created_at_ms
        else rfc3339(execution.updated_at_ms),
        "finishedAt": rfc3339(execution.finished_at_ms),
    }


def history_json(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "stepId": entry.step_id,
        "handler": {"type": entry.handler_type, "version": entry.handler_version},
        "attempt": entry.attempt,
        "outcome": entry.outcome.value,
        "output": entry.output,
        "error": _timed(entry.error, "timestampMs", "timestamp"),
        "startedAt": rfc3339(entry.started_at_ms),
        "completedAt": rfc3339(entry.completed_at_ms),
        "durationMs": entry.duration_ms,
        "queuedMs": entry.queued_ms,
        "workerId": entry.worker_id,
        "usage": entry.usage,
        "billing": None
        if entry.charge is None
        else {"tier": entry.charge.tier, "amount": amount(entry.charge.nanos)},
    }


def event_json(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "type": row["type"],
        "at": rfc3339(row["at_ms"]),
        "executionId": row["execution_id"],
        "stepId": row["step_id"],
        "data": row["data"],
    }


def log_json(row: LogRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "at": rfc3339(row.at_ms),
        "stepId": row.step_id,
        "attempt": row.attempt,
        "stream": row.stream,
        "level": row.level,
        "message": row.message,
        "fields": row.fields or {},
    }


def flow_json(row: FlowRow, document: bool = False) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "version": row.version,
        "name": row.name,
        "digest": row.digest,
        "stepCount": row.step_count,
        "appliedAt": rfc3339(row.applied_at_ms),
    }
    if document:
        shown["document"] = jsontext.loads(row.document)
    return shown


def handler_json(row: HandlerRow) -> dict[str, Any]:
    manifest = jsontext.loads(row.manifest)
    about = manifest.get("handler", {})
    return {
        "type": row.type,
        "version": row.version,
        "name": about.get("name"),
        "description": about.get("description"),
        "runtime": about.get("runtime", "python"),
        "stateful": about.get("stateful", False),
        "digest": row.digest,
        "sizeBytes": row.size_bytes,
        "publishedAt": rfc3339(row.published_at_ms),
        "yankedAt": rfc3339(row.yanked_at_ms),
        "publisher": row.publisher,
        "keyId": row.key_id,
        "deprecation": row.deprecation,
        "manifest": manifest,
    }


def problems_json(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [{"path": problem.path, "message": problem.message} for problem in problems]


def _timed(value: Mapping[str, Any] | None, internal: str, shown: str) -> dict[str, Any] | None:
    if value is None:
        return None
    rest = {name: item for name, item in value.items() if name != internal}
    return {**rest, shown: rfc3339(value.get(internal))}
