"""Checkpoints in the tables: names, limits, files that no row names, and when they go."""

import pytest

from flowmonkeyd.errors import Invalid
from flowmonkeyd.jobmodel import CHECKPOINT_NAMES_MAX
from flowmonkeyd.model import Timeouts
from tests.jobs.instances import HOUR_MS
from tests.jobs.test_jobs import job_of

DAY_MS = 24 * HOUR_MS


async def listed(fm, instance):
    return {c.name: c.size_bytes for c in await fm.engine.checkpoints_of(instance.job.key)}


async def test_names_are_kept_apart_and_a_new_value_replaces_the_old(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    for data, name in ((b"a", "one"), (b"bb", "two"), (b"ccc", "one")):
        await instance.save(data, name)
    assert await listed(fm, instance) == {"one": 3, "two": 2}
    found = await fm.engine.checkpoint_of(instance.job.key, "one")
    assert (found.data, found.attempt, found.saved_at_ms) == (b"ccc", 1, fm.clock.now_ms())
    assert await fm.engine.checkpoint_of(instance.job.key, "three") is None
    await fm.engine.clear_checkpoints(instance.fence, instance.number(), "one")
    assert await listed(fm, instance) == {"two": 2}


async def test_all_of_a_job_together_have_a_limit(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    await instance.save(b"x" * 600, "one")
    await instance.save(b"x" * 400, "two")
    for size, name in ((1, "three"), (601, "one"), (401, "two")):
        with pytest.raises(Invalid) as refused:
            await instance.save(b"x" * size, name)
        assert refused.value.code == "CHECKPOINT_TOO_LARGE"
    assert await listed(fm, instance) == {"one": 600, "two": 400}
    await instance.save(b"x" * 100, "one")
    await instance.save(b"x" * 900, "two")


async def test_there_is_a_limit_of_names(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    for number in range(CHECKPOINT_NAMES_MAX):
        await instance.save(b"x", f"n{number}")
    with pytest.raises(Invalid, match="clear some"):
        await instance.save(b"x", "more")
    assert await instance.save(b"y", "n0")


async def test_a_file_that_no_row_names_any_more_is_told_with_the_commit(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    hints = []
    fm.store.on_commit = hints.append
    await instance.save(b"1", "one", file="1/a")
    await instance.save(b"2", "two", file="1/b")
    await instance.save(b"3", "one", file="1/c")
    assert [h.discarded for h in hints] == [set(), set(), {"1/a"}]
    assert await fm.engine.checkpoint_files() == {"1/b", "1/c"}
    await instance.save(b"small", "one")
    await fm.engine.clear_checkpoints(instance.fence, instance.number(), None)
    assert [h.discarded for h in hints[3:]] == [{"1/c"}, {"1/b"}]
    assert await fm.engine.checkpoint_files() == set()


async def test_a_refused_checkpoint_discards_nothing(fm, machine):
    await fm.create("f")
    instance = await machine.start()
    await instance.save(b"1", "one", file="1/a")
    hints = []
    fm.store.on_commit = hints.append
    with pytest.raises(Invalid):
        await instance.save(b"x" * 1001, "one", file="1/b")
    assert [h.discarded for h in hints] == [set()]
    assert await fm.engine.checkpoint_files() == {"1/a"}


@pytest.mark.parametrize("end", ["finish", "cancel"])
async def test_they_outlive_their_job_for_a_week(fm, machine, end):
    run = await fm.create("f")
    instance = await machine.start()
    await instance.save(b"1", "one", file="1/a")
    await instance.save(b"2", "two")
    if end == "finish":
        await instance.finish()
    else:
        await fm.cancel(run.id)
    await fm.settle()
    hints = []
    fm.store.on_commit = hints.append
    fm.advance(7 * DAY_MS - 1)
    due = await fm.engine.fire_due()
    assert due == fm.clock.now_ms() + 1
    assert await listed(fm, instance) == {"one": 1, "two": 1}
    fm.advance(1)
    await fm.engine.fire_due()
    assert await listed(fm, instance) == {}
    assert set().union(*(h.discarded for h in hints)) == {"1/a"}
    assert (await job_of(fm, instance)).expires_at_ms is None
    assert await fm.engine.fire_due() is None


async def test_those_of_a_live_job_do_not_expire(fm, machine):
    await fm.create("f", timeouts=Timeouts(execution_ms=10**12, wait_ms=10**12))
    instance = await machine.start()
    await instance.save(b"1")
    await instance.pause()
    fm.advance(300 * DAY_MS)
    await fm.settle()
    assert await listed(fm, instance) == {"default": 1}


async def test_many_jobs_that_expire_at_once_all_do(fm, machine):
    instances = []
    for _ in range(120):
        run = await fm.create("f")
        instance = await machine.start()
        await instance.save(b"1")
        instances.append(instance)
        await fm.cancel(run.id)
    fm.advance(8 * DAY_MS)
    await fm.settle()
    assert [await listed(fm, one) for one in instances] == [{}] * 120
