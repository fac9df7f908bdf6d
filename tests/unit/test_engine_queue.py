"""The queue: order without starvation, leases, delays, depth; the fence; cancel; recovery."""

import asyncio

import pytest

from flowmonkeyd.errors import Conflict, LeaseLost, NotFound
from flowmonkeyd.model import (
    CancelSource,
    Lane,
    NewExecution,
    Outcome,
    Priority,
    StepError,
    TaskResult,
    Timeouts,
)
from flowmonkeyd.store import history, ledger, tasks
from flowmonkeyd.testing import FlowHarness
from flowmonkeyd.work import LEASE_MS
from tests.flows import Tally, doc, echo, step, wait_for_event

FLOW = doc(step("a", next="b", out="r"), step("b"))
DONE = TaskResult(Outcome.SUCCESS, output="done")


@pytest.fixture
async def fm():
    async with FlowHarness({"echo": echo, "other": echo}) as fm:
        fm.apply(FLOW)
        yield fm


async def claim(fm, limit=10, **which):
    return await fm.engine.claim(Lane.SANDBOX, limit, "w", **which)


async def finish(fm, task, result=DONE):
    await fm.engine.finish(task.key, task.lease_id, result)


async def depth(fm):
    return [
        (row["handler_type"], row["priority"], row["queued"], row["leased"])
        for row in await fm.store.read(tasks.depth)
    ]


# --- order --------------------------------------------------------------------------------------


async def test_the_line_goes_by_priority_and_then_by_age(fm):
    made = {}
    for name, priority in (("l", "low"), ("n1", "normal"), ("n2", "normal"), ("h", "high")):
        made[(await fm.create("f", priority=Priority(priority))).id] = name
        fm.advance(1)
    assert [made[t.execution_id] for t in await claim(fm)] == ["h", "n1", "n2", "l"]


@pytest.mark.parametrize(
    ("old", "new", "after_ms", "first"),
    [
        ("low", "normal", 49_999, "new"),
        ("low", "normal", 50_001, "old"),
        ("low", "high", 60_001, "old"),
        ("normal", "high", 9_999, "new"),
        ("normal", "high", 10_001, "old"),
    ],
)
async def test_nothing_starves_behind_newer_work(fm, old, new, after_ms, first):
    made = {(await fm.create("f", priority=Priority(old))).id: "old"}
    fm.advance(after_ms)
    made[(await fm.create("f", priority=Priority(new))).id] = "new"
    (task,) = await claim(fm, 1)
    assert made[task.execution_id] == first


async def test_a_worker_may_pull_one_handler_type(fm):
    fm.apply(doc(step("a", "other"), id="g"))
    await fm.create("f")
    wanted = await fm.create("g")
    assert [t.execution_id for t in await claim(fm, handler_type="other")] == [wanted.id]
    assert await claim(fm, handler_type="other") == []


async def test_the_depth_is_by_type_and_priority(fm):
    fm.apply(doc(step("a", "other"), id="g"))
    for ref, priority in (("f", "high"), ("f", "high"), ("f", "low"), ("g", "normal")):
        await fm.create(ref, priority=Priority(priority))
    (task,) = await claim(fm, 1)
    assert await depth(fm) == [
        ("echo", "high", 1, 1),
        ("echo", "low", 1, 0),
        ("other", "normal", 1, 0),
    ]
    await fm.engine.release(task.key, task.lease_id, delay_ms=100)
    assert (await depth(fm))[0] == ("echo", "high", 2, 0)
    await fm.settle()
    fm.advance(100)
    await fm.settle()
    assert await depth(fm) == []


async def test_parallel_claims_never_share_a_task(fm):
    await fm.create("f")
    await fm.engine.submit_batch([NewExecution("f") for _ in range(39)])
    taken = []

    async def work():
        while found := await claim(fm, 3):
            taken.extend(found)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(work())
    assert len(taken) == len({t.key for t in taken}) == len({t.lease_id for t in taken}) == 40


# --- leases and delays --------------------------------------------------------------------------


async def test_a_task_given_back_keeps_its_place(fm):
    one, two = await fm.create("f"), await fm.create("f")
    (task,) = await claim(fm, 1)
    assert task.execution_id == one.id
    await fm.engine.release(task.key, task.lease_id)
    again = await claim(fm)
    assert [t.execution_id for t in again] == [one.id, two.id]
    assert again[0].id == task.id, "the same attempt has the same id however often it is delivered"


async def test_a_task_given_back_with_a_delay_is_not_seen_before_its_time(fm):
    await fm.create("f")
    (task,) = await claim(fm)
    await fm.engine.release(task.key, task.lease_id, delay_ms=500)
    fm.advance(499)
    assert await fm.engine.fire_due() == fm.clock.now_ms() + 1
    assert await claim(fm) == []
    fm.advance(1)
    await fm.engine.fire_due()
    (again,) = await claim(fm)
    assert again.id == task.id


