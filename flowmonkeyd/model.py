"""The nouns of the domain: frozen values, standard library only.

Times are integer milliseconds since 1970 UTC and end in `_ms`; JSON values are plain Python values.
Nothing here reads a clock, a file or a database. What is made for every single step is a
NamedTuple: one is made and changed in a third of a frozen dataclass's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

__all__ = [
    "DEFAULT_TENANT",
    "NO_VALUE",
    "CancelSource",
    "Charge",
    "ChildRequest",
    "Execution",
    "ExecutionStatus",
    "Flow",
    "HandlerRef",
    "HistoryEntry",
    "JobEnd",
    "Lane",
    "Limits",
    "NewExecution",
    "Outcome",
    "Priority",
    "RetryPolicy",
    "Selector",
    "Signed",
    "Step",
    "StepError",
    "Task",
    "TaskResult",
    "Timeouts",
    "Transitions",
    "Wait",
    "WaitKind",
]

DEFAULT_TENANT = "default"


class _NoValue:
    """The only instance is NO_VALUE: absent, which is not null (JavaScript's undefined)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_VALUE"

    def __bool__(self) -> bool:
        return False


NO_VALUE = _NoValue()


class ExecutionStatus(StrEnum):
    """Where an execution stands; `lifecycle.EXECUTION` says which changes are legal."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({ExecutionStatus.CANCELLED, ExecutionStatus.COMPLETED, ExecutionStatus.FAILED})


class Outcome(StrEnum):
    """What became of one attempt: `failure` is the handler's no, `error` is a crash or a kill."""

    SUCCESS = "success"
    FAILURE = "failure"
    WAIT = "wait"
    ERROR = "error"


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class CancelSource(StrEnum):
    USER = "user"
    TIMEOUT = "timeout"
    SYSTEM = "system"
    PARENT = "parent"
    ADMIN = "admin"


class Lane(StrEnum):
    """Who runs a task: the engine itself, the sandbox, or a container (a job)."""

    BUILTIN = "builtin"
    SANDBOX = "sandbox"
    CONTAINER = "container"


class WaitKind(StrEnum):
    """Why an execution sleeps."""

    TIME = "time"  # until wake_at_ms: `delay`, ctx.wait(duration_ms=…)
    EVENT = "event"  # until a named event arrives, or wake_at_ms
    SIGNAL = "signal"  # until somebody resumes it, or wake_at_ms
    CHILD = "child"  # until a child execution has ended
    RETRY = "retry"  # backoff before the next attempt of the same step
    PAUSE = "pause"  # a job: until it is resumed, a named event arrives, or wake_at_ms


# --- what users write ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HandlerRef:
    """A step's `type`: a handler type and an optional npm-style version range."""

    type: str
    version_range: str | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """Whose package it is: the publisher and key whose signature was verified, and handler.sig."""

    publisher: str
    key_id: str
    signature: str


@dataclass(frozen=True, slots=True)
class Selector:
    """Where a step's input comes from; `argument` is the key, keys, path, template or value."""

    kind: Literal["key", "keys", "path", "template", "full", "static"]
    argument: Any = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`max_attempts` counts retries, not the first try; `retry_on` None means every code."""

    max_attempts: int = 0
    backoff_ms: int = 0
    backoff_multiplier: float = 2.0
    max_backoff_ms: int = 60_000
    retry_on: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Transitions:
    """Step ids; None completes (success) or fails (failure); no `on_resume` means `on_success`."""

    on_success: str | None = None
    on_failure: str | None = None
    on_resume: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    handler: HandlerRef
    input: Selector
    config: Mapping[str, Any] = field(default_factory=dict)
    output_key: str | None = None
    retry: RetryPolicy = RetryPolicy()
    timeout_ms: int | None = None
    transitions: Transitions = Transitions()
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """A validated flow document; `document` is it as written, for showing."""

    id: str
    version: str
    initial_step_id: str
    steps: Mapping[str, Step]
    document: Mapping[str, Any]
    name: str | None = None
    description: str | None = None


# --- what runs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one execution (contract section 2)."""

    steps_max: int = 1000
    context_bytes_max: int = 10 * 1024 * 1024
    value_bytes_max: int = 1024 * 1024
    keys_max: int = 500
    depth_max: int = 15


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an execution may take, and may wait in one place."""

    execution_ms: int = 24 * 3600 * 1000
    wait_ms: int = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class StepError:
    """Why a step failed. A value, not an exception."""

    code: str
    message: str
    retryable: bool = True
    details: Any = None


@dataclass(frozen=True, slots=True)
class Wait:
    """What an execution waits for; `event_filter` matches as a subset of the event's data."""

    kind: WaitKind
    wake_at_ms: int | None = None
    reason: str | None = None
    event: str | None = None
    event_filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """A sub-flow step asks for a child execution."""

    flow_ref: str
    context: Mapping[str, Any]
    wait_for_completion: bool = True
    tenant_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Charge:
    """What one attempt costs, in nano-dollars, by which tier."""

    tier: str
    nanos: int


@dataclass(frozen=True, slots=True)
class JobEnd:
    """Which job (its key) ends with a result. None of these is known of one that no instance had:
    the instance, the number of its message, when it ended (of CLOCK_BOOTTIME; None: at its last
    heartbeat)."""

    job: int
    instance: str | None = None
    seq: int | None = None
    at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What an executor says of one attempt.

    `output` is NO_VALUE when there is none; `next_step` is NO_VALUE unless the handler named the
    next step (None there ends the execution). `updates` are context updates by top-level key.
    """

    outcome: Outcome
    output: Any = NO_VALUE
    error: StepError | None = None
    wait: Wait | None = None
    next_step: Any = NO_VALUE
    updates: Mapping[str, Any] = field(default_factory=dict)
    emitted: tuple[tuple[str, Any], ...] = ()
    children: tuple[ChildRequest, ...] = ()
    fan_out: bool = False  # the children are one for each item: their output is a list
    fatal: bool = False  # an engine error: no retry, no onFailure
    worker_id: str = "engine"
    started_at_ms: int | None = None
    duration_ms: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)  # peakMemoryBytes, cpuMs
    charge: Charge | None = None  # None: no handler was reached
    job: JobEnd | None = None  # of a stateful handler


@dataclass(frozen=True, slots=True)
class NewExecution:
    """A request to make an execution; `flow_ref` is `order` or `order@1.0.0`."""

    flow_ref: str
    context: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    parent_id: str | None = None
    tenant_id: str = DEFAULT_TENANT
    priority: Priority = Priority.NORMAL
    idempotency_key: str | None = None
    idempotency_window_ms: int = 24 * 3600 * 1000
    timeouts: Timeouts = Timeouts()
    metadata: Mapping[str, Any] = field(default_factory=dict)


_NO_METADATA: Mapping[str, Any] = {}


class Execution(NamedTuple):
    """One run of a flow, without its context (which the store keeps key by key)."""

    id: str
    flow_id: str
    flow_version: str
    status: ExecutionStatus
    current_step_id: str | None
    step_count: int
    tenant_id: str
    priority: Priority
    created_at_ms: int
    updated_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    error: Mapping[str, Any] | None = None
    wake_at_ms: int | None = None
    wait_reason: str | None = None
    resume_token: str | None = None
    parent_execution_id: str | None = None
    idempotency_key: str | None = None
    metadata: Mapping[str, Any] = _NO_METADATA
    cancellation: Mapping[str, Any] | None = None
    attempt: int = 0  # retries of the current step so far


class Task(NamedTuple):
    """One attempt of one step, claimed: what an executor needs to run it.

    `id` is the same however often the attempt is delivered, so a handler can use it as an
    idempotency key; `key` is the store's key of the execution, which has one task at most.
    `lease_id` only grows and fences every write: a result that names a lease which is not the
    task's current one changes nothing. `context` holds every key when `context_complete`, else
    those that the step's input needs.
    """

    id: str
    key: int
    lease_id: int
    execution_id: str
    flow_id: str
    flow_version: str
    step: Step
    attempt: int
    handler_type: str
    handler_version: str
    tenant_id: str
    context: Mapping[str, Any]
    queued_at_ms: int
    claimed_at_ms: int
    package_digest: str | None = None
    manifest: str | None = None  # handler.json of the package
    context_complete: bool = True


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A finished attempt (contract section 3)."""

    seq: int
    step_id: str
    handler_type: str
    handler_version: str
    attempt: int
    outcome: Outcome
    output: Any
    error: Mapping[str, Any] | None
    started_at_ms: int
    completed_at_ms: int
    queued_ms: int
    worker_id: str
    duration_ms: int
    usage: Mapping[str, Any] = field(default_factory=dict)
    charge: Charge | None = None
