"""Pauses: by the handler and by hand; ended by an event, a person, a token, the time, a cancel."""

import pytest

from flowmonkeyd.errors import Conflict, Invalid, LeaseLost, Superseded
from flowmonkeyd.jobmodel import JobState, Resumed
from flowmonkeyd.model import StepError, Timeouts
from flowmonkeyd.store import jobs, segments
from tests.jobs.instances import HOUR_MS, keep
from tests.jobs.test_jobs import job_of, names, told

LOST = StepError("JOB_LOST", "the container is gone")


async def paused(fm, machine, **how):
    run = await fm.create("f", {"n": 1})
    instance = await machine.start()
    fm.advance(1000)
    how = {"event": "uploaded", "filter": {"id": 7}, **how}
    await instance.pause(**how)
    fm.advance(60_000)
    return run, instance


async def test_a_pause_keeps_checkpoint_and_wait_and_ends_what_is_billed(fm, machine):
    run, instance = await paused(fm, machine, checkpoint=keep(b"half", "frames"))
    shown = await fm.get(run.id)
    assert (shown.status, shown.wait_reason) == ("waiting", "upload")
    assert shown.execution.current_step_id == "s"
    job = await job_of(fm, instance)
    assert (job.state, job.instance) == (JobState.PAUSED, instance.name)
    (segment,) = await fm.store.read(lambda c: segments.of_job(c, job.key))
    assert (segment.last_ns - segment.started_ns, segment.ended) == (10**9, True)
    assert (await fm.engine.checkpoint_of(job.key, "frames")).data == b"half"
    assert await fm.history(run.id) == []
    assert await names(fm, run.id) == ["claimed", "checkpoint", "paused"]
    assert await machine.claim() is None


async def by_event(fm, run):
    await fm.send_event("uploaded", {"id": 7, "url": "u"})
    return Resumed("event", {"id": 7, "url": "u"}, "upload", "uploaded", 60_000)


async def by_hand(fm, run):
    await fm.engine.resume(run.id, None, {"go": 1})
    return Resumed("hand", {"go": 1}, "upload", "uploaded", 60_000)


async def by_hand_without_data(fm, run):
    await fm.engine.resume(run.id)
    return Resumed("hand", None, "upload", "uploaded", 60_000)


async def by_token(fm, run):
    token = (await fm.get(run.id)).resume_token
    await fm.engine.resume(None, token, [1])
    with pytest.raises(Invalid, match="used"):
        await fm.engine.resume(None, token)
    return Resumed("hand", [1], "upload", "uploaded", 60_000)


async def by_time(fm, run):
    await fm.settle()
    return Resumed("time", None, "upload", "uploaded", 60_000)


WAYS = [by_event, by_hand, by_hand_without_data, by_token, by_time]


