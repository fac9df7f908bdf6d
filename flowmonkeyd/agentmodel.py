"""What an agent and a daemon say to each other: the nouns of the protocol, nothing else.

`agentwire` makes these of bytes. Frozen; names as in the protocol, in the words of Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Accepted",
    "AskedContext",
    "Assignment",
    "BlobHead",
    "Checkpoint",
    "Clear",
    "Durable",
    "Extend",
    "Heartbeat",
    "Hello",
    "Load",
    "LogLine",
    "Message",
    "Part",
    "Pause",
    "Pong",
    "Prepared",
    "Progress",
    "Refusal",
    "Result",
]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a connection. `attempt` 0: it has no task yet. `state`: "idle",
    "running", or "paused" (it knows that it is, and waits to be resumed). `answered` is the
    highest seq whose answer it has: what comes next is the one after it."""

    protocol: int
    instance: str
    attempt: int
    runtime: str
    state: str
    answered: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """The handler has been imported."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """It could not be imported; the message is the handler's own."""

    message: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The task of this attempt has begun."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """It lives."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: 0 to 100; `eta_ms` is the agent's own guess."""

    percent: float
    message: str | None
    eta_ms: int | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the log; `at_ms` is the container's clock. Only stream "log" has a level."""

    at_ms: int
    stream: str
    level: str | None
    message: str
    fields: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class BlobHead:
    """What is said of a blob before it comes: its bytes as they are stored. `encoding` is "json"
    or "bytes" once it is not compressed any more, `compression` "none" or "zlib"."""

    size: int
    encoding: str
    compression: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Save a blob under a name. `settled`: after the handler was given what it was resumed with."""

    seq: int
    name: str
    blob: BlobHead
    settled: bool


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget the checkpoint of a name, or (None) all of them."""

    seq: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop until an event, a time or a hand; the blob is a checkpoint to save with it."""

    seq: int
    reason: str
    max_wait_ms: int | None
    event: str | None
    filter: Mapping[str, Any] | None
    name: str | None
    blob: BlobHead | None


@dataclass(frozen=True, slots=True)
class Extend:
    """Give it that much more time to live."""

    seq: int
    ms: int


@dataclass(frozen=True, slots=True)
class Result:
    """The handler has ended. `answer` is as `sandbox.Reply.result`; if it is None there is none,
    because of `ending` ("memory", "output" or "protocol", as `sandbox.Ending`) and `message`."""

    seq: int
    answer: Mapping[str, Any] | None
    ending: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Asks for the checkpoint of a name."""

    ask: int
    name: str


@dataclass(frozen=True, slots=True)
class AskedContext:
    """Asks for the execution's context."""

    ask: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping."""

    n: int


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of the blob that was announced; as many as have come."""

    data: bytes


Durable = Checkpoint | Clear | Pause | Extend | Result
Message = (
    Hello | Prepared | Refusal | Accepted | Heartbeat | Progress | LogLine | Durable | Load
) | (AskedContext | Pong)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an agent is given to run. `package` is the folder in the container. `checkpoints` are
    the saved ones: {name: {"size": …, "savedAtMs": …}}. `resume` None, or {"by", "data", "reason",
    "event", "pausedMs"} of the pause that the job came out of. `pause_max_ms` 0: not enabled.
    `attempt` is the job's, `step_attempt` the step's."""

    attempt: int
    job_id: str
    task_id: str
    package: str
    entrypoint: str
    execution_id: str
    flow_id: str
    step_id: str
    step_attempt: int
    tenant_id: str
    has_input: bool
    input: Any
    config: Mapping[str, Any]
    secrets: Mapping[str, str] = field(repr=False)
    heartbeat_ms: int
    interval_ms: int
    checkpoint_max_bytes: int
    checkpoints: Mapping[str, Any]
    ttl_ms: int
    ttl_soft_ms: int
    ttl_hard_ms: int
    active_ms: int
    pause_max_ms: int = 0
    resume: Mapping[str, Any] | None = None

    def message(self, instance: str) -> dict[str, Any]:
        """As it is sent."""
        return {
            "type": "task",
            "instance": instance,
            "attempt": self.attempt,
            "jobId": self.job_id,
            "taskId": self.task_id,
            "package": self.package,
            "entrypoint": self.entrypoint,
            "executionId": self.execution_id,
            "flowId": self.flow_id,
            "stepId": self.step_id,
            "stepAttempt": self.step_attempt,
            "tenantId": self.tenant_id,
            "hasInput": self.has_input,
            "input": self.input,
            "config": dict(self.config),
            "secrets": dict(self.secrets),
            "heartbeatMs": self.heartbeat_ms,
            "checkpoint": {
                "intervalMs": self.interval_ms,
                "maxSize": self.checkpoint_max_bytes,
                "names": dict(self.checkpoints),
            },
            "ttl": {
                "ttlMs": self.ttl_ms,
                "softMs": self.ttl_soft_ms,
                "hardMs": self.ttl_hard_ms,
                "activeMs": self.active_ms,
            },
            "pauseMaxMs": self.pause_max_ms,
            "resume": None if self.resume is None else dict(self.resume),
        }
