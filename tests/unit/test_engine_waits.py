"""Waits end by their time, an event, a token or by hand: once, and with their data kept."""

import asyncio

import pytest

from flowmonkeyd.engine import DUE_BATCH
from flowmonkeyd.errors import Conflict, Invalid, NotFound
from flowmonkeyd.model import NewExecution, Timeouts
from flowmonkeyd.store import ledger
from flowmonkeyd.testing import FlowHarness
from tests.flows import Tally, doc, echo, parked, step, wait_for_event


@pytest.fixture
async def fm():
    async with FlowHarness({"echo": echo, "parked": parked}) as fm:
        yield fm


async def waiting(fm, document, **options):
    fm.apply(document)
    created = await fm.create(document["id"], **options)
    run = await fm.run(created.id)
    assert run.status == "waiting"
    return run


async def test_a_wait_without_a_time_holds_however_often_it_is_looked_at(fm):
    """Upstream 8.2.9: the next tick goes on."""
    run = await waiting(fm, doc(wait_for_event("w", next="a"), step("a")))
    for _ in range(3):
        assert (await fm.tick(run.id)).status == "waiting"
    fm.advance(6 * 24 * 3600 * 1000)
    async with asyncio.timeout(5):
        await fm.run(run.id, skip_waits=True)
    assert (await fm.get(run.id)).step_count == 1


async def test_a_wait_at_the_end_completes_when_resumed(fm):
    """Upstream 8.2.10: it repeats itself until the step limit."""
    run = await waiting(fm, doc(wait_for_event("w")))
    assert (await fm.resume(run.id)).status == "completed"
    assert len(await fm.history(run.id)) == 1


@pytest.mark.parametrize("how", ["id", "token", "event", "time"])
async def test_each_way_to_end_a_wait_goes_where_on_resume_says(fm, how):
    document = doc(
        wait_for_event("w", config={"maxWaitMs": 100}, next="no", resume="yes"),
        step("yes"),
        step("no"),
    )
    run = await waiting(fm, document)
    data = {"n": 1}
    if how == "id":
        await fm.resume(run.id, data)
    elif how == "token":
        await fm.resume_token(run.resume_token, data)
    elif how == "event":
        assert (await fm.send_event("go", data)).woken == (run.id,)
    else:
        fm.advance(100)
    ended = await fm.run(run.id)
    assert [h.step_id for h in await fm.history(run.id)] == ["w", "yes"]
    if how == "time":
        assert ended.context == {"resumeData": None}
    else:
        assert ended.context == {"n": 1, "resumeData": {"n": 1}}


async def test_resume_without_a_wait_is_refused(fm):
    fm.apply(doc(step("a")))
    run = await fm.create("f")
    for _ in range(2):
        with pytest.raises(Conflict) as refusal:
            await fm.resume(run.id)
        assert refusal.value.code == "NOT_WAITING"
        await fm.run(run.id)
    with pytest.raises(NotFound):
        await fm.resume("nobody")
    with pytest.raises(Invalid):
        await fm.engine.resume(None)


# --- tokens -------------------------------------------------------------------------------------


async def refused(fm, token):
    with pytest.raises(Invalid) as refusal:
        await fm.resume_token(token)
    assert refusal.value.code == "INVALID_TOKEN"
    return refusal.value.message


async def test_of_parallel_uses_of_a_token_one_wins(fm):
    """Upstream 8.2: markUsed is unconditional, so two users of one token both win."""
    run = await waiting(fm, doc(wait_for_event("w", next="w")))
    results = []

    async def use(number):
        try:
            results.append((await fm.resume_token(run.resume_token, {"n": number})).status)
        except Invalid as refusal:
            results.append(refusal.code)

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(use(number))
    assert sorted(results) == ["INVALID_TOKEN"] * 9 + ["running"]


async def test_a_token_is_good_once(fm):
    run = await waiting(fm, doc(wait_for_event("w", next="w")))
    await fm.resume_token(run.resume_token)
    assert "used" in await refused(fm, run.resume_token)
    again = await fm.run(run.id)
    assert again.resume_token not in (None, run.resume_token)
    assert len(again.resume_token) >= 43


@pytest.mark.parametrize("how", ["id", "event", "cancel"])
async def test_a_token_is_worth_nothing_once_the_wait_is_over(fm, how):
    run = await waiting(fm, doc(wait_for_event("w", next="w")))
    if how == "id":
        await fm.resume(run.id)
    elif how == "event":
        await fm.send_event("go")
    else:
        await fm.cancel(run.id)
    assert "revoked" in await refused(fm, run.resume_token)
    types = [e["type"] for e in await fm.events(run.id)]
    assert types.count("token.revoked") == 1
    assert "token.used" not in types


async def test_a_token_lives_until_the_wait_times_out_and_not_longer(fm):
    run = await waiting(fm, doc(wait_for_event("w")), timeouts=Timeouts(wait_ms=1000))
    fm.advance(1001)
    assert "expired" in await refused(fm, run.resume_token)
    other = await waiting(fm, doc(wait_for_event("w"), id="g"), timeouts=Timeouts(wait_ms=1000))
    fm.advance(1000)
    assert (await fm.resume_token(other.resume_token)).status == "completed"


