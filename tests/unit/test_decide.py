"""What follows from one attempt, one wait, one refusal: the pure rules, row by row."""

from dataclasses import replace

import pytest

from flowmonkeyd.context import Change, Context
from flowmonkeyd.decide import (
    backoff_ms,
    begin,
    cancel,
    event_matches,
    fail,
    finish,
    keys_to_finish,
    park,
    resume,
    retry,
    same,
    unpark,
)
from flowmonkeyd.lifecycle import IllegalMove
from flowmonkeyd.model import (
    NO_VALUE,
    CancelSource,
    Execution,
    ExecutionStatus,
    Flow,
    HandlerRef,
    Limits,
    Outcome,
    Priority,
    RetryPolicy,
    Selector,
    Step,
    StepError,
    TaskResult,
    Transitions,
    Wait,
    WaitKind,
)

NOW = 1_700_000_000_000
RUNNING = ExecutionStatus.RUNNING


def step(id="a", **fields):
    return Step(id=id, handler=HandlerRef("t"), input=Selector("full"), **fields)


def flow(*steps):
    return Flow("f", "1.0.0", steps[0].id, {s.id: s for s in steps}, {})


def execution(status=RUNNING, step_id="a", **fields):
    return Execution(
        "x", "f", "1.0.0", status, step_id, fields.pop("step_count", 0), "default",
        Priority.NORMAL, NOW - 1000, NOW - 1000, **fields,
    )  # fmt: skip


def context(**values):
    change = Context().change(values, Limits())
    assert isinstance(change, Change)
    return change.context


def values(decision, before=Context()):
    return dict((decision.change.context if decision.change else before).values)


def attempt(the_flow, result, before=None, at=None, limits=Limits()):
    return finish(the_flow, at or execution(), before or context(), result, NOW, limits)


SUCCESS = TaskResult(Outcome.SUCCESS)
FAILURE = TaskResult(Outcome.FAILURE, error=StepError("NO", "no"))
CRASH = TaskResult(Outcome.ERROR, error=StepError("HANDLER_CRASHED", "signal 11"))
A_THEN_B = flow(
    step("a", transitions=Transitions(on_success="b", on_failure="c")), step("b"), step("c")
)


@pytest.mark.parametrize(
    ("result", "status", "next_id", "code"),
    [
        (SUCCESS, "running", "b", None),
        (FAILURE, "running", "c", None),
        (CRASH, "running", "c", None),
        (replace(SUCCESS, next_step="c"), "running", "c", None),
        (replace(SUCCESS, next_step=None), "completed", None, None),
        (replace(FAILURE, next_step="b"), "running", "b", None),
        (replace(FAILURE, next_step=None), "failed", None, "NO"),
        (replace(SUCCESS, next_step="nowhere"), "failed", None, "INVALID_TRANSITION"),
        (replace(FAILURE, next_step="nowhere"), "failed", None, "INVALID_TRANSITION"),
        (replace(SUCCESS, next_step=5), "failed", None, "INVALID_TRANSITION"),
        (replace(FAILURE, fatal=True), "failed", None, "NO"),
        (TaskResult(Outcome.FAILURE), "running", "c", None),
    ],
)
def test_where_an_attempt_leads(result, status, next_id, code):
    decision = attempt(A_THEN_B, result)
    assert decision.execution.status == status
    assert (decision.next_step.id if decision.next_step else None) == next_id
    assert (decision.execution.error or {}).get("code") == code
    assert decision.execution.step_count == 1
    assert decision.ended == (status in ("completed", "failed"))
    assert (decision.execution.finished_at_ms is not None) == decision.ended


@pytest.mark.parametrize(
    ("result", "status", "code"),
    [
        (SUCCESS, "completed", None),
        (FAILURE, "failed", "NO"),
        (CRASH, "failed", "HANDLER_CRASHED"),
        (TaskResult(Outcome.FAILURE), "failed", "STEP_FAILED"),
    ],
)
def test_without_transitions_an_attempt_ends_the_execution(result, status, code):
    """Upstream 8.2.17: a step without transitions strands the execution."""
    decision = attempt(flow(step("a")), result)
    assert decision.execution.status == status
    assert (decision.execution.error or {}).get("code") == code


