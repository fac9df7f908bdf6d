"""What jobs cost: active time and nothing else, exactly, once."""

import sqlite3
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmonkeyd.billing import Quota, amount, job_nanos, nanos, segment_start_ns
from flowmonkeyd.errors import LeaseLost, TooMany
from flowmonkeyd.jobmodel import JobState
from flowmonkeyd.model import Charge, StepError
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.store import billing, jobs, segments
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, step
from tests.jobs.instances import HOUR_MS, Machine, publish

CRASH = StepError("JOB_LOST", "the container is gone")
NO = StepError("NO", "no")


async def lines(fm):
    """(tier, amount, seq of the attempt) of every line, in order."""

    def read(conn):
        sql = "SELECT tier, nanos, seq FROM job_charges ORDER BY job, number"
        return [(tier, amount(n), seq) for tier, n, seq in conn.execute(sql)]

    return await fm.store.read(read)


async def beat_for(fm, instance, ms, every_ms=300_000):
    for _ in range(ms // every_ms):
        fm.advance(every_ms)
        await instance.beat()


async def test_eight_hours_at_work_and_two_in_a_pause_are_2_88(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    await beat_for(fm, instance, 5 * HOUR_MS)
    await instance.pause(event="uploaded")
    fm.advance(2 * HOUR_MS)
    await fm.send_event("uploaded", {"n": 1})
    instance = await machine.thaw(instance)
    await beat_for(fm, instance, 3 * HOUR_MS)
    await instance.finish()
    assert await lines(fm) == [("heavy", "2.880000000", 1)]
    (entry,) = await fm.history(run.id)
    assert entry.charge == Charge("heavy", 2_880_000_000)
    (segment, again) = await fm.store.read(lambda c: segments.of_job(c, instance.job.key))
    assert (segment.last_ns - segment.started_ns) == 5 * HOUR_MS * 10**6
    assert again.started_ns - segment.last_ns == 2 * HOUR_MS * 10**6


# An execution may take 24 hours by the clock on the wall, whatever becomes of that.
@pytest.mark.parametrize("hours", [20, -24])
async def test_a_clock_that_is_set_changes_no_bill_and_ends_no_job(fm, machine, hours):
    run = await fm.create("f")
    instance = await machine.start()
    await beat_for(fm, instance, HOUR_MS)
    machine.jump(hours * HOUR_MS)
    await fm.settle()
    assert await machine.claim() is None  # its lease holds
    await beat_for(fm, instance, HOUR_MS)
    await instance.pause(event="uploaded")
    machine.jump(-hours * HOUR_MS)
    await fm.send_event("uploaded", {"n": 1})
    instance = await machine.thaw(instance)
    await beat_for(fm, instance, HOUR_MS)
    await instance.finish()
    await fm.settle()
    assert (await fm.get(run.id)).status == "completed"
    assert await lines(fm) == [("heavy", "1.080000000", 1)]


async def test_what_nobody_saw_before_a_crash_is_free(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    fm.advance(20_000)
    await instance.beat()
    fm.advance(4_999)  # the machine dies
    await fm.restart()
    machine.reboot()
    fm.advance(60_000)
    task = await machine.claim()
    instance.task = task
    await fm.engine.lose_instance(instance.fence, None, CRASH)
    again = await machine.instance(task)
    fm.advance(1000)  # it starts: ours
    await again.begin()
    fm.advance(10_000)
    await again.finish()
    assert await lines(fm) == [("heavy", amount(30 * 100_000), 1)]


async def test_a_daemon_that_adopts_bills_no_moment_twice(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    fm.advance(20_000)
    await instance.beat()
    fm.advance(3_000)
    await fm.restart()
    instance.task = await machine.claim()
    await instance.begin()
    fm.advance(7_000)
    await instance.finish()
    assert await lines(fm) == [("heavy", amount(27 * 100_000), 1)]


async def test_each_retry_of_the_step_is_a_line_and_their_sum_is_rounded_once(fm, machine):
    run = await fm.create("again")
    for ms in (1, 2, 4):
        instance = await machine.start(plan=machine.plan(nanos_per_s=1_111))
        fm.advance(ms)
        await instance.finish(error=NO)
        fm.advance(5000)
        await fm.run(run.id)
    # 1.111, 3.333 and 7.777 nano-dollars so far
    assert await lines(fm) == [
        ("heavy", "0.000000002", 1),
        ("heavy", "0.000000002", 2),
        ("heavy", "0.000000004", 3),
    ]
    assert [entry.charge.nanos for entry in await fm.history(run.id)] == [2, 2, 4]


async def test_a_cancelled_job_pays_for_what_was_seen_of_it(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    fm.advance(20_000)
    await instance.beat()
    fm.advance(4_000)
    await fm.cancel(run.id)
    assert await lines(fm) == [("heavy", amount(20 * 100_000), None)]
    with pytest.raises(LeaseLost):
        await instance.finish()
    assert len(await lines(fm)) == 1
    await fm.engine.retry(run.id)
    again = await machine.start()
    fm.advance(1000)
    await again.finish()
    assert [line[1:] for line in await lines(fm)] == [("0.002000000", None), ("0.000100000", 1)]


async def test_a_paused_job_that_is_cancelled_pays_for_no_pause(fm, machine):
    run = await fm.create("f")
    instance = await machine.start()
    fm.advance(1000)
    await instance.pause()
    fm.advance(HOUR_MS)
    await fm.cancel(run.id)
    assert await lines(fm) == [("heavy", "0.000100000", None)]


async def test_a_job_that_never_ran_costs_nothing_and_has_no_line(fm, machine):
    run = await fm.create("f")
    task = await machine.claim()
    await machine.instance(task)  # never accepts
    fm.advance(HOUR_MS)
    await fm.cancel(run.id)
    assert await lines(fm) == []


async def test_a_result_that_comes_twice_is_billed_once(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    fm.advance(1000)
    await instance.finish()
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await instance.finish()
    assert len(await lines(fm)) == 1

    def again(tx):
        billing.charge_job(tx, instance.job.key, instance.task.key, 1, 2, Charge("heavy", 1))

    with pytest.raises(sqlite3.IntegrityError):
        await fm.store.write(again)


async def test_bills_of_attempts_and_jobs_add_up_to_the_ledger(fm, machine):
    for number in range(6):
        await fm.create("f", tenant_id=f"t{number % 2}")
        instance = await machine.start()
        fm.advance(7 * HOUR_MS)
        await instance.finish()

    def ledger(conn):
        return conn.execute("SELECT count(*), sum(nanos) FROM job_charges").fetchone()

    whole = tuple(await fm.store.read(ledger))
    assert whole == (6, 6 * 7 * 3600 * 100_000)
    found = {}
    for by in billing.GROUPS:
        groups = await fm.store.read(
            lambda conn, by=by: billing.grouped(conn, by, None, None, None)
        )
        found[by] = {group.key: group.nanos for group in groups}
        assert sum(found[by].values()) == whole[1]
        assert sum(group.count for group in groups) == whole[0]
    assert found["handler"].keys() == {"acme/film@1.0.0"}
    assert found["tenant"] == {"t0": whole[1] // 2, "t1": whole[1] // 2}
    assert len(found["day"]) == 2


async def test_active_time_counts_towards_a_quota_and_is_counted_anew(tmp_path):
    quotas = Quotas(Quota(None, nanos("0.0002")))
    path = tmp_path / "fm.db"
    async with FlowHarness(quotas=quotas, path=path) as fm:
        machine = Machine(fm)
        await publish(fm)
        fm.apply(doc(step("s", "acme/film")))
        for _ in range(2):
            await fm.create("f")
            instance = await machine.start()
            fm.advance(1000)
            await instance.finish()
        for _ in range(2):
            with pytest.raises(TooMany):
                await fm.create("f")
            await fm.restart()


@given(st.integers(0, 10**18), st.integers(0, 10**9))
def test_a_price_is_the_least_that_covers_the_time(active_ns, rate):
    exact = Decimal(active_ns) * rate / 10**9
    assert 0 <= job_nanos(active_ns, rate) - exact < 1


def test_a_segment_never_begins_before_the_last_one_of_its_boot_has_ended():
    assert segment_start_ns(5, "a", "a", 7) == 7
    assert segment_start_ns(9, "a", "a", 7) == 9
    assert segment_start_ns(5, "b", "a", 7) == 5
    assert segment_start_ns(5, "b", None, 0) == 5


async def test_what_a_running_job_has_cost_so_far_is_known(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    fm.advance(20_000)
    await instance.beat()
    fm.advance(3_000)
    shown = await fm.store.read(lambda conn: jobs.shown(conn, instance.job.id))
    assert shown.job.state is JobState.RUNNING
    assert shown.active_ns == 20 * 10**9
