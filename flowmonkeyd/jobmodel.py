"""The nouns of stateful handlers: frozen values, standard library only.

A *job* is the durable run of a stateful handler for one visit of one step. An *instance* is one
container that runs one *attempt* of it; the number of the attempt and the instance's id fence every
write. `_ns` is CLOCK_BOOTTIME of one boot of the machine, `_ms` wall-clock time as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from flowmonkeyd.model import JobEnd, StepError

__all__ = [
    "CHECKPOINT_NAMES_MAX",
    "Checkpoint",
    "Fence",
    "Job",
    "JobEnd",
    "JobPlan",
    "JobRules",
    "JobState",
    "Lost",
    "NewCheckpoint",
    "Progress",
    "Resumed",
    "Segment",
]

# Who or what has ended a pause.
PauseEnd = Literal["event", "hand", "time"]
# A task's frame names them all.
CHECKPOINT_NAMES_MAX = 100


class JobState(StrEnum):
    """Where a job stands; `lifecycle.JOB` says which changes are legal."""

    QUEUED = "queued"  # an instance is wanted: a new one, or the frozen one again
    RUNNING = "running"
    PAUSED = "paused"  # by its handler or by hand; nothing is billed
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Fence:
    """Who writes: a task (key and lease) and the instance that has the job (its key) now."""

    key: int
    lease_id: int
    job: int
    instance: str | None


@dataclass(frozen=True, slots=True)
class JobRules:
    """What the operator says of all jobs: backoff after a lost instance, and how long checkpoints
    outlive their job."""

    backoff_ms: int = 1000
    max_backoff_ms: int = 60_000
    checkpoint_keep_ms: int = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job may take, when it is made: class and price, active time, instances that may be
    lost in one attempt of its step, bytes of all its checkpoints as stored."""

    resources: str
    nanos_per_s: int
    ttl_ms: int
    ttl_soft_ms: int
    ttl_hard_ms: int
    attempts_max: int
    checkpoint_bytes_max: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a handler says of how far it is; `percent` from 0 to 100."""

    percent: float | None = None
    message: str | None = None
    eta_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """How the pause that its handler asked for has ended: what `pause.wait` with this reason and
    event returns. `data` is None when the time was up or nothing was given."""

    by: PauseEnd
    data: Any
    reason: str | None
    event: str | None
    paused_ms: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job's row. `attempt` counts its instances, `failures` those lost in this attempt of the
    step; `seq` is the last message of the instance that was applied.

    `ttl_ms` counts active time from `active_before_ns`, what earlier attempts of the step had
    used; it starts at the default and can be extended to the hard one.
    `resume` stays until a checkpoint that was saved after the handler was given it; `resuming` says
    how the last pause has ended, as long as nothing has run since. `paused_ms` is all its pauses,
    `last_pause_ms` the last one.
    """

    key: int
    id: str
    execution: int
    visit: int
    step_id: str
    handler_type: str
    handler_version: str
    state: JobState
    step_attempt: int
    attempt: int
    failures: int
    attempts_max: int
    instance: str | None
    container: str | None
    seq: int
    resources: str
    nanos_per_s: int
    ttl_default_ms: int
    ttl_ms: int
    ttl_soft_ms: int
    ttl_hard_ms: int
    active_before_ns: int
    checkpoint_bytes_max: int
    progress: Progress
    progress_at_ms: int | None
    progress_told_at_ms: int | None
    heartbeat_at_ms: int | None
    resume: Resumed | None
    resuming: PauseEnd | None
    paused_by_hand: bool
    paused_at_ms: int | None
    last_pause_ms: int
    paused_ms: int
    error: StepError | None
    created_at_ms: int
    updated_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    expires_at_ms: int | None


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A value to keep under a name: its bytes as they are stored, here or in a file below the
    folder of checkpoints. `sha256` (hexadecimal) and `size_bytes` are of those bytes."""

    name: str
    size_bytes: int
    encoding: Literal["json", "bytes"]
    compression: Literal["none", "zlib"]
    sha256: str
    data: bytes | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A kept value. `data` is None where only the list was asked for, and for one in a file."""

    name: str
    size_bytes: int
    encoding: Literal["json", "bytes"]
    compression: Literal["none", "zlib"]
    sha256: str
    attempt: int
    saved_at_ms: int
    data: bytes | None
    file: str | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of active time within one boot of the machine; an open one is renewed by
    heartbeats, so that what is lost with the machine costs nobody more than one of them."""

    number: int
    attempt: int
    boot: str
    started_ns: int
    last_ns: int
    ended: bool
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class Lost:
    """An instance is gone: whether the job may have another, after which backoff."""

    job: Job
    may_retry: bool
    backoff_ms: int