@pytest.mark.parametrize(
    ("policy", "attempts", "waits"),
    [
        (RetryPolicy(3), 4, [0] * 4),
        (RetryPolicy(3, 100), 4, [100, 200, 400, 800]),
        (RetryPolicy(3, 100, 1), 3, [100, 100, 100]),
        (RetryPolicy(3, 100, 3, 500), 4, [100, 300, 500, 500]),
        (RetryPolicy(3, 100, 2, 50), 2, [50, 50]),
        (RetryPolicy(1000, 1, 1000.0), 1, [1]),
    ],
)
def test_attempt_n_waits_backoff_times_multiplier_to_the_n(policy, attempts, waits):
    assert [backoff_ms(policy, n) for n in range(attempts)] == waits


def test_a_backoff_beyond_numbers_is_the_longest_one():
    assert backoff_ms(RetryPolicy(1000, 1, 1000.0, 60_000), 999) == 60_000


@pytest.mark.parametrize(
    ("policy", "attempts_so_far", "error", "retried"),
    [
        (RetryPolicy(0), 0, StepError("E", ""), False),
        (RetryPolicy(1), 0, StepError("E", ""), True),
        (RetryPolicy(1), 1, StepError("E", ""), False),
        (RetryPolicy(9), 0, StepError("E", "", retryable=False), False),
        (RetryPolicy(9, retry_on=frozenset({"E"})), 0, StepError("E", ""), True),
        (RetryPolicy(9, retry_on=frozenset({"E"})), 0, StepError("F", ""), False),
        (RetryPolicy(9, retry_on=frozenset()), 0, StepError("E", ""), False),
    ],
)
def test_when_a_failure_is_tried_again(policy, attempts_so_far, error, retried):
    the_flow = flow(step("a", retry=policy))
    result = TaskResult(Outcome.FAILURE, error=error)
    decision = attempt(the_flow, result, at=execution(attempt=attempts_so_far))
    assert decision.execution.status == ("running" if retried else "failed")
    assert decision.execution.attempt == (attempts_so_far + 1 if retried else 0)
    assert ("step.retry" in [e[0] for e in decision.events]) == retried


def test_a_backoff_parks_the_execution_until_its_instant():
    decision = attempt(flow(step("a", retry=RetryPolicy(2, 100))), FAILURE)
    assert decision.wait == Wait(WaitKind.RETRY, NOW + 100, "retry 1/2 after 100 ms")
    assert decision.execution.status == "waiting"


def test_a_fatal_failure_is_neither_retried_nor_routed():
    the_flow = flow(
        step("a", retry=RetryPolicy(5), transitions=Transitions(on_failure="b")), step("b")
    )
    assert attempt(the_flow, replace(FAILURE, fatal=True)).execution.status == "failed"


@pytest.mark.parametrize("result", [SUCCESS, FAILURE])
def test_the_retry_counter_is_cleared_on_success_and_on_final_failure(result):
    assert attempt(A_THEN_B, result, at=execution(attempt=2)).execution.attempt == 0


# --- outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "key", "output", "after"),
    [
        ({}, "r", 1, {"r": 1}),
        ({}, "r", None, {"r": None}),
        ({"r": 5}, "r", NO_VALUE, {"r": 5}),
        ({}, None, 1, {}),
        ({}, "a.b.c", 1, {"a": {"b": {"c": 1}}}),
        ({"a": {"x": 1}}, "a.b", 2, {"a": {"x": 1, "b": 2}}),
        ({"a": {"b": {"y": 1}}}, "a.b", {"z": 2}, {"a": {"b": {"z": 2}}}),
        ({"a": {"b": 1}}, "a.b", None, {"a": {"b": None}}),
    ],
)
def test_an_output_is_written_where_its_key_says(before, key, output, after):
    the_flow = flow(step("a", output_key=key))
    decision = attempt(the_flow, replace(SUCCESS, output=output), context(**before))
    assert values(decision, context(**before)) == after


