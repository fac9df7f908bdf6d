"""The life of a job: made, claimed, run, lost, ended; who may write to it, and who not."""

import asyncio
import re

import pytest

from flowmonkeyd.errors import Invalid, LeaseLost, Superseded
from flowmonkeyd.jobmodel import JobState, Progress
from flowmonkeyd.model import JobEnd, Lane, Outcome, StepError, TaskResult, Timeouts
from flowmonkeyd.store import jobs, segments
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, echo, step
from tests.jobs.instances import HOUR_MS, keep, publish

LOST = StepError("JOB_LOST", "the container is gone")
NO = StepError("NO", "no")


async def job_of(fm, instance):
    return await fm.store.read(lambda conn: jobs.get(conn, instance.job.key))


async def all_jobs(fm):
    return [one.job for one in await fm.store.read(lambda c: jobs.list_page(c, jobs.Page(100)))]


async def told(fm, execution_id, prefix="job."):
    """The events of jobs: names without `job.`, each with what the test may want of its data."""
    rows = await fm.events(execution_id)
    return [(r["type"][4:], r["data"]) for r in rows if r["type"].startswith(prefix)]


async def names(fm, execution_id):
    return [name for name, _ in await told(fm, execution_id)]


async def test_a_stateful_step_is_a_job_and_its_result_goes_on(fm, machine):
    run = await fm.create("f", {"n": 1})
    instance = await machine.start()
    assert (instance.job.state, instance.job.attempt) == (JobState.RUNNING, 1)
    fm.advance(3000)
    await instance.finish({"frames": 3})
    job = await job_of(fm, instance)
    assert (job.state, job.instance, job.finished_at_ms) == (
        JobState.COMPLETED,
        None,
        fm.clock.now_ms(),
    )
    run = await fm.run(run.id)
    assert run.status == "completed"
    assert run.context["film"] == {"frames": 3}
    claimed, completed = await told(fm, run.id)
    assert claimed[1] == {"jobId": job.id, "instance": instance.name, "attempt": 1}
    assert completed == ("completed", {"jobId": job.id, "attempt": 1, "activeMs": 3000})


async def test_a_stateless_handler_stays_in_the_sandbox(fm, machine):
    await publish(fm, "acme/small", stateful=False)
    fm.apply(doc(step("s", "acme/small"), id="small"))
    await fm.create("small")
    assert await machine.claim() is None
    (task,) = await fm.engine.claim(Lane.SANDBOX, 1, "w")
    assert task.handler_type == "acme/small"


async def test_of_twenty_that_claim_at_once_one_has_the_job(fm, machine):
    await fm.create("f")
    claims = [machine.claim() for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(one) for one in claims]
    tasks = [one.result() for one in found if one.result() is not None]
    assert len(tasks) == 1
    # And of twenty containers started for it, only the last one may write.
    instances = []
    for _ in range(20):
        instances.append(await machine.instance(tasks[0]))
    await instances[-1].begin()
    for old in instances[:-1]:
        with pytest.raises(Superseded):
            await old.begin()
    await instances[-1].finish()
    assert [job.attempt for job in await all_jobs(fm)] == [20]


WRITES = {
    "begin": lambda i: i.begin(),
    "heartbeat": lambda i: i.beat(),
    "checkpoint": lambda i: i.save(b"x"),
    "clear": lambda i: i.fm.engine.clear_checkpoints(i.fence, i.number(), None),
    "pause": lambda i: i.pause(),
    "pause by hand": lambda i: i.fm.engine.pause_by_hand(i.fence, "uid:0", None, None, 1),
    "extend": lambda i: i.fm.engine.extend_ttl(i.fence, i.number(), 1000),
    "lose": lambda i: i.fm.engine.lose_instance(i.fence, None, LOST),
    "finish": lambda i: i.finish(),
}


