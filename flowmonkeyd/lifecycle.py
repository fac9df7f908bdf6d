"""The state machines of an execution, a task and a job, as literal tables.

Theory of operation. An execution is made `pending` with one task in the queue; the first claim
makes it `running`. Each finished task leaves it running (another step, or the same one again),
`waiting` (for a time, an event, a person, a child, or the backoff of a retry) or at an end. Cancel
ends it from any state that is not an end. A retry by hand takes a failed or cancelled execution
back to `running`. `cancelling` is the moment between the request and the end of a cancel whose
running handler has to die first; the engine passes through it inside one transaction.

A task is `queued`, `leased` to a worker, or `delayed` until a time; when it is finished its row is
gone. Only a lease of the present boot and number may finish it.

A job is made `queued` when its task is taken, and `running` once a container has it. A lost
container puts it back (`lose`), and so does an attempt of its step that is to be retried (`again`).
A pause holds it `paused` until it is resumed, which queues it: the frozen container may begin again
at once. It ends with its step, or is cancelled with its execution; a retry by hand reopens it.

An illegal move raises and changes nothing.
"""

from __future__ import annotations

from flowmonkeyd.jobmodel import JobState as J
from flowmonkeyd.model import ExecutionStatus as S

__all__ = [
    "EXECUTION",
    "JOB",
    "TASK",
    "IllegalMove",
    "execution_after",
    "job_after",
    "task_after",
]


class IllegalMove(Exception):
    """A bug: the state machine has no such move."""


EXECUTION: dict[tuple[S, str], S] = {
    (S.PENDING, "start"): S.RUNNING,
    (S.PENDING, "fail"): S.FAILED,
    (S.PENDING, "cancel"): S.CANCELLING,
    (S.RUNNING, "start"): S.RUNNING,
    (S.RUNNING, "advance"): S.RUNNING,
    (S.RUNNING, "wait"): S.WAITING,
    (S.RUNNING, "complete"): S.COMPLETED,
    (S.RUNNING, "fail"): S.FAILED,
    (S.RUNNING, "cancel"): S.CANCELLING,
    (S.WAITING, "resume"): S.RUNNING,
    (S.WAITING, "cancel"): S.CANCELLING,
    (S.CANCELLING, "cancelled"): S.CANCELLED,
    (S.FAILED, "retry"): S.RUNNING,
    (S.CANCELLED, "retry"): S.RUNNING,
}

TASK: dict[tuple[str, str], str] = {
    ("queued", "claim"): "leased",
    ("queued", "drop"): "gone",
    ("leased", "finish"): "gone",
    ("leased", "next"): "queued",
    ("leased", "release"): "queued",
    ("leased", "expire"): "queued",
    ("leased", "delay"): "delayed",
    ("leased", "drop"): "gone",
    ("delayed", "due"): "queued",
    ("delayed", "drop"): "gone",
}

JOB: dict[tuple[J, str], J] = {
    (J.QUEUED, "begin"): J.RUNNING,
    (J.QUEUED, "lose"): J.QUEUED,
    (J.QUEUED, "again"): J.QUEUED,
    (J.QUEUED, "complete"): J.COMPLETED,
    (J.QUEUED, "fail"): J.FAILED,
    (J.QUEUED, "cancel"): J.CANCELLED,
    (J.RUNNING, "begin"): J.RUNNING,
    (J.RUNNING, "lose"): J.QUEUED,
    (J.RUNNING, "again"): J.QUEUED,
    (J.RUNNING, "pause"): J.PAUSED,
    (J.RUNNING, "complete"): J.COMPLETED,
    (J.RUNNING, "fail"): J.FAILED,
    (J.RUNNING, "cancel"): J.CANCELLED,
    (J.PAUSED, "resume"): J.QUEUED,
    (J.PAUSED, "fail"): J.FAILED,
    (J.PAUSED, "cancel"): J.CANCELLED,
    (J.FAILED, "reopen"): J.QUEUED,
    (J.CANCELLED, "reopen"): J.QUEUED,
}


def execution_after(status: S, move: str) -> S:
    """The status after a move. Raises IllegalMove when the table has none."""
    after = EXECUTION.get((status, move))
    if after is None:
        raise IllegalMove(f"an execution that is {status.value} cannot {move}")
    return after


def task_after(state: str, move: str) -> str:
    """The task's state after a move. Raises IllegalMove when the table has none."""
    after = TASK.get((state, move))
    if after is None:
        raise IllegalMove(f"a task that is {state} cannot {move}")
    return after


def job_after(state: J, move: str) -> J:
    """The job's state after a move. Raises IllegalMove when the table has none."""
    after = JOB.get((state, move))
    if after is None:
        raise IllegalMove(f"a job that is {state.value} cannot {move}")
    return after