@pytest.mark.parametrize("before", [1, "text", None, True, [1]])
def test_an_output_through_something_else_fails_the_step_and_strands_nothing(before):
    """Upstream 8.2.17: writing an output through a scalar raises out of tick."""
    ways = Transitions(on_success="b", on_failure="c")
    the_flow = flow(step("a", output_key="a.b", transitions=ways), step("b"), step("c"))
    decision = attempt(the_flow, replace(SUCCESS, output=1), context(a=before))
    assert decision.attempt_error.code == "OUTPUT_KEY_INVALID"
    assert decision.outcome is Outcome.ERROR
    assert decision.next_step.id == "c"
    assert values(decision)["a"] == before


def test_a_result_names_the_way_only_if_its_output_could_be_kept():
    the_flow = flow(step("a", output_key="a.b"), step("b"))
    result = replace(SUCCESS, output=1, next_step="b")
    assert attempt(the_flow, result, context(a=1)).execution.status == "failed"


def test_updates_count_with_a_success_and_the_output_goes_over_them():
    the_flow = flow(step("a", output_key="u.out", transitions=Transitions("b", "b")), step("b"))
    result = TaskResult(Outcome.SUCCESS, output=1, updates={"u": {"x": 0}, "v": 2})
    assert values(attempt(the_flow, result)) == {"u": {"x": 0, "out": 1}, "v": 2}
    failed = attempt(the_flow, replace(FAILURE, updates={"v": 2}))
    assert "v" not in values(failed)


@pytest.mark.parametrize(
    ("key", "needed"), [(None, set()), ("r", set()), ("r.s", {"r"}), ("r.s.t", {"r"})]
)
def test_only_a_dotted_output_key_needs_what_is_there(key, needed):
    assert keys_to_finish(step(output_key=key)) == needed


# --- the error of a branch -------------------------------------------------------------


def test_the_step_that_on_failure_leads_to_can_read_the_error():
    """Upstream 8.2.20: the error of a failure that was routed is stored nowhere."""
    error = StepError("E", "why", details={"n": 1})
    decision = attempt(A_THEN_B, TaskResult(Outcome.FAILURE, error=error))
    shown = {"code": "E", "message": "why", "stepId": "a", "details": {"n": 1}}
    assert values(decision)["_error"] == shown


def test_the_error_is_gone_when_the_execution_ends():
    before = context(_error={"code": "E"}, kept=1)
    for result in (SUCCESS, FAILURE, replace(SUCCESS, next_step="nowhere")):
        assert values(attempt(flow(step("a")), result, before)) == {"kept": 1}


def test_the_error_stays_while_the_branch_runs():
    before = context(_error={"code": "E"})
    assert attempt(A_THEN_B, SUCCESS, before).change is None


def test_details_that_do_not_fit_are_left_out_and_the_branch_runs_all_the_same():
    error = StepError("E", "why", details="x" * 500)
    limits = Limits(value_bytes_max=200)
    decision = attempt(A_THEN_B, TaskResult(Outcome.FAILURE, error=error), limits=limits)
    assert decision.next_step.id == "c"
    assert values(decision)["_error"]["details"] is None


def test_an_older_error_is_never_taken_for_one_that_does_not_fit():
    error = StepError("E", "x" * 500)
    before = context(_error={"code": "OLD"}, kept=1)
    decision = attempt(
        A_THEN_B, TaskResult(Outcome.FAILURE, error=error), before, limits=Limits(value_bytes_max=9)
    )
    assert values(decision) == {"kept": 1}
    assert decision.next_step.id == "c"


def test_a_large_error_is_dropped_with_its_row():
    before = context(_error={"code": "E", "details": "x" * 5000})
    decision = attempt(flow(step("a", output_key="r")), replace(SUCCESS, output="y" * 5000), before)
    assert decision.change.dropped_rows == {"_error"}
    assert set(decision.change.rows) == {"r"}