async def test_a_lease_runs_out_at_its_instant_and_an_extended_one_later(fm):
    await fm.create("f")
    (task,) = await claim(fm)
    fm.advance(LEASE_MS - 1)
    await fm.engine.extend(task.key, task.lease_id)
    fm.advance(LEASE_MS - 1)
    await fm.engine.fire_due()
    assert await claim(fm) == []
    fm.advance(1)
    await fm.engine.fire_due()
    (again,) = await claim(fm)
    assert again.lease_id > task.lease_id


STALE = {
    "finish": lambda fm, t: finish(fm, t),
    "release": lambda fm, t: fm.engine.release(t.key, t.lease_id),
    "delay": lambda fm, t: fm.engine.release(t.key, t.lease_id, 10),
    "extend": lambda fm, t: fm.engine.extend(t.key, t.lease_id),
    "logs": lambda fm, t: fm.engine.append_logs(t.key, t.lease_id, [(0, "log", None, "x", None)]),
}


async def end_by_finish(fm, task):
    await finish(fm, task)


async def end_by_cancel(fm, task):
    await fm.cancel(task.execution_id)


async def end_by_lease(fm, task):
    fm.advance(LEASE_MS)
    await fm.engine.fire_due()
    await claim(fm)


async def end_by_restart(fm, task):
    await fm.restart()
    await claim(fm)


async def end_by_retry_by_hand(fm, task):
    await fm.cancel(task.execution_id)
    await fm.retry(task.execution_id)
    await claim(fm)


@pytest.mark.parametrize(
    "ended", [end_by_finish, end_by_cancel, end_by_lease, end_by_restart, end_by_retry_by_hand]
)
@pytest.mark.parametrize("late", STALE)
async def test_a_stale_lease_changes_nothing(fm, ended, late):
    """Upstream 8.2.12 and 8.2.13: late results win over a cancel, steps run twice."""
    run = await fm.create("f")
    (task,) = await claim(fm)
    await ended(fm, task)
    key = task.key
    before = (
        await fm.get(run.id),
        await fm.history(run.id),
        await fm.events(run.id),
        await depth(fm),
    )
    with pytest.raises(LeaseLost):
        await STALE[late](fm, task)
    assert before == (
        await fm.get(run.id),
        await fm.history(run.id),
        await fm.events(run.id),
        await depth(fm),
    )
    assert await fm.store.read(lambda c: history.read_logs(c, key, 0, 10)) == []


async def test_of_one_result_delivered_ten_times_one_is_applied(fm):
    run = await fm.create("f")
    (task,) = await claim(fm)
    answers = []

    async def deliver():
        try:
            await finish(fm, task)
            answers.append("applied")
        except LeaseLost:
            answers.append("lost")

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(deliver())
    assert sorted(answers) == ["applied"] + ["lost"] * 9
    assert len(await fm.history(run.id)) == 1


async def test_an_unknown_task_has_no_lease(fm):
    with pytest.raises(LeaseLost):
        await fm.engine.finish(12345, 1, DONE)


async def test_logs_are_kept_in_order_with_their_attempt(fm):
    run = await fm.create("f")
    (task,) = await claim(fm)
    line = (5, "stdout", None, "one", None)
    await fm.engine.append_logs(task.key, task.lease_id, [line])
    later = [(6, "log", "info", "two", {"n": 1}), (7, "stderr", None, "three", None)]
    await fm.engine.finish(task.key, task.lease_id, DONE, later)
    rows = await fm.store.read(lambda c: history.read_logs(c, task.key, 0, 10))
    assert [(r.seq, r.message, r.fields) for r in rows] == [
        (1, "one", None),
        (2, "two", {"n": 1}),
        (3, "three", None),
    ]
    assert (await fm.get(run.id)).current_step_id == "b"


# --- cancel and retry by hand -------------------------------------------------------------------


@pytest.mark.parametrize("source", list(CancelSource))
async def test_a_cancel_says_who_and_why(fm, source):
    run = await fm.cancel((await fm.create("f")).id, source=source, reason="why")
    assert run.status == "cancelled"
    assert run.cancellation["source"] == source
    assert run.cancellation["reason"] == "why"
    (event,) = [e for e in await fm.events(run.id) if e["type"] == "execution.cancelled"]
    assert event["data"]["source"] == source


async def test_a_cancel_takes_the_task_out_of_the_line_wherever_it_is(fm):
    queued, leased, delayed = [await fm.create("f") for _ in range(3)]
    await claim(fm, execution_id=leased.id)
    (task,) = await claim(fm, execution_id=delayed.id)
    await fm.engine.release(task.key, task.lease_id, delay_ms=10)
    for run in (queued, leased, delayed):
        assert (await fm.cancel(run.id)).status == "cancelled"
    assert await depth(fm) == []
    fm.advance(10**9)
    await fm.settle()
    assert {(await fm.get(r.id)).status for r in (queued, leased, delayed)} == {"cancelled"}


