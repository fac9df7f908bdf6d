"""What is billed: exactly, once, by one rule; and what quotas refuse."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmonkeyd.billing import Quota, Tier, amount, charge_for, nanos, periods
from flowmonkeyd.errors import LeaseLost, TooMany
from flowmonkeyd.model import Charge, Lane, NewExecution, Outcome, StepError, TaskResult
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.store import billing
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, echo, step

_TIERS = (
    Tier("large", 1024, 2.0, nanos("0.0008")),
    Tier("small", 256, 0.5, nanos("0.0001")),
    Tier("medium", 512, 1.0, nanos("0.0003")),
)
_FLOW = doc(step("a", retry={"maxAttempts": 2}, next="b"), step("b"))
_DAY_MS = 24 * 3600 * 1000
_MEDIUM = Charge("medium", nanos("0.0003"))


@pytest.mark.parametrize(
    ("memory", "cpu", "tier"),
    [
        (16, 0.1, "small"),
        (256, 0.5, "small"),
        (257, 0.5, "medium"),
        (256, 0.51, "medium"),
        (512, 1.0, "medium"),
        (513, 0.1, "large"),
        (64, 1.5, "large"),
        (4096, 8.0, "large"),
    ],
)
def test_the_cheapest_tier_that_covers_what_is_declared(memory, cpu, tier):
    assert charge_for(_TIERS, memory, cpu).tier == tier


def test_a_million_executions_of_tier_medium_are_exactly_300_dollars():
    assert amount(1_000_000 * charge_for(_TIERS, 512, 1).nanos) == "300.000000000"


@pytest.mark.parametrize("text", ["", "x", "-1", "1e-10", "NaN", "inf", "1000000", "0.0000000001"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match="should be"):
        nanos(text)


@given(st.integers(0, 10**30))
def test_amounts_keep_every_digit(value):
    whole, _, part = amount(value).partition(".")
    assert len(part) == 9
    assert int(whole + part) == value


def test_a_period_is_a_utc_day_and_month():
    assert periods(1_709_251_199_999) == ("2024-02-29", "2024-02")
    assert periods(1_709_251_200_000) == ("2024-03-01", "2024-03")


@pytest.fixture
async def fm():
    async with FlowHarness({"echo": echo}) as fm:
        fm.apply(_FLOW)
        yield fm


async def _claim(fm):
    (task,) = await fm.engine.claim(Lane.SANDBOX, 1, "w")
    return task


async def _finish(fm, task, outcome=Outcome.SUCCESS, charge=_MEDIUM):
    error = None if outcome is Outcome.SUCCESS else StepError("NO", "no")
    await fm.engine.finish(task.key, task.lease_id, TaskResult(outcome, error=error, charge=charge))


async def _groups(fm, by="handler", **narrow):
    asked = {"tenant": None, "since_ms": None, "until_ms": None, **narrow}
    rows = await fm.store.read(lambda conn: billing.grouped(conn, by, **asked))
    return {row.key: (row.count, row.nanos) for row in rows}


async def test_each_attempt_that_reached_a_handler_is_a_line_and_no_other(fm):
    run = await fm.create("f")
    await _finish(fm, await _claim(fm), Outcome.FAILURE)
    await _finish(fm, await _claim(fm), Outcome.ERROR, charge=None)  # the sandbox could not be had
    await _finish(fm, await _claim(fm))
    await _finish(fm, await _claim(fm), charge=Charge("small", 100_000))
    history = await fm.history(run.id)
    assert [entry.charge and entry.charge.tier for entry in history] == [
        "medium",
        None,
        "medium",
        "small",
    ]
    assert await _groups(fm, "flow") == {"f": (3, 700_000)}


async def test_a_result_that_comes_twice_or_late_is_billed_once(fm):
    await fm.create("f")
    task = await _claim(fm)
    await _finish(fm, task)
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await _finish(fm, task)
    assert sum(count for count, _ in (await _groups(fm)).values()) == 1


async def test_a_second_line_for_an_attempt_cannot_be_written(fm):
    await fm.create("f")
    await _finish(fm, await _claim(fm))

    def again(tx):
        billing.charge(tx, 1, 1, _MEDIUM)

    with pytest.raises(sqlite3.IntegrityError):
        await fm.store.write(again)


async def test_every_grouping_adds_up_to_the_ledger_over_crashes_and_restarts(fm):
    for number in range(12):
        await fm.create("f", tenant_id=f"t{number % 3}")
        fm.advance(7 * 3600 * 1000)
        task = await _claim(fm)
        if number % 4 == 0:
            await fm.restart()  # the attempt is lost with the engine, and comes again
            task = await _claim(fm)
        await _finish(fm, task, Outcome.FAILURE if number % 5 == 0 else Outcome.SUCCESS)

    def ledger(conn):
        return conn.execute("SELECT count(*), sum(nanos) FROM charges").fetchone()

    whole = tuple(await fm.store.read(ledger))
    assert whole == (12, 12 * 300_000)
    for by in billing.GROUPS:
        groups = (await _groups(fm, by)).values()
        assert (sum(c for c, _ in groups), sum(n for _, n in groups)) == whole
    assert len(await _groups(fm, "day")) == 4
    for tenant, found in (await _groups(fm, "tenant")).items():
        assert await _groups(fm, "tenant", tenant=tenant) == {tenant: found}
    middle = fm.clock.now_ms() - 40 * 3600 * 1000
    before = await _groups(fm, until_ms=middle)
    after = await _groups(fm, since_ms=middle)
    assert sum(c for c, _ in (*before.values(), *after.values())) == 12


# --- quotas -----------------------------------------------------------------------------------


async def _with(quotas, **given):
    fm = FlowHarness({"echo": echo}, quotas=quotas, start_ms=1_709_200_000_000, **given)
    await fm.__aenter__()
    fm.apply(_FLOW)
    return fm


async def test_executions_of_a_day_are_refused_until_the_next(tmp_path):
    quotas = Quotas(Quota(2), {"big": Quota(3), "free": Quota()})
    fm = await _with(quotas)
    try:
        for tenant, most in (("small", 2), ("big", 3)):
            for _ in range(most):
                await fm.create("f", tenant_id=tenant)
            with pytest.raises(TooMany, match=r"its \d of this day .* 2024-03-01T00:00:00Z") as exc:
                await fm.create("f", tenant_id=tenant)
            assert exc.value.code == "QUOTA_EXCEEDED"
        for _ in range(5):
            await fm.create("f", tenant_id="free")
        await fm.restart()
        with pytest.raises(TooMany):
            await fm.create("f", tenant_id="small")
        fm.advance(_DAY_MS)
        await fm.create("f", tenant_id="small")
    finally:
        await fm.__aexit__(None, None, None)


async def test_a_refused_batch_starts_and_counts_nothing():
    fm = await _with(Quotas(Quota(2)))
    try:
        await fm.create("f", tenant_id="another")
        with pytest.raises(TooMany, match="item 2"):
            await fm.engine.submit_batch([NewExecution("f")] * 3)
        await fm.engine.submit_batch([NewExecution("f")] * 2)
    finally:
        await fm.__aexit__(None, None, None)


async def test_the_spend_of_a_month_refuses_new_work_and_lets_old_work_go_on():
    fm = await _with(Quotas(Quota(None, nanos("0.0006"))))
    try:
        for _ in range(3):
            await fm.create("f")
        tasks = [await _claim(fm) for _ in range(2)]
        await _finish(fm, tasks[0])
        await fm.create("f")
        await _finish(fm, tasks[1])
        with pytest.raises(TooMany, match=r"0\.000600000 \$ of this month .* 2024-03-01T00"):
            await fm.create("f")
        await _finish(fm, await _claim(fm))  # what was begun goes on, and costs
        assert (await _groups(fm, "tenant"))["default"] == (3, 900_000)
        fm.advance(_DAY_MS)
        await fm.create("f")
    finally:
        await fm.__aexit__(None, None, None)


async def test_a_quota_that_is_new_counts_what_was_before(tmp_path):
    fm = await _with(Quotas(), path=tmp_path / "fm.db")
    try:
        for _ in range(3):
            await fm.create("f")
        await _finish(fm, await _claim(fm))
        fm.quotas = Quotas(Quota(3))
        await fm.restart()
        with pytest.raises(TooMany):
            await fm.create("f")
        fm.quotas = Quotas(Quota(None, 1))
        await fm.restart()
        with pytest.raises(TooMany):
            await fm.create("f")
        fm.quotas = Quotas(Quota(4))
        await fm.restart()
        await fm.create("f")
    finally:
        await fm.__aexit__(None, None, None)
