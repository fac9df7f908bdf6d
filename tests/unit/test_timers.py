"""The timers over a real engine: whatever becomes due is seen in time, whoever wrote it."""

import asyncio

import pytest

from flowmonkeyd.clock import RandomIds, SystemClock
from flowmonkeyd.dispatcher import Dispatcher
from flowmonkeyd.engine import Engine
from flowmonkeyd.model import NewExecution
from flowmonkeyd.store import Store, idempotency
from flowmonkeyd.testing import FlowHarness
from flowmonkeyd.timers import Timers
from tests.flows import doc, step

# Far below the longest sleep of the timers, far above what a busy machine needs.
PATIENCE_S = 15


class Running:
    """Store, engine, dispatcher and timers, wired as the daemon wires them, without a sandbox."""

    def __init__(self, path):
        clock = SystemClock()
        self.store = Store(path, clock)
        self.engine = Engine(self.store, RandomIds())
        self.dispatcher = Dispatcher(self.engine, {}, "test")
        self.timers = Timers(self.engine, clock)
        self.ended = {}
        self.store.on_commit = self.committed
        self.store.before_commit = self.engine.run_ready

    def committed(self, hints):
        self.dispatcher.committed(hints)
        self.timers.committed(hints)
        for execution_id in hints.ended:
            self.ended.setdefault(execution_id, asyncio.Event()).set()

    async def __aenter__(self):
        await self.store.open()
        self.group = asyncio.TaskGroup()
        await self.group.__aenter__()
        self.group.create_task(self.store.run())
        await self.engine.recover()
        self.loops = [self.group.create_task(part.run()) for part in (self.dispatcher, self.timers)]
        return self

    async def __aexit__(self, *exc):
        for loop in self.loops:
            loop.cancel()
        await asyncio.wait(self.loops)
        await self.store.close()
        await self.group.__aexit__(None, None, None)

    async def end(self, execution_id):
        async with asyncio.timeout(PATIENCE_S):
            await self.ended.setdefault(execution_id, asyncio.Event()).wait()
        return (await self.engine.get(execution_id)).execution


@pytest.fixture
async def running(tmp_path):
    async with Running(tmp_path / "fm.db") as running:
        yield running


def delays(*lengths_ms):
    names = [f"d{number}" for number in range(len(lengths_ms))]
    steps = zip(names, lengths_ms, [*names[1:], None], strict=True)
    return doc(*(step(name, "delay", config={"ms": ms}, next=to) for name, ms, to in steps))


async def test_a_delay_that_follows_a_delay_ends_in_time(running):
    """The second begins in the very transaction that ends the first."""
    await running.engine.apply_flow(delays(1, 1, 1, 1))
    made = await running.engine.submit(NewExecution("f"))
    assert (await running.end(made.record.execution.id)).status == "completed"


async def test_delays_that_share_commits_with_looks_end_in_time(running):
    await running.engine.apply_flow(delays(3, 2, 1, 2, 3))
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(running.engine.submit(NewExecution("f"))) for _ in range(40)]
    for one in made:
        await running.end(one.result().record.execution.id)


async def test_expired_idempotency_keys_all_go():
    """The looks of a quiet daemon are a minute apart: a sweep for each cannot keep up."""
    async with FlowHarness() as fm:
        await fm.engine.apply_flow(delays(1))
        keyed = [
            NewExecution("f", idempotency_key=f"k{n}", idempotency_window_ms=5)
            for n in range(idempotency.SWEEP_MAX + 1)
        ]
        await fm.engine.submit_batch(keyed)
        fm.advance(5)
        assert await fm.engine.fire_due() == fm.clock.now_ms()
        assert await fm.engine.fire_due() > fm.clock.now_ms()
        count = "SELECT count(*) FROM idempotency"
        assert await fm.store.read(lambda conn: conn.execute(count).fetchone()) == (0,)