def whole(conn):
    tables = ("jobs", "segments", "checkpoints", "job_charges", "tasks", "waits", "events")
    return [conn.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_superseded_instance_changes_nothing(fm, machine, write):
    await fm.create("f")
    old = await machine.start()
    await old.save(b"old")
    await machine.instance(old.task)
    before = await fm.store.read(whole)
    fm.advance(1000)
    with pytest.raises(Superseded):
        await write(old)
    assert await fm.store.read(whole) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_an_instance_whose_lease_is_over_changes_nothing(fm, machine, write):
    await fm.create("f")
    old = await machine.start()
    await fm.restart()
    await machine.claim()  # another daemon has it, and the job is still this instance's
    before = await fm.store.read(whole)
    fm.advance(1000)
    with pytest.raises(LeaseLost):
        await write(old)
    assert await fm.store.read(whole) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_after_a_cancel_nothing_is_taken(fm, machine, write):
    run = await fm.create("f")
    old = await machine.start()
    await fm.cancel(run.id)
    before = await fm.store.read(whole)
    with pytest.raises(LeaseLost):
        await write(old)
    assert await fm.store.read(whole) == before


async def test_a_message_that_comes_again_is_answered_and_applied_once(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    engine, fence = fm.engine, instance.fence
    assert await engine.save_checkpoint(fence, 1, keep(b"one"), True, 1)
    assert not await engine.save_checkpoint(fence, 1, keep(b"other"), True, 1)
    assert (await engine.extend_ttl(fence, 2, 1000)).ttl_ms == HOUR_MS + 1000
    assert (await engine.extend_ttl(fence, 2, 1000)).ttl_ms == HOUR_MS + 1000
    assert not await engine.clear_checkpoints(fence, 2, None)
    assert (await engine.checkpoint_of(instance.job.key, "default")).data == b"one"
    assert await engine.clear_checkpoints(fence, 3, None)
    assert await engine.checkpoints_of(instance.job.key) == []


async def test_a_restart_keeps_everything_and_the_instance_is_adopted(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    await instance.save(b"half", "frames")
    await instance.beat(Progress(50.0, "half", 1000))
    before = await job_of(fm, instance)
    for _ in range(3):
        await fm.restart()
        wanted = await fm.engine.instances_wanted()
        assert wanted == {instance.name: (instance.job.key, JobState.RUNNING)}
        instance.task = await machine.claim()
        await instance.begin()
    after = await job_of(fm, instance)
    assert (after.attempt, after.seq, after.progress) == (1, before.seq, before.progress)
    assert (await fm.engine.checkpoint_of(after.key, "frames")).data == b"half"
    await instance.finish()
    assert (await fm.run(run.id)).status == "completed"
    assert await names(fm, run.id) == ["claimed", "checkpoint", "progress", "completed"]
    started = [r for r in await fm.events(run.id) if r["type"] == "step.started"]
    assert [r["stepId"] if "stepId" in r else r["step_id"] for r in started] == ["s", "z"]


async def test_the_lease_of_a_job_does_not_end_by_the_clock(fm, machine):
    await fm.create("f", timeouts=Timeouts(execution_ms=10**12))
    instance = await machine.start()
    for _ in range(30):
        fm.advance(24 * HOUR_MS)
        await fm.engine.extend(instance.task.key, instance.task.lease_id)
        await fm.settle()
    await instance.beat()
    await instance.finish()


async def test_a_lost_container_is_replaced_until_there_have_been_enough(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    backoffs = []
    for number in range(3):
        fm.advance(1000)
        lost = await fm.engine.lose_instance(instance.fence, machine.ns, LOST)
        assert (lost.job.instance, lost.job.failures) == (None, number + 1)
        backoffs.append((lost.may_retry, lost.backoff_ms))
        if lost.may_retry:
            instance = await machine.instance(instance.task)
            assert instance.job.attempt == number + 2
            await instance.begin()
    assert backoffs == [(True, 1000), (True, 2000), (False, 0)]
    end = JobEnd(instance.job.key)
    result = TaskResult(Outcome.ERROR, error=LOST, job=end)
    await fm.engine.finish(instance.task.key, instance.task.lease_id, result)
    job = await job_of(fm, instance)
    assert (job.state, job.error.code) == (JobState.FAILED, "JOB_LOST")
    run = await fm.get(run.id)
    assert (run.status, run.error["code"]) == ("failed", "JOB_LOST")
    assert await names(fm, run.id) == [
        *("claimed", "failed", "claimed", "failed", "claimed", "failed")
    ]
    assert [d["retry"] for n, d in await told(fm, run.id) if n == "failed"] == [True, True, False]


async def test_the_backoff_has_a_limit(fm, machine):
    await fm.create("f")
    instance = await machine.start(plan=machine.plan(attempts_max=100))
    found = []
    for _ in range(8):
        lost = await fm.engine.lose_instance(instance.fence, None, LOST)
        found.append(lost.backoff_ms)
        instance = await machine.instance(instance.task)
    assert found == [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]


async def test_a_retry_of_the_step_goes_on_from_the_checkpoints_with_time_of_its_own(fm, machine):
    run = await fm.create("again")
    instance = await machine.start()
    await instance.save(b"half")
    await fm.engine.extend_ttl(instance.fence, instance.number(), HOUR_MS)
    fm.advance(1000)
    await fm.engine.lose_instance(instance.fence, machine.ns, LOST)
    instance = await machine.instance(instance.task)
    await instance.begin()
    fm.advance(1000)
    assert await fm.engine.active_ns(instance.job.key) == 10**9
    await instance.beat()
    assert await fm.engine.active_ns(instance.job.key) == 2 * 10**9
    await instance.finish(error=NO)
    job = await job_of(fm, instance)
    assert (job.state, job.failures, job.ttl_ms) == (JobState.QUEUED, 0, HOUR_MS)
    fm.advance(5000)
    await fm.run(run.id)
    again = await machine.start()
    assert (again.job.key, again.job.step_attempt, again.job.attempt) == (job.key, 1, 3)
    assert await fm.engine.active_ns(job.key) == 0
    assert (await fm.engine.checkpoint_of(job.key, "default")).data == b"half"
    await again.finish()
    assert (await fm.run(run.id)).status == "completed"
    assert len(await all_jobs(fm)) == 1


async def test_the_last_retry_fails_the_job(fm, machine):
    run = await fm.create("again")
    for number in range(3):
        instance = await machine.start()
        await instance.finish(error=NO)
        assert (await job_of(fm, instance)).state == ("failed" if number == 2 else "queued")
        fm.advance(5000)
        await fm.run(run.id)
    assert (await fm.get(run.id)).status == "failed"


async def test_a_loop_that_comes_back_has_another_job(fm, machine):
    fm.apply(doc(step("s", "acme/film", next="b"), step("b", next="s"), id="loop"))
    run = await fm.create("loop")
    for _ in range(3):
        instance = await machine.start()
        assert (await fm.engine.checkpoints_of(instance.job.key)) == []
        await instance.save(b"x")
        await instance.finish()
        await fm.run(run.id)
    assert len({job.key for job in await all_jobs(fm)}) == 3
    assert len({job.visit for job in await all_jobs(fm)}) == 3


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_a_retry_by_hand_goes_on_with_the_job(fm, machine, end):
    run = await fm.create("f")
    instance = await machine.start()
    await instance.save(b"half")
    fm.advance(1000)
    if end == "fail":
        await instance.finish(error=NO)
    else:
        await fm.cancel(run.id)
    ended = await job_of(fm, instance)
    assert ended.expires_at_ms is not None
    await fm.engine.retry(run.id)
    again = await machine.start()
    started = [r["step_id"] for r in await fm.events(run.id) if r["type"] == "step.started"]
    assert started == ["s", "s"]
    assert again.job.key == ended.key
    assert (again.job.finished_at_ms, again.job.expires_at_ms) == (None, None)
    assert await fm.engine.active_ns(ended.key) == 0
    assert (await fm.engine.checkpoint_of(ended.key, "default")).data == b"half"
    await again.finish()
    assert (await fm.run(run.id)).status == "completed"


async def test_a_retry_by_hand_of_a_completed_job_is_a_new_one(fm, machine):
    fm.apply(doc(step("s", "acme/film", next="n"), step("n", "acme/gone"), id="ends"))
    run = await fm.create("ends")
    instance = await machine.start()
    await instance.finish()
    assert (await fm.get(run.id)).status == "failed"
    await fm.engine.retry(run.id, "s")
    again = await machine.start()
    assert again.job.key != instance.job.key


async def test_a_step_that_ends_without_an_instance_ends_its_job(fm, machine):
    """The executor could not even start: no image, say."""
    run = await fm.create("f")
    task = await machine.claim()
    job = await fm.engine.open_job(task, machine.plan())
    error = StepError("IMAGE_UNAVAILABLE", "it does not build", retryable=False)
    result = TaskResult(Outcome.ERROR, error=error, fatal=True)
    await fm.engine.finish(task.key, task.lease_id, result)
    assert (await fm.get(run.id)).error["code"] == "IMAGE_UNAVAILABLE"
    assert (await fm.store.read(lambda c: jobs.get(c, job.key))).state is JobState.FAILED


async def test_a_cancel_tells_whose_container_is_not_wanted(fm, machine):
    hints = []
    fm.store.on_commit = hints.append
    first, second = await fm.create("f"), await fm.create("f")
    running, frozen = await machine.start(first.id), await machine.start(second.id)
    await frozen.pause()
    del hints[:]
    await fm.cancel(first.id)
    await fm.cancel(second.id)
    assert [h.evicted for h in hints] == [{running.name}, {frozen.name}]
    # The task of the paused one was dropped with its pause.
    assert [bool(h.dropped) for h in hints] == [True, False]
    assert await fm.engine.instances_wanted() == {}
    assert {job.state for job in await all_jobs(fm)} == {JobState.CANCELLED}
    assert [(await names(fm, run.id))[-1] for run in (first, second)] == ["cancelled"] * 2


async def test_an_execution_that_takes_too_long_takes_its_job_along(fm, machine):
    run = await fm.create("f", timeouts=Timeouts(execution_ms=10_000))
    instance = await machine.start()
    fm.advance(10_001)
    await fm.settle()
    assert (await fm.get(run.id)).error["code"] == "EXECUTION_TIMEOUT"
    job = await job_of(fm, instance)
    assert (job.state, job.error.code) == (JobState.CANCELLED, "EXECUTION_TIMEOUT")


async def test_progress_is_told_when_it_changes_and_once_a_second_at_most(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    for n in range(25):
        await instance.beat(Progress(float(n), f"frame {n}"))
        fm.advance(100)
    fm.advance(1000)
    await instance.beat()
    fm.advance(5000)
    await instance.beat(Progress(24.0, "frame 24"))
    found = [d["percent"] for n, d in await told(fm, run.id) if n == "progress"]
    assert found == [0, 10, 20, 24]
    assert (await job_of(fm, instance)).progress == Progress(24.0, "frame 24")


async def test_the_ledger_has_a_heartbeat_of_each_minute_at_most(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    for _ in range(61):
        fm.advance(5000)
        await instance.beat()
    assert (await names(fm, run.id)).count("heartbeat") in (5, 6)
    assert (await job_of(fm, instance)).heartbeat_at_ms == fm.clock.now_ms()


async def test_time_is_extended_up_to_the_hard_limit(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    engine = fm.engine
    job = await engine.extend_ttl(instance.fence, 1, 23 * HOUR_MS)
    assert job.ttl_ms == 24 * HOUR_MS
    for seq, ms in ((2, 1), (3, 0), (4, -5)):
        with pytest.raises(Invalid, match=re.escape("ttl.hard")):
            await engine.extend_ttl(instance.fence, seq, ms)
    assert (await job_of(fm, instance)).ttl_ms == 24 * HOUR_MS


async def test_room_for_jobs_is_leased_in_the_commit_that_queues_them(fm, machine):
    fm.store.before_commit = fm.engine.run_ready
    fm.engine.capacity[Lane.CONTAINER] = 1
    hints = []
    fm.store.on_commit = hints.append
    await fm.create("f")
    (task,) = hints[-1].claimed["container"]
    assert task.step.id == "s"
    instance = await machine.instance(task)
    await instance.begin()
    assert len(await fm.store.read(lambda c: segments.of_job(c, instance.job.key))) == 1


async def test_in_the_harness_a_handler_of_one_s_own_runs_in_process_stateful_or_not():
    async with FlowHarness({"acme/film": echo}) as fm:
        await publish(fm)
        fm.apply(doc(step("s", "acme/film", out="film")))
        run = await fm.create("f", {"n": 1})
        run = await fm.run(run.id)
        assert (run.status, run.context["film"]) == ("completed", {"n": 1})
        assert await all_jobs(fm) == []