# --- the step limit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "retries", "steps_before", "status", "code"),
    [
        (SUCCESS, 0, 8, "running", None),
        (SUCCESS, 0, 9, "failed", "MAX_STEPS"),
        (FAILURE, 0, 9, "failed", "MAX_STEPS"),  # its onFailure step cannot run
        (FAILURE, 1, 8, "running", None),
        (FAILURE, 1, 9, "failed", "MAX_STEPS"),
        (replace(SUCCESS, next_step=None), 0, 9, "completed", None),  # exactly the limit
    ],
)
def test_an_execution_runs_its_limit_of_steps_and_not_one_more(
    result, retries, steps_before, status, code
):
    ways = Transitions(on_success="b", on_failure="b")
    the_flow = flow(step("a", retry=RetryPolicy(retries), transitions=ways), step("b"))
    at = execution(step_count=steps_before)
    decision = attempt(the_flow, result, at=at, limits=Limits(steps_max=10))
    assert decision.execution.status == status
    assert (decision.execution.error or {}).get("code") == code
    assert decision.execution.step_count == steps_before + 1


def test_max_steps_names_the_step_that_could_not_run():
    at = execution(step_count=9)
    decision = attempt(A_THEN_B, SUCCESS, at=at, limits=Limits(steps_max=10))
    assert decision.execution.error["stepId"] == decision.execution.current_step_id == "b"


# --- waits -----------------------------------------------------------------------------

WAITING = execution(ExecutionStatus.WAITING, attempt=1)


def woken(the_flow, kind, data=NO_VALUE, before=None, limits=Limits()):
    return resume(the_flow, WAITING, before or context(), Wait(kind), data, NOW, limits)


@pytest.mark.parametrize(
    ("ways", "status", "next_id"),
    [
        (Transitions(on_success="b", on_resume="c"), "running", "c"),
        (Transitions(on_success="b"), "running", "b"),
        (Transitions(), "completed", None),
        (Transitions(on_failure="c"), "completed", None),
    ],
)
@pytest.mark.parametrize("kind", [WaitKind.TIME, WaitKind.EVENT, WaitKind.SIGNAL])
def test_where_a_wait_leads(ways, status, next_id, kind):
    """Upstream 8.2.10: a wait as the last step repeats itself until the step limit."""
    decision = woken(flow(step("a", transitions=ways), step("b"), step("c")), kind)
    assert decision.execution.status == status
    assert (decision.next_step.id if decision.next_step else None) == next_id
    assert decision.execution.attempt == 0


@pytest.mark.parametrize(
    ("kind", "data", "after"),
    [
        (WaitKind.TIME, NO_VALUE, {"n": 0}),
        (WaitKind.EVENT, NO_VALUE, {"n": 0, "resumeData": None}),
        (WaitKind.SIGNAL, NO_VALUE, {"n": 0, "resumeData": None}),
        (WaitKind.EVENT, {"n": 1}, {"n": 1, "resumeData": {"n": 1}}),
        (WaitKind.SIGNAL, {}, {"n": 0, "resumeData": {}}),
        (WaitKind.TIME, {"n": 1}, {"n": 1, "resumeData": {"n": 1}}),
        (WaitKind.EVENT, None, {"n": 0, "resumeData": None}),
        (WaitKind.EVENT, [1], {"n": 0, "resumeData": [1]}),
        (WaitKind.RETRY, {"n": 1}, {"n": 1, "resumeData": {"n": 1}}),
        (WaitKind.RETRY, NO_VALUE, {"n": 0}),
    ],
)
def test_what_a_wait_leaves_in_the_context(kind, data, after):
    """Upstream 8.2.27: the data of a wait is lost."""
    ways = Transitions(on_success="b")
    before = context(n=0)
    decision = woken(flow(step("a", transitions=ways), step("b")), kind, data, before)
    assert values(decision, before) == after


def test_data_that_breaks_a_limit_is_refused_and_nothing_follows():
    refusal = woken(A_THEN_B, WaitKind.SIGNAL, {"k": "x" * 99}, limits=Limits(value_bytes_max=50))
    assert isinstance(refusal, StepError)
    assert refusal.code == "CONTEXT_VALUE_TOO_LARGE"


def test_a_backoff_ends_in_the_same_step_with_its_counter():
    decision = woken(A_THEN_B, WaitKind.RETRY)
    assert (decision.next_step.id, decision.execution.attempt) == ("a", 1)


