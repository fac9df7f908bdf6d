"""Time: waits, time-outs and deadlines fall where they would have, however late they are seen."""

import pytest

from flowmonkeyd.model import NewExecution, Timeouts
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, echo, parked, step, sub_flow, wait_for_event

DELAY = doc(step("d", "delay", config={"ms": 5000}, next="end"), step("end"))


@pytest.fixture
async def fm():
    async with FlowHarness({"echo": echo, "parked": parked}) as fm:
        yield fm


@pytest.mark.parametrize(
    ("config", "ms"),
    [
        ({"ms": 1}, 1),
        ({"ms": 500, "seconds": 1}, 1500),
        ({"minutes": 2}, 120_000),
        ({"hours": 1, "minutes": 1, "seconds": 1, "ms": 1}, 3_661_001),
        ({"seconds": 0.5}, 500),
    ],
)
async def test_a_delay_is_over_at_its_instant_and_not_before(fm, config, ms):
    fm.apply(doc(step("d", "delay", config=config)))
    run = await fm.run((await fm.create("f")).id)
    assert (run.status, run.wake_at_ms) == ("waiting", fm.clock.now_ms() + ms)
    fm.advance(ms - 1)
    assert (await fm.run(run.id)).status == "waiting"
    fm.advance(1)
    assert (await fm.run(run.id)).status == "completed"


async def test_a_delay_of_nothing_goes_on_at_once(fm):
    fm.apply(doc(step("d", "delay", config={"ms": 0}, next="end"), step("end")))
    run = await fm.create("f")
    await fm.settle()
    assert (await fm.get(run.id)).status == "completed"


@pytest.mark.parametrize(
    ("timeouts", "late_ms", "status", "code"),
    [
        # Seen in time, or hours after the daemon came back: the same end.
        (Timeouts(), 5000, "completed", None),
        (Timeouts(), 10**9, "completed", None),
        (Timeouts(wait_ms=4000), 4000, "cancelled", "WAIT_TIMEOUT"),
        (Timeouts(wait_ms=4000), 10**9, "cancelled", "WAIT_TIMEOUT"),
        (Timeouts(execution_ms=4000), 4000, "cancelled", "EXECUTION_TIMEOUT"),
        (Timeouts(execution_ms=4000), 10**9, "cancelled", "EXECUTION_TIMEOUT"),
        (Timeouts(execution_ms=3000, wait_ms=4000), 10**9, "cancelled", "EXECUTION_TIMEOUT"),
        (Timeouts(execution_ms=4000, wait_ms=3000), 10**9, "cancelled", "WAIT_TIMEOUT"),
        (Timeouts(wait_ms=5000), 5000, "completed", None),  # the wake-up wins a tie
    ],
)
@pytest.mark.parametrize("restart", [False, True])
async def test_what_came_first_decides_however_late_it_is_seen(
    fm, timeouts, late_ms, status, code, restart
):
    fm.apply(doc(step("d", "delay", config={"ms": 5000})))
    run = await fm.run((await fm.create("f", timeouts=timeouts)).id)
    fm.advance(late_ms)
    if restart:
        await fm.restart()
    await fm.settle()
    run = await fm.get(run.id)
    assert run.status == status
    assert (run.error or {}).get("code") == code
    if code:
        assert run.cancellation["source"] == "timeout"


async def test_a_wait_time_out_of_a_parent_takes_children_that_are_due_too(fm):
    """Both are due in one pass after a long downtime; the pass must not trip over it."""
    fm.apply(doc(step("d", "delay", config={"ms": 5000}), id="child"))
    fm.apply(doc(sub_flow("s", "child")))
    parent = await fm.create("f", timeouts=Timeouts(wait_ms=1000))
    await fm.settle()
    fm.advance(10**8)
    await fm.settle()
    (child,) = await fm.children(parent.id)
    assert (await fm.get(parent.id)).error["code"] == "WAIT_TIMEOUT"
    assert (child.status, child.cancellation["source"]) == ("cancelled", "parent")