async def test_the_worker_of_a_cancelled_task_is_told_after_the_commit(fm):
    told = []
    fm.store.on_commit = lambda hints: told.extend(hints.dropped)
    run = await fm.create("f")
    (task,) = await claim(fm)
    await fm.cancel(run.id)
    assert (task.key, task.lease_id) in told


async def test_what_has_ended_cannot_be_cancelled(fm):
    run = await fm.run((await fm.create("f")).id)
    with pytest.raises(Conflict) as refusal:
        await fm.cancel(run.id)
    assert refusal.value.code == "EXECUTION_ENDED"
    with pytest.raises(NotFound):
        await fm.cancel("nobody")


async def test_a_retry_by_hand_runs_on_from_where_it_ended_or_where_told():
    tally = Tally(failures=1)
    async with FlowHarness({"t": tally, "echo": echo}) as fm:
        fm.apply(doc(step("a", out="r", next="b"), step("b", "t", out="n")))
        run = await fm.run((await fm.create("f", {"x": 1})).id)
        assert (run.status, run.current_step_id) == ("failed", "b")
        with pytest.raises(NotFound):
            await fm.retry(run.id, "nowhere")
        again = await fm.retry(run.id)
        assert (again.status, again.error, again.finished_at_ms) == ("running", None, None)
        ended = await fm.run(run.id)
        assert (ended.status, ended.context["n"]) == ("completed", 2)
        assert [h.seq for h in await fm.history(run.id)] == [1, 2, 3]
        with pytest.raises(Conflict):
            await fm.retry(run.id)


async def test_a_retry_by_hand_of_a_cancelled_wait_runs_the_step_again(fm):
    fm.apply(doc(wait_for_event("w"), id="g"))
    run = await fm.run((await fm.create("g")).id)
    token = run.resume_token
    await fm.cancel(run.id)
    await fm.retry(run.id, "w")
    waiting = await fm.run(run.id)
    assert waiting.status == "waiting"
    assert waiting.resume_token != token
    assert waiting.cancellation is None
    await fm.send_event("go")
    assert (await fm.get(run.id)).status == "completed"


async def test_a_running_step_outlives_its_executions_deadline_no_longer_than_the_next_pass(fm):
    run = await fm.create("f", timeouts=Timeouts(execution_ms=100))
    (task,) = await claim(fm)
    fm.advance(100)
    await fm.engine.fire_due()
    with pytest.raises(LeaseLost):
        await finish(fm, task)
    assert (await fm.get(run.id)).error["code"] == "EXECUTION_TIMEOUT"


# --- recovery -----------------------------------------------------------------------------------


async def test_a_restart_gives_every_leased_task_back_at_once(fm):
    runs = [await fm.create("f") for _ in range(5)]
    before = await claim(fm, 3)
    await fm.restart()
    after = await claim(fm)
    assert {t.execution_id for t in after} == {r.id for r in runs}
    assert {t.id for t in before} <= {t.id for t in after}
    assert min(t.lease_id for t in after) > max(t.lease_id for t in before)


async def test_a_restart_keeps_delays_and_waits(fm):
    fm.apply(doc(step("d", "delay", config={"ms": 1000}), id="g"))
    asleep = await fm.create("g")
    await fm.settle()
    await fm.create("f")
    (task,) = await claim(fm)
    await fm.engine.release(task.key, task.lease_id, delay_ms=500)
    await fm.restart()
    assert await claim(fm) == []
    assert await fm.engine.fire_due() == fm.clock.now_ms() + 500
    fm.advance(1000)
    await fm.settle()
    assert (await fm.get(asleep.id)).status == "completed"
    assert (await fm.get(task.execution_id)).status == "completed"


async def test_a_restart_says_so_in_the_ledger(fm):
    await fm.create("f")
    await claim(fm)
    await fm.restart()
    rows = await fm.store.read(lambda c: ledger.read(c, 0, 100))
    assert rows[-1]["type"] == "daemon.started"
    assert rows[-1]["data"]["tasksReleased"] == 1
    assert [r["seq"] for r in rows] == list(range(1, len(rows) + 1))


async def test_a_result_that_cannot_be_applied_can_be_failed(fm):
    """A bug in the engine must not strand the execution: the dispatcher's last word is fatal."""
    run = await fm.create("f")
    (task,) = await claim(fm)
    error = StepError("INTERNAL", "bug")
    await finish(fm, task, TaskResult(Outcome.ERROR, error=error, fatal=True))
    assert (await fm.get(run.id)).error["code"] == "INTERNAL"


async def test_a_retry_by_hand_from_another_step_is_another_task(fm):
    """The id is a handler's idempotency key: two different steps must never share one."""
    run = await fm.create("f")
    (cancelled,) = await claim(fm)
    await fm.cancel(run.id)
    await fm.retry(run.id, "b")
    (other,) = await claim(fm)
    assert (cancelled.step.id, other.step.id) == ("a", "b")
    assert other.id != cancelled.id