async def test_a_token_of_another_execution_is_unknown(fm):
    one = await waiting(fm, doc(wait_for_event("w")))
    two = await waiting(fm, doc(wait_for_event("w")))
    with pytest.raises(Invalid) as refusal:
        await fm.engine.resume(one.id, two.resume_token)
    assert refusal.value.code == "INVALID_TOKEN"
    assert "unknown" in await refused(fm, "made-up")
    assert (await fm.engine.resume(two.id, two.resume_token)).execution.status == "completed"


async def test_a_token_survives_a_restart(fm):
    run = await waiting(fm, doc(wait_for_event("w")))
    await fm.restart()
    assert (await fm.resume_token(run.resume_token)).status == "completed"


async def test_the_events_of_a_token_are_told(fm):
    run = await waiting(fm, doc(wait_for_event("w")))
    await fm.resume_token(run.resume_token)
    types = [e["type"] for e in await fm.events(run.id) if e["type"].startswith("token.")]
    assert types == ["token.created", "token.used"]


# --- events -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "tenant", "wakes"),
    [
        ("go", {"id": 1}, "default", True),
        ("go", {"id": 1, "more": 2}, "default", True),
        ("go", {"id": 2}, "default", False),
        ("go", None, "default", False),
        ("stop", {"id": 1}, "default", False),
        ("go", {"id": 1}, "other", False),
    ],
)
async def test_an_event_wakes_those_it_is_for(fm, name, data, tenant, wakes):
    run = await waiting(fm, doc(wait_for_event("w", config={"filter": {"id": 1}})))
    sent = await fm.send_event(name, data, tenant_id=tenant)
    assert (sent.woken == (run.id,)) == wakes
    assert (await fm.get(run.id)).status == ("completed" if wakes else "waiting")


async def test_an_event_wakes_all_that_wait_in_one_commit(fm):
    document = doc(wait_for_event("w"))
    runs = [await waiting(fm, document) for _ in range(5)]
    sent = await fm.send_event("go", {"n": 1})
    assert sent.woken == tuple(run.id for run in runs)
    assert {(await fm.get(run.id)).status for run in runs} == {"completed"}


@pytest.mark.slow
async def test_an_event_finds_more_waits_than_one_page(fm):
    fm.apply(doc(wait_for_event("w")))
    await fm.create("f")
    await fm.engine.submit_batch([NewExecution("f") for _ in range(2 * DUE_BATCH + 1)])
    await fm.settle()
    assert len((await fm.send_event("go")).woken) == 2 * DUE_BATCH + 2


async def test_an_event_that_comes_before_the_wait_wakes_nobody(fm):
    fm.apply(doc(step("a", next="w"), wait_for_event("w")))
    run = await fm.create("f")
    assert (await fm.send_event("go")).woken == ()
    assert (await fm.run(run.id)).status == "waiting"


async def test_an_event_is_in_the_ledger_whether_it_wakes_somebody_or_not(fm):
    sent = await fm.send_event("go", {"secret": 1})
    (row,) = await fm.store.read(lambda c: ledger.read(c, sent.seq - 1, 10))
    assert (row["type"], row["data"]["name"]) == ("event.received", "go")


# --- waits that a handler asks for --------------------------------------------------------------


async def test_a_handler_waits_for_an_event(fm):
    config = {"event": "go", "filter": {"id": 7}, "duration_ms": 50, "reason": "sign here"}
    run = await waiting(fm, doc(step("p", "parked", config=config, out="r")))
    assert run.wait_reason == "sign here"
    assert (await fm.send_event("go", {"id": 8})).woken == ()
    assert (await fm.send_event("go", {"id": 7})).woken == (run.id,)
    assert "r" not in (await fm.get(run.id)).context


async def test_a_time_in_the_past_is_due_at_once(fm):
    fm.apply(doc(step("p", "parked", config={"until": 1000})))
    assert (await fm.run((await fm.create("f")).id)).status == "completed"


async def test_a_backoff_can_be_cut_short_by_hand():
    tally = Tally(failures=1)
    async with FlowHarness({"t": tally}) as fm:
        fm.apply(doc(step("a", "t", retry={"maxAttempts": 1, "backoffMs": 60_000}, out="n")))
        run = await fm.run((await fm.create("f")).id)
        assert (run.status, run.resume_token) == ("waiting", None)
        await fm.resume(run.id, {"hint": 1})
        ended = await fm.run(run.id)
        assert ended.context == {"hint": 1, "resumeData": {"hint": 1}, "n": 2}
        assert tally.attempts == [0, 1]


async def test_skipping_waits_runs_a_week_in_no_time(fm):
    fm.apply(doc(step("d", "delay", config={"hours": 24 * 6}, next="e"), step("e")))
    ended = await fm.run((await fm.create("f")).id, skip_waits=True)
    assert ended.status == "completed"