@pytest.mark.parametrize("container", ["frozen", "new"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_pause_ends_and_the_same_step_goes_on(fm, machine, way, container):
    wake_at_ms = fm.clock.now_ms() + 61_000
    run, instance = await paused(fm, machine, wake_at_ms=wake_at_ms)
    wanted = await way(fm, run)
    job = await job_of(fm, instance)
    assert (job.state, job.resume, job.resuming) == (JobState.QUEUED, wanted, wanted.by)
    assert (job.paused_ms, job.last_pause_ms) == (60_000, 60_000)
    shown = await fm.get(run.id)
    assert (shown.status, shown.execution.current_step_id) == ("running", "s")
    assert shown.context == {"n": 1}  # the data is the job's
    if container == "frozen":
        instance = await machine.thaw(instance)
        assert instance.job.attempt == 1
    else:
        assert await fm.engine.evict_instance(job.key, instance.name) is False  # not paused now
        instance = await machine.start()
        assert instance.job.attempt == 2
    job = await job_of(fm, instance)
    assert (job.state, job.resume, job.resuming) == (JobState.RUNNING, wanted, None)
    resumed = [data for name, data in await told(fm, run.id) if name == "resumed"]
    assert [(d["how"], d["pausedMs"]) for d in resumed] == [(wanted.by, 60_000)]
    await instance.finish("film")
    run = await fm.run(run.id)
    assert (run.status, run.context["film"]) == ("completed", "film")
    started = [r["step_id"] for r in await fm.events(run.id) if r["type"] == "step.started"]
    assert started == ["s", "z"]
    assert [entry.step_id for entry in await fm.history(run.id)] == ["s", "z"]


async def test_only_the_event_that_matches_ends_it(fm, machine):
    run, _ = await paused(fm, machine)
    for name, data in (("uploaded", {"id": 8}), ("other", {"id": 7}), ("uploaded", None)):
        sent = await fm.send_event(name, data)
        assert sent.woken == ()
    sent = await fm.engine.send_event("uploaded", {"id": 7}, "another tenant")
    assert sent.woken == ()
    assert (await fm.get(run.id)).status == "waiting"


async def test_of_two_that_end_a_pause_one_does(fm, machine):
    run, _ = await paused(fm, machine)
    await fm.engine.resume(run.id)
    with pytest.raises(Conflict):
        await fm.engine.resume(run.id)
    assert (await fm.send_event("uploaded", {"id": 7})).woken == ()


async def test_a_frozen_container_that_was_removed_is_replaced(fm, machine):
    run, instance = await paused(fm, machine)
    assert not await fm.engine.evict_instance(instance.job.key, "another")
    assert await fm.engine.evict_instance(instance.job.key, instance.name)
    assert await fm.engine.instances_wanted() == {}
    await fm.send_event("uploaded", {"id": 7})
    again = await machine.start()
    assert (again.job.attempt, again.job.failures) == (2, 0)
    assert "superseded" not in await names(fm, run.id)
    with pytest.raises(Superseded):
        await instance.beat()


async def test_what_a_pause_resumed_with_is_kept_until_a_checkpoint_knows_it(fm, machine):
    _, instance = await paused(fm, machine)
    await fm.send_event("uploaded", {"id": 7})
    instance = await machine.thaw(instance)
    await instance.save(b"old", settled=False)  # saved before the handler was given it
    kept = (await job_of(fm, instance)).resume
    assert kept is not None
    lost = await fm.engine.lose_instance(instance.fence, None, LOST)
    assert lost.job.resume == kept
    instance = await machine.instance(instance.task)
    await instance.begin()
    assert instance.job.resume == kept
    await instance.save(b"new", settled=True)
    assert (await job_of(fm, instance)).resume is None


async def test_a_pause_forgets_what_the_one_before_resumed_with(fm, machine):
    _, instance = await paused(fm, machine)
    await fm.send_event("uploaded", {"id": 7})
    instance = await machine.thaw(instance)
    await instance.pause("review")
    assert (await job_of(fm, instance)).resume is None


async def test_a_pause_by_hand_keeps_what_the_handler_waits_to_be_told(fm, machine):
    run, instance = await paused(fm, machine)
    await fm.send_event("uploaded", {"id": 7})
    instance = await machine.thaw(instance)
    kept = (await job_of(fm, instance)).resume
    job = await fm.engine.pause_by_hand(instance.fence, "uid:0", "lunch", None, machine.ns)
    assert (job.state, job.paused_by_hand, job.resume) == (JobState.PAUSED, True, kept)
    shown = await fm.get(run.id)
    assert (shown.status, shown.wait_reason) == ("waiting", "lunch")
    fm.advance(5000)
    await fm.engine.resume(run.id, None, {"ignored": True})
    again = await machine.start()
    assert (again.job.resume, again.job.last_pause_ms, again.job.paused_ms) == (kept, 5000, 65_000)
    found = [(name, data.get("by"), data.get("how")) for name, data in await told(fm, run.id)]
    assert found[-4:] == [
        ("paused", "uid:0", None),
        ("superseded", None, None),
        ("claimed", None, None),
        ("resumed", None, "hand"),
    ]


async def test_a_pause_whose_answer_was_lost_is_answered_again(fm, machine):
    """The daemon died between the commit and its answer; the agent sends it anew."""
    _, instance = await paused(fm, machine)
    before = await job_of(fm, instance)
    await fm.restart()
    instance.seq -= 1
    assert await instance.pause(event="other") == before
    await fm.send_event("uploaded", {"id": 7})
    instance.seq -= 1
    assert (await instance.pause()).state is JobState.QUEUED
    with pytest.raises(LeaseLost):
        await instance.beat()


async def test_a_pause_is_bounded_as_every_wait_is(fm, machine):
    run = await fm.create("f", timeouts=Timeouts(wait_ms=HOUR_MS))
    instance = await machine.start()
    await instance.pause()
    fm.advance(HOUR_MS + 1)
    await fm.settle()
    assert (await fm.get(run.id)).error["code"] == "WAIT_TIMEOUT"
    job = await job_of(fm, instance)
    assert (job.state, job.paused_ms) == (JobState.CANCELLED, HOUR_MS + 1)


async def test_a_cancelled_pause_is_over_for_everybody(fm, machine):
    run, instance = await paused(fm, machine)
    token = (await fm.get(run.id)).resume_token
    await fm.cancel(run.id)
    with pytest.raises(Invalid, match="revoked"):
        await fm.engine.resume(None, token)
    assert (await fm.send_event("uploaded", {"id": 7})).woken == ()
    with pytest.raises(LeaseLost):
        await instance.beat()


async def test_data_that_no_context_could_hold_is_refused_or_fails_the_execution(fm, machine):
    run, instance = await paused(fm, machine)
    big = {"id": 7, "text": "x" * 1024 * 1024}
    with pytest.raises(Invalid) as refused:
        await fm.engine.resume(run.id, None, big)
    assert refused.value.code == "CONTEXT_VALUE_TOO_LARGE"
    assert (await job_of(fm, instance)).state is JobState.PAUSED
    await fm.send_event("uploaded", big)
    assert (await fm.get(run.id)).error["code"] == "CONTEXT_VALUE_TOO_LARGE"
    assert (await job_of(fm, instance)).state is JobState.FAILED


async def test_a_pause_with_too_large_a_checkpoint_does_not_happen(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    with pytest.raises(Invalid) as refused:
        await instance.pause(checkpoint=keep(b"x" * 1001))
    assert refused.value.code == "CHECKPOINT_TOO_LARGE"
    assert (await fm.get(run.id)).status == "running"
    assert (await job_of(fm, instance)).state is JobState.RUNNING


async def test_a_retried_step_that_pauses_goes_on_in_the_same_attempt(fm, machine):
    run = await fm.create("again")
    await (await machine.start()).finish(error=StepError("NO", "no"))
    fm.advance(5000)
    await fm.run(run.id)
    instance = await machine.start()
    await instance.pause()
    await fm.engine.resume(run.id)
    instance = await machine.thaw(instance)
    assert (instance.task.attempt, instance.job.step_attempt) == (1, 1)
    assert len(await fm.store.read(lambda c: jobs.list_page(c, jobs.Page(10)))) == 1