async def test_a_child_that_wakes_first_saves_its_parent_from_a_later_time_out(fm):
    fm.apply(doc(step("d", "delay", config={"ms": 500}), id="child"))
    fm.apply(doc(sub_flow("s", "child", next="w"), wait_for_event("w")))
    parent = await fm.create("f", timeouts=Timeouts(wait_ms=1000, execution_ms=10**9))
    await fm.settle()
    fm.advance(10**8)
    await fm.settle()
    assert (await fm.get(parent.id)).status == "waiting", "a new wait has its time before it"


async def test_an_execution_that_does_not_wait_is_timed_out_too(fm):
    fm.apply(doc(step("a")))
    run = await fm.create("f", timeouts=Timeouts(execution_ms=1000))
    fm.advance(1000)
    await fm.settle()
    run = await fm.get(run.id)
    assert (run.status, run.error["code"]) == ("cancelled", "EXECUTION_TIMEOUT")
    assert await fm.history(run.id) == []


async def test_the_parents_deadline_cancels_the_children(fm):
    fm.apply(doc(wait_for_event("w"), id="child"))
    fm.apply(doc(sub_flow("s", "child")))
    parent = await fm.create("f", timeouts=Timeouts(execution_ms=1000))
    await fm.settle()
    fm.advance(1000)
    await fm.settle()
    (child,) = await fm.children(parent.id)
    assert (await fm.get(parent.id)).cancellation["source"] == "timeout"
    assert child.cancellation["source"] == "parent"


async def test_nothing_of_the_wait_is_left_on_a_finished_execution(fm):
    """Upstream 8.2.21: wake fields stay on finished executions."""
    fm.apply(doc(step("p", "parked", config={"duration_ms": 10, "reason": "nap"})))
    run = await fm.run((await fm.create("f")).id)
    assert (run.wake_at_ms, run.wait_reason) == (fm.clock.now_ms() + 10, "nap")
    fm.advance(10)
    run = await fm.run(run.id)
    assert (run.status, run.wake_at_ms, run.wait_reason, run.resume_token) == (
        "completed",
        None,
        None,
        None,
    )


@pytest.mark.slow
async def test_more_than_a_batch_of_due_waits_are_all_taken(fm):
    fm.apply(doc(step("d", "delay", config={"ms": 5})))
    batch = [await fm.create("f") for _ in range(3)]
    many = await fm.engine.submit_batch([NewExecution("f") for _ in range(600)])
    await fm.settle()
    fm.advance(5)
    await fm.settle()
    ids = [run.id for run in batch] + [made.record.execution.id for made in many]
    assert {(await fm.get(i)).status for i in ids} == {"completed"}


async def test_the_next_due_time_is_told(fm):
    fm.apply(DELAY)
    assert await fm.engine.fire_due() is None
    await fm.run((await fm.create("f")).id)
    assert await fm.engine.fire_due() == fm.clock.now_ms() + 5000


async def test_each_wait_and_each_run_by_hand_has_its_own_time_limit(fm):
    fm.apply(doc(wait_for_event("w", next="w"), id="loop"))
    run = await fm.create("loop", timeouts=Timeouts(wait_ms=1000, execution_ms=2500))
    await fm.settle()
    for _ in range(2):
        fm.advance(999)
        await fm.send_event("go")
        await fm.settle()
    assert (await fm.get(run.id)).status == "waiting"
    fm.advance(1000)
    await fm.settle()
    assert (await fm.get(run.id)).error["code"] == "EXECUTION_TIMEOUT"
    await fm.retry(run.id)
    fm.advance(500)
    await fm.settle()
    assert (await fm.get(run.id)).status == "waiting"


async def test_a_parents_earlier_deadline_comes_before_its_childs_later_wake_up(fm):
    fm.apply(doc(step("d", "delay", config={"ms": 5000}), id="child"))
    fm.apply(doc(sub_flow("s", "child")))
    parent = await fm.create("f", timeouts=Timeouts(execution_ms=4000))
    await fm.settle()
    fm.advance(10**8)
    await fm.settle()
    (child,) = await fm.children(parent.id)
    assert (await fm.get(parent.id)).error["code"] == "EXECUTION_TIMEOUT"
    assert child.status == "cancelled"
