"""What follows from one thing that happened to an execution: pure.

Given the flow, the execution, its context and what happened (an attempt finished, a wait ended, an
engine error), `finish`, `resume` and `fail` say everything that must change, as one `Decision` the
engine saves in one transaction. No clock, no I/O, no randomness, no async: `now_ms` comes in.
Retries, transitions, the next-step override, `_error`, step and context limits live here and only
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowmonkeyd.context import Change, Context
from flowmonkeyd.documents import selectors
from flowmonkeyd.lifecycle import execution_after
from flowmonkeyd.model import (
    NO_VALUE,
    CancelSource,
    Execution,
    ExecutionStatus,
    Flow,
    Limits,
    Outcome,
    RetryPolicy,
    Step,
    StepError,
    TaskResult,
    Wait,
    WaitKind,
)

__all__ = [
    "ERROR_KEY",
    "RESUME_KEY",
    "Decision",
    "Event",
    "backoff_ms",
    "begin",
    "cancel",
    "event_matches",
    "fail",
    "finish",
    "keys_to_finish",
    "park",
    "resume",
    "retry",
    "same",
    "unpark",
]

# (type, step id, data): what the ledger appends, in this order.
Event = tuple[str, str | None, Mapping[str, Any] | None]

ERROR_KEY = "_error"
RESUME_KEY = "resumeData"


@dataclass(slots=True)
class Decision:
    """The execution as it becomes, and what goes with it.

    `next_step` is to be queued; `wait` says what it waits for; neither: it has ended. `outcome` is
    what goes into the history (None: no attempt was made), with `error` of that attempt.
    """

    execution: Execution
    change: Change | None = None
    next_step: Step | None = None
    wait: Wait | None = None
    events: list[Event] = field(default_factory=list)
    outcome: Outcome | None = None
    attempt_error: StepError | None = None

    @property
    def ended(self) -> bool:
        return self.execution.status.is_final


def begin(execution: Execution, step: Step, now_ms: int) -> tuple[Execution, list[Event]]:
    """An attempt of `step` starts: the execution is running, and says so the first time."""
    events: list[Event] = []
    if execution.status is ExecutionStatus.PENDING:
        status = execution_after(execution.status, "start")
        execution = execution._replace(status=status, started_at_ms=now_ms, updated_at_ms=now_ms)
        events.append(("execution.started", step.id, None))
    events.append(("step.started", step.id, {"attempt": execution.attempt}))
    return execution, events


def keys_to_finish(step: Step) -> frozenset[str]:
    """The context keys whose values `finish` needs: an output below an existing top-level key."""
    head, dot, _ = (step.output_key or "").partition(".")
    return frozenset({head}) if dot else frozenset()


def finish(
    flow: Flow,
    execution: Execution,
    context: Context,
    result: TaskResult,
    now_ms: int,
    limits: Limits,
) -> Decision:
    """An attempt of the current step ended with `result`."""
    step = flow.steps[execution.current_step_id or ""]
    execution = execution._replace(step_count=execution.step_count + 1, updated_at_ms=now_ms)
    decision = Decision(execution, outcome=result.outcome, attempt_error=result.error)
    if result.outcome is Outcome.SUCCESS:
        problem = _store_output(decision, step, context, result, limits)
        if problem is None:
            _completed(decision, step, result)
            target = step.transitions.on_success
            if result.next_step is not NO_VALUE:
                target = result.next_step
            _go(decision, flow, context, target, "success", now_ms, limits)
            return decision
        result = replace(result, outcome=Outcome.ERROR, error=problem, next_step=NO_VALUE)
        decision.outcome, decision.attempt_error = Outcome.ERROR, problem
    _completed(decision, step, result)
    if result.outcome is Outcome.WAIT:
        assert result.wait is not None
        _sleep(decision, step, result.wait, now_ms)
    else:
        _failed(decision, flow, step, context, result, now_ms, limits)
    return decision


def resume(
    flow: Flow,
    execution: Execution,
    context: Context,
    wait: Wait,
    data: Any,
    now_ms: int,
    limits: Limits,
) -> Decision | StepError:
    """The wait is over: by its time (`data` NO_VALUE), by an event or by hand.

    A StepError says which limit the data would break; nothing follows from it by itself.
    """
    step = flow.steps[execution.current_step_id or ""]
    status = execution_after(execution.status, "resume")
    execution = execution._replace(
        status=status,
        updated_at_ms=now_ms,
        wake_at_ms=None,
        wait_reason=None,
        resume_token=None,
    )
    decision = Decision(execution, events=[("execution.resumed", step.id, None)])
    sets: dict[str, Any] = {}
    if wait.kind is WaitKind.PAUSE:
        pass  # its job is given the data
    elif data is not NO_VALUE:
        if isinstance(data, Mapping):
            sets.update(data)
        sets[RESUME_KEY] = data
    elif wait.kind in (WaitKind.EVENT, WaitKind.SIGNAL):
        sets[RESUME_KEY] = None  # nobody came: the time was up
    if sets:
        change = context.change(sets, limits)
        if isinstance(change, StepError):
            return change
        decision.change = change
    if wait.kind in (WaitKind.RETRY, WaitKind.PAUSE):
        decision.next_step = step
        return decision
    decision.execution = execution._replace(attempt=0)
    target = step.transitions.on_resume or step.transitions.on_success
    _go(decision, flow, context, target, "resume", now_ms, limits)
    return decision


def park(execution: Execution, step: Step, wait: Wait, now_ms: int) -> Decision:
    """The attempt goes on elsewhere (in children) or later (a job's pause) and has not ended: no
    history, no step counted."""
    decision = Decision(execution._replace(updated_at_ms=now_ms))
    _sleep(decision, step, wait, now_ms)
    return decision


def unpark(execution: Execution, now_ms: int) -> tuple[Execution, list[Event]]:
    """The parked attempt is about to `finish`."""
    status = execution_after(execution.status, "resume")
    execution = execution._replace(
        status=status, wait_reason=None, wake_at_ms=None, updated_at_ms=now_ms
    )
    return execution, [("execution.resumed", execution.current_step_id, None)]


def fail(
    execution: Execution, context: Context, error: StepError, now_ms: int, limits: Limits
) -> Decision:
    """An engine error: the execution fails at once, with no retry and no onFailure."""
    decision = Decision(execution._replace(updated_at_ms=now_ms))
    _end_failed(decision, context, error, now_ms, limits)
    return decision


def cancel(
    execution: Execution,
    source: CancelSource,
    reason: str | None,
    now_ms: int,
    code: str = "CANCELLED",
) -> Decision:
    """The execution ends as cancelled; `code` says EXECUTION_TIMEOUT or WAIT_TIMEOUT for a
    time-out. What hangs on it (task, wait, tokens, children) is the engine's to end."""
    status = execution_after(execution_after(execution.status, "cancel"), "cancelled")
    message = f"cancelled by {source.value}" + (f": {reason}" if reason else "")
    error = {
        "code": code,
        "message": message,
        "stepId": execution.current_step_id,
        "retryable": False,
        "details": None,
        "timestampMs": now_ms,
    }
    execution = execution._replace(
        status=status,
        attempt=0,
        error=error,
        cancellation={"source": source.value, "reason": reason, "cancelledAtMs": now_ms},
        finished_at_ms=now_ms,
        updated_at_ms=now_ms,
    )
    return Decision(execution)


def event_matches(wanted: Mapping[str, Any] | None, data: Any) -> bool:
    """Whether each member of the filter is in the event's data, objects member by member."""
    if wanted is None:
        return True
    if not isinstance(data, Mapping):
        return not wanted
    for name, value in wanted.items():
        if name not in data:
            return False
        if isinstance(value, Mapping):
            if not event_matches(value, data[name]):
                return False
        elif not same(data[name], value):
            return False
    return True


def same(a: Any, b: Any) -> bool:
    """Equality as JSON sees it: 1 and 1.0 are one number, true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


def retry(execution: Execution, step: Step, now_ms: int) -> Decision:
    """A failed or cancelled execution runs on from `step`."""
    status = execution_after(execution.status, "retry")
    execution = execution._replace(
        status=status,
        current_step_id=step.id,
        attempt=0,
        error=None,
        cancellation=None,
        finished_at_ms=None,
        updated_at_ms=now_ms,
    )
    events: list[Event] = [("execution.resumed", step.id, {"retry": True})]
    return Decision(execution, next_step=step, events=events)


def backoff_ms(policy: RetryPolicy, attempt: int) -> int:
    """How long attempt n (from 0) waits: min(backoffMs · multiplier^n, maxBackoffMs)."""
    try:
        wait = policy.backoff_ms * policy.backoff_multiplier**attempt
    except OverflowError:
        return policy.max_backoff_ms
    return int(min(wait, policy.max_backoff_ms))


# --- what can follow an attempt ----------------------------------------------------------------


def _store_output(
    decision: Decision, step: Step, context: Context, result: TaskResult, limits: Limits
) -> StepError | None:
    sets = dict(result.updates)
    if step.output_key is not None and result.output is not NO_VALUE:
        head, *rest = step.output_key.split(".")
        value = result.output
        if rest:
            before = sets[head] if head in sets else context.values.get(head, NO_VALUE)
            try:
                value = selectors.put_path(before, rest, value)
            except ValueError as exc:
                message = f"cannot write the output to {step.output_key!r}: {exc}"
                return StepError("OUTPUT_KEY_INVALID", message, retryable=False)
        sets[head] = value
    if not sets:
        return None
    change = context.change(sets, limits)
    if isinstance(change, StepError):
        return change
    decision.change = change
    return None


def _completed(decision: Decision, step: Step, result: TaskResult) -> None:
    data: dict[str, Any] = {
        "outcome": result.outcome.value,
        "attempt": decision.execution.attempt,
        "durationMs": result.duration_ms,
    }
    if result.error is not None:
        data["code"] = result.error.code
        if result.error.code == "TIMEOUT":
            decision.events.append(("step.timeout", step.id, {"timeoutMs": step.timeout_ms}))
    for name, payload in result.emitted:
        decision.events.append(("handler.custom", step.id, {"event": name, "data": payload}))
    decision.events.append(("step.completed", step.id, data))


def _sleep(decision: Decision, step: Step, wait: Wait, now_ms: int) -> None:
    execution = decision.execution
    status = execution_after(execution.status, "wait")
    decision.execution = execution._replace(
        status=status, wake_at_ms=wait.wake_at_ms, wait_reason=wait.reason
    )
    decision.wait = wait
    if wait.kind is not WaitKind.RETRY:  # a retry has announced itself with step.retry
        data = {"wakeAtMs": wait.wake_at_ms, "reason": wait.reason, "kind": wait.kind.value}
        decision.events.append(("execution.waiting", step.id, data))


def _failed(
    decision: Decision,
    flow: Flow,
    step: Step,
    context: Context,
    result: TaskResult,
    now_ms: int,
    limits: Limits,
) -> None:
    error = result.error or StepError("STEP_FAILED", "the handler reported a failure")
    decision.attempt_error = error
    execution = decision.execution
    if result.fatal:
        _end_failed(decision, context, error, now_ms, limits)
        return
    if _may_retry(step.retry, execution.attempt, error):
        delay = backoff_ms(step.retry, execution.attempt)
        if execution.step_count >= limits.steps_max:
            _end_failed(decision, context, _too_many_steps(limits), now_ms, limits)
            return
        decision.execution = execution._replace(attempt=execution.attempt + 1)
        data = {
            "attempt": execution.attempt + 1,
            "maxAttempts": step.retry.max_attempts,
            "backoffMs": delay,
            "code": error.code,
        }
        decision.events.append(("step.retry", step.id, data))
        if delay == 0:
            decision.next_step = step
        else:
            reason = f"retry {execution.attempt + 1}/{step.retry.max_attempts} after {delay} ms"
            _sleep(decision, step, Wait(WaitKind.RETRY, now_ms + delay, reason), now_ms)
        return
    target = step.transitions.on_failure
    if result.next_step is not NO_VALUE:
        target = result.next_step
    if target is None:
        _end_failed(decision, context, error, now_ms, limits)
        return
    decision.change = _error_for_branch(context, step, error, limits)
    _go(decision, flow, context, target, "failure", now_ms, limits)


def _may_retry(policy: RetryPolicy, attempt: int, error: StepError) -> bool:
    return (
        error.retryable
        and attempt < policy.max_attempts
        and (policy.retry_on is None or error.code in policy.retry_on)
    )


def _error_for_branch(
    context: Context, step: Step, error: StepError, limits: Limits
) -> Change | None:
    """`_error` for the branch that onFailure leads to; without its details when they are too big,
    and left out when even that breaks a limit: the branch must run all the same."""
    for details in (error.details, None):
        value = {
            "code": error.code,
            "message": error.message,
            "stepId": step.id,
            "details": details,
        }
        change = context.change({ERROR_KEY: value}, limits)
        if isinstance(change, Change):
            return change
    change = context.change({}, limits, drops=frozenset({ERROR_KEY}))  # never an older error
    return change if isinstance(change, Change) else None


def _go(
    decision: Decision,
    flow: Flow,
    context: Context,
    target: Any,
    why: str,
    now_ms: int,
    limits: Limits,
) -> None:
    """Go to the step `target`, or complete when it is None."""
    execution = decision.execution
    here = execution.current_step_id
    if target is None:
        status = execution_after(execution.status, "complete")
        decision.execution = execution._replace(status=status, attempt=0, finished_at_ms=now_ms)
        _forget_error(decision, context, limits)
        decision.events.append(("execution.completed", None, {"totalSteps": execution.step_count}))
        return
    step = flow.steps.get(target) if isinstance(target, str) else None
    if step is None:
        message = f"cannot go from step {here!r} to {target!r:.200}: the flow has no such step"
        error = StepError("INVALID_TRANSITION", message, retryable=False)
        _end_failed(decision, context, error, now_ms, limits)
        return
    decision.execution = execution._replace(current_step_id=step.id, attempt=0)
    if execution.step_count >= limits.steps_max:
        _end_failed(decision, context, _too_many_steps(limits), now_ms, limits)
        return
    decision.next_step = step
    decision.events.append(("transition", here, {"to": step.id, "outcome": why}))


def _end_failed(
    decision: Decision, context: Context, error: StepError, now_ms: int, limits: Limits
) -> None:
    execution = decision.execution
    status = execution_after(execution.status, "fail")
    shown = {
        "code": error.code,
        "message": error.message,
        "stepId": execution.current_step_id,
        "retryable": error.retryable,
        "details": error.details,
        "timestampMs": now_ms,
    }
    decision.execution = execution._replace(
        status=status, attempt=0, error=shown, finished_at_ms=now_ms
    )
    _forget_error(decision, context, limits)
    decision.events.append(
        (
            "execution.failed",
            execution.current_step_id,
            {"code": error.code, "message": error.message},
        )
    )


def _forget_error(decision: Decision, context: Context, limits: Limits) -> None:
    """`_error` holds while the branch runs; at the end nothing runs any more."""
    kept = decision.change.context if decision.change else context
    if not kept.has(ERROR_KEY):
        return
    change = kept.change({}, limits, drops=frozenset({ERROR_KEY}))
    assert isinstance(change, Change)  # taking away breaks no limit
    if decision.change is not None:
        rows = {k: v for k, v in decision.change.rows.items() if k != ERROR_KEY}
        dropped = decision.change.dropped_rows | change.dropped_rows
        change = Change(change.context, rows, dropped)
    decision.change = change


def _too_many_steps(limits: Limits) -> StepError:
    return StepError(
        "MAX_STEPS",
        f"the execution reached its limit of {limits.steps_max} executed steps",
        retryable=False,
        details={"limit": limits.steps_max},
    )