def test_a_wait_counts_as_a_step_and_keeps_no_output():
    """Upstream 8.2.19: a wait fires failure branches."""
    wait = Wait(WaitKind.SIGNAL, reason="sign")
    the_flow = flow(step("a", output_key="r", transitions=Transitions("b", "b")), step("b"))
    decision = attempt(the_flow, TaskResult(Outcome.WAIT, output=1, wait=wait))
    assert (decision.execution.status, decision.execution.step_count) == ("waiting", 1)
    assert (decision.wait, decision.change, decision.next_step) == (wait, None, None)
    assert decision.execution.wait_reason == "sign"


def test_parking_counts_no_step_and_unparking_clears_the_wait():
    parked = park(execution(), step(), Wait(WaitKind.CHILD, reason="sub-flow"), NOW)
    assert parked.execution.step_count == 0
    assert parked.outcome is None
    back, events = unpark(parked.execution, NOW)
    assert (back.status, back.wait_reason) == (RUNNING, None)
    assert [e[0] for e in events] == ["execution.resumed"]


# --- begin, fail, cancel, retry --------------------------------------------------------


def test_the_first_attempt_starts_the_execution_and_the_next_do_not():
    started, events = begin(execution(ExecutionStatus.PENDING), step(), NOW)
    assert (started.status, started.started_at_ms) == (RUNNING, NOW)
    assert [e[0] for e in events] == ["execution.started", "step.started"]
    again, events = begin(started, step(), NOW + 1)
    assert again == started
    assert [e[0] for e in events] == ["step.started"]


@pytest.mark.parametrize("status", ["pending", "running", "waiting"])
def test_cancel_ends_whatever_has_not_ended(status):
    at = execution(ExecutionStatus(status), attempt=2)
    after = cancel(at, CancelSource.ADMIN, "why", NOW, "WAIT_TIMEOUT").execution
    assert (after.status, after.attempt, after.finished_at_ms) == ("cancelled", 0, NOW)
    assert after.cancellation == {"source": "admin", "reason": "why", "cancelledAtMs": NOW}
    assert after.error["code"] == "WAIT_TIMEOUT"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_end_cannot_be_cancelled_failed_or_woken(status):
    at = execution(ExecutionStatus(status))
    with pytest.raises(IllegalMove):
        cancel(at, CancelSource.USER, None, NOW)
    with pytest.raises(IllegalMove):
        fail(at, context(), StepError("E", ""), NOW, Limits())
    with pytest.raises(IllegalMove):
        resume(A_THEN_B, at, context(), Wait(WaitKind.TIME), NO_VALUE, NOW, Limits())


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_retry_by_hand_takes_back_the_end(status):
    at = execution(
        ExecutionStatus(status), finished_at_ms=NOW, error={"code": "E"}, cancellation={}
    )
    decision = retry(at, step("b"), NOW)
    after = decision.execution
    assert (after.status, after.current_step_id) == (RUNNING, "b")
    assert (after.error, after.cancellation, after.finished_at_ms) == (None, None, None)


def test_a_completed_execution_cannot_be_retried():
    with pytest.raises(IllegalMove):
        retry(execution(ExecutionStatus.COMPLETED), step(), NOW)


# --- what is equal, what matches -------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (0, None, False),
        ("1", 1, False),
        ([1, {"a": 2}], [1.0, {"a": 2}], True),
        ([1], [True], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": False}, {"a": 0}, False),
        (None, None, True),
        (NO_VALUE, None, False),
    ],
)
def test_equality_is_jsons(a, b, equal):
    assert same(a, b) == same(b, a) == equal


@pytest.mark.parametrize(
    ("wanted", "data", "matches"),
    [
        (None, None, True),
        (None, {"a": 1}, True),
        ({}, None, True),
        ({}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": None}, {}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": {"b": 1}}, {"a": 5}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": 1}, [1], False),
        ({"a": 1}, "a", False),
    ],
)
def test_a_filter_is_a_subset_of_the_events_data(wanted, data, matches):
    assert event_matches(wanted, data) == matches
