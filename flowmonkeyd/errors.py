"""The refusals a caller can get, and the table of stable codes.

Three things are never mixed: a *refusal* (an exception of the kinds below), a *step's failure*
(the value `model.StepError`), and a *bug* (any other exception). Messages say what cannot be done,
why, and what to do; they are for an operator, lower case, without a full stop.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CODES",
    "Conflict",
    "FlowMonkeyError",
    "Forbidden",
    "Invalid",
    "LeaseLost",
    "NotFound",
    "Problem",
    "Superseded",
    "TooLarge",
    "TooMany",
    "Unavailable",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document; `path` is a JSON path (`$.steps.a.input`, `$` whole)."""

    path: str
    message: str
    severity: str = "error"  # "error" refuses the document, "warning" does not


class FlowMonkeyError(Exception):
    """A refusal: `code` is stable, `message` is for people, `problems` name the fields."""

    kind_code = "INTERNAL"

    def __init__(
        self, message: str, code: str | None = None, problems: tuple[Problem, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.kind_code
        self.problems = problems


class Invalid(FlowMonkeyError):
    """The request or document cannot be understood or breaks a rule; nothing was changed."""

    kind_code = "INVALID"


class NotFound(FlowMonkeyError):
    """What the request names does not exist."""

    kind_code = "NOT_FOUND"


class Forbidden(FlowMonkeyError):
    """Not for this user: only root and who runs the daemon may."""

    kind_code = "FORBIDDEN"


class Conflict(FlowMonkeyError):
    """The state of things forbids it: a version that exists, an execution that has ended."""

    kind_code = "CONFLICT"


class TooLarge(FlowMonkeyError):
    """The request is bigger than a limit that the message names."""

    kind_code = "TOO_LARGE"


class Unavailable(FlowMonkeyError):
    """Not now: starting, draining, disk full. Trying again later may work."""

    kind_code = "UNAVAILABLE"


class TooMany(FlowMonkeyError):
    """A tenant's quota is used up; the message says until when."""

    kind_code = "QUOTA_EXCEEDED"


class LeaseLost(FlowMonkeyError):
    """The worker no longer holds the task; what it said changed nothing."""

    kind_code = "LEASE_LOST"


class Superseded(LeaseLost):
    """Another instance has the job; what this one said changed nothing."""


CODES: dict[str, str] = {
    "TIMEOUT": "the step ran longer than its time limit and was killed",
    "MEMORY_LIMIT": "the handler used more memory than its limit",
    "CPU_LIMIT": "the handler used more CPU time than its limit",
    "OUTPUT_TOO_LARGE": "the handler's result is bigger than the output limit",
    "HANDLER_CRASHED": "the handler's process ended without a result",
    "HANDLER_ERROR": "the handler raised an exception",
    "INVALID_RESULT": "what the handler answered is not a result",
    "HANDLER_NOT_FOUND": "no published, unyanked handler matches the step's type",
    "SECRET_NOT_FOUND": "a secret the handler declares does not exist for the tenant",
    "SECRET_UNAVAILABLE": "the vault cannot be read now, or not with the keys it has",
    "INPUT_ERROR": "the step's input could not be resolved",
    "OUTPUT_KEY_INVALID": "outputKey goes through a value that is not an object",
    "FLOW_NOT_FOUND": "no such flow or version",
    "STEP_NOT_FOUND": "the flow has no such step",
    "INVALID_TRANSITION": "a result or transition names a step that does not exist",
    "STEP_FAILED": "the handler reported a failure without a code",
    "MAX_STEPS": "the execution reached its limit of executed steps",
    "CONTEXT_SIZE_LIMIT": "the context would be bigger than its limit",
    "CONTEXT_VALUE_TOO_LARGE": "one context value would be bigger than its limit",
    "CONTEXT_KEY_LIMIT": "the context would have more keys than its limit",
    "CONTEXT_NESTING": "a context value is nested deeper than the limit",
    "CHECKPOINT_MISSED": "a stateful handler did not save its checkpoint in time",
    "CHECKPOINT_TOO_LARGE": "a checkpoint is bigger than its limit",
    "HEARTBEAT_MISSED": "the container of a stateful handler has given no sign of life",
    "JOB_LOST": "the container of a stateful handler is gone",
    "CONTAINERS_UNAVAILABLE": "containers for stateful handlers cannot be run on this host",
    "IMAGE_UNAVAILABLE": "the image of a stateful handler is missing and cannot be built",
    "LEASE_LOST": "the worker no longer holds the task",
    "CANCELLED": "the execution was cancelled",
    "EXECUTION_TIMEOUT": "the execution took longer than its time limit",
    "WAIT_TIMEOUT": "the execution waited longer than its time limit",
    "CHILD_FAILED": "the execution of a sub-flow did not complete",
    "SUB_FLOW_ERROR": "the execution of a sub-flow could not be started",
    "SANDBOX_UNAVAILABLE": "a required layer of the sandbox cannot be set up on this host",
    "MISSING_CONDITIONS": "a conditional step has no conditions",
    "MISSING_PATH": "a switch step has no path",
    "NO_MATCH": "no condition or case matched and there is no default",
    "INVALID_TOKEN": "the resume token is unknown, used, revoked or expired",
    "QUOTA_EXCEEDED": "the tenant has used up its executions of the day or its spend of the month",
    "EXECUTION_EXISTS": "an execution with this id exists already",
    "NOT_WAITING": "the execution does not wait",
    "EXECUTION_ENDED": "the execution has ended",
    "NOT_RUNNING": "the job does not run now",
    "JOB_ENDED": "the job has ended",
    "SIGNATURE_INVALID": "the package is not what its signature was made for",
    "SIGNATURE_REQUIRED": "only signed packages are published here, and this one is not",
    "PUBLISHER_NOT_TRUSTED": "the key that signed the package is not trusted here, or was revoked",
    "NAMESPACE_TAKEN": "the type's namespace belongs to another publisher",
    "PERMISSION_NOT_ALLOWED": "the handler asks for more than the operator allows",
    "INVALID": "the request or document breaks a rule",
    "NOT_FOUND": "no such thing",
    "FORBIDDEN": "only root and the user who runs the daemon may do this",
    "CONFLICT": "the state of things forbids it",
    "TOO_LARGE": "the request is bigger than a limit",
    "UNAVAILABLE": "not now; try again later",
    "DISK_FULL": "the disk is full; nothing was changed",
    "INTERNAL": "a bug in the daemon; the log has the traceback",
}
