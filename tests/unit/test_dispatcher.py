"""The dispatcher over a real engine: what is claimed runs or goes back, and nothing is kept."""

import asyncio

import pytest

from flowmonkeyd.clock import RandomIds, SystemClock
from flowmonkeyd.dispatcher import Dispatcher, Finished
from flowmonkeyd.engine import Engine
from flowmonkeyd.model import Lane, NewExecution, Outcome, TaskResult
from flowmonkeyd.store import Committed, Store, tasks
from tests.flows import doc, step

PATIENCE_S = 15


class Held:
    """An executor in this process: tasks run until `go` is set, and it counts what it is given."""

    slots = 2
    ahead = 0

    def __init__(self, changed):
        self.started, self.killed = [], []
        self.go, self.changed = asyncio.Event(), changed

    async def run(self, task, on_logs):
        self.started.append(task.id)
        self.changed.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.killed.append(task.id)
            raise
        return Finished(TaskResult(Outcome.SUCCESS, output=1))


class SlowAnswers(Engine):
    """The engine, where something may happen between a claim's commit and its answer."""

    async def claim(self, *args, **kwargs):
        claimed = await super().claim(*args, **kwargs)
        if claimed:
            await self.meanwhile(claimed)
        return claimed

    async def meanwhile(self, claimed):
        """Nothing, unless a test says otherwise."""


class Running:
    def __init__(self, path):
        self.store = Store(path, SystemClock())
        self.engine = SlowAnswers(self.store, RandomIds(), local_types=frozenset({"held"}))
        self.changed = asyncio.Event()
        self.executor = Held(self.changed)
        self.dispatcher = Dispatcher(self.engine, {Lane.SANDBOX: self.executor}, "test")
        self.store.on_commit = self.committed
        self.store.before_commit = self.engine.run_ready

    def committed(self, hints):
        self.dispatcher.committed(hints)
        self.changed.set()

    async def __aenter__(self):
        await self.store.open()
        self.group = asyncio.TaskGroup()
        await self.group.__aenter__()
        self.group.create_task(self.store.run())
        await self.engine.recover()
        self.loop = self.group.create_task(self.dispatcher.run())
        await self.engine.apply_flow(doc(step("a", "held")))
        await self.store.write(lambda _tx: None)  # the start's own claim is over
        async with asyncio.timeout(PATIENCE_S):
            while self.engine.capacity.get(Lane.SANDBOX) != self.executor.slots:
                await self.store.write(lambda _tx: None)
        return self

    async def __aexit__(self, *exc):
        self.loop.cancel()
        await asyncio.wait([self.loop])
        await self.store.close()
        await self.group.__aexit__(None, None, None)

    async def submit(self):
        return (await self.engine.submit(NewExecution("f"))).record.key

    async def short_tasks(self):
        """What the dispatcher knows about: a few tasks that took no time."""
        self.executor.go.set()
        for _ in range(3):
            started = len(self.executor.started)
            await self.submit()
            await self.until(lambda started=started: len(self.executor.started) > started)
        async with asyncio.timeout(PATIENCE_S):
            while self.dispatcher.running:  # noqa: ASYNC110  it ends without a word
                await asyncio.sleep(0.001)
        self.executor.go.clear()
        self.executor.started.clear()

    async def until(self, holds):
        """Looks after each commit and each start of a task."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    async def state(self, key):
        row = await self.store.write(lambda tx: tasks.get(tx, key))
        return row and row.state


@pytest.fixture
async def running(tmp_path):
    async with Running(tmp_path / "fm.db") as running:
        yield running


async def test_a_task_claimed_while_the_drain_begins_goes_back_unstarted(running):
    async def drain(claimed):
        await running.dispatcher.drain(grace_s=PATIENCE_S)

    running.store.before_commit = None  # so that the dispatcher has to ask
    running.engine.meanwhile = drain
    key = await running.submit()
    await asyncio.wait_for(running.loop, PATIENCE_S)
    assert running.executor.started == []
    assert await running.state(key) == "queued"


async def test_a_task_killed_before_its_first_moment_is_forgotten(running):
    """Its place in the list of what runs was kept for ever."""
    killed = asyncio.Event()

    def kill(leases):
        running.dispatcher.committed(Committed(dropped=leases))
        killed.set()

    async def drop(claimed):
        leases = {(task.key, task.lease_id) for task in claimed}
        asyncio.get_running_loop().call_soon(kill, leases)

    running.store.before_commit = None
    running.engine.meanwhile = drop
    await running.submit()
    await asyncio.wait_for(killed.wait(), PATIENCE_S)
    await running.dispatcher.drain(grace_s=0)
    assert (running.executor.started, running.dispatcher.running) == ([], 0)


async def test_what_a_commit_leased_for_a_draining_dispatcher_goes_back(running):
    def drain_at_once(hints):
        if hints.claimed.get(Lane.SANDBOX.value):
            running.group.create_task(running.dispatcher.drain(grace_s=0))
        running.committed(hints)

    running.store.on_commit = drain_at_once
    key = await running.submit()
    await asyncio.wait_for(running.loop, PATIENCE_S)
    await running.until(lambda: running.dispatcher.running == 0)
    assert await running.state(key) == "queued"


async def test_a_step_is_leased_in_the_commit_that_made_it_ready(running):
    await running.submit()  # what the start of it all committed is over then
    await running.until(lambda: len(running.executor.started) == 1)
    commits = running.store.commits
    await running.submit()
    await running.until(lambda: len(running.executor.started) == 2)
    assert running.store.commits == commits + 1


async def test_a_task_that_is_dropped_between_commit_and_start_is_not_started(running):
    def drop_at_once(hints):
        running.committed(hints)
        leased = {(t.key, t.lease_id) for t in hints.claimed.get(Lane.SANDBOX.value, ())}
        if leased:
            running.dispatcher.committed(Committed(dropped=leased))

    running.store.on_commit = drop_at_once
    await running.submit()
    running.store.on_commit = running.committed
    assert running.executor.started == []
    await running.submit()
    await running.until(lambda: running.executor.started)  # its room was given back


async def test_a_cancelled_execution_kills_its_task_and_frees_the_slot(running):
    ids = [(await running.engine.submit(NewExecution("f"))).record.execution.id for _ in range(3)]
    await running.until(lambda: len(running.executor.started) == 2)
    await running.engine.cancel(ids[0])
    await running.until(lambda: len(running.executor.started) == 3)
    assert len(running.executor.killed) == 1


async def test_a_task_whose_lease_is_over_is_killed_and_runs_again(running):
    key = await running.submit()
    await running.until(lambda: running.executor.started)

    def expire(tx):
        tx.execute("UPDATE tasks SET due_at_ms = 0 WHERE execution = ?", (key,))

    await running.store.write(expire)
    await running.engine.fire_due()
    await running.until(lambda: len(running.executor.started) == 2)
    first, second = running.executor.started
    assert (running.executor.killed, second) == ([first], first)


async def test_short_tasks_are_leased_ahead_of_the_slots_and_started_in_their_places(running):
    running.executor.ahead = 4
    await running.short_tasks()
    keys = [await running.submit() for _ in range(8)]
    await running.until(lambda: running.dispatcher.expected() == 4)
    assert len(running.executor.started) == running.executor.slots
    states = [await running.state(key) for key in keys]
    assert (states.count("leased"), states.count("queued")) == (6, 2)
    running.executor.go.set()
    await running.until(lambda: len(running.executor.started) == 8)


async def test_what_waits_for_a_slot_too_long_goes_back_into_the_line(running, monkeypatch):
    running.executor.ahead = 4
    await running.short_tasks()
    monkeypatch.setattr("flowmonkeyd.dispatcher.AHEAD_MAX_S", 0.01)
    keys = [await running.submit() for _ in range(8)]
    await running.until(lambda: running.executor.started)
    while [await running.state(key) for key in keys].count("queued") < 6:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert running.dispatcher.expected() == 0
    running.executor.go.set()  # nor are they forgotten there
    await running.until(lambda: len(running.executor.started) == 8)


async def test_long_tasks_are_not_leased_ahead(running, monkeypatch):
    monkeypatch.setattr("flowmonkeyd.dispatcher.SHORT_S", 0)
    running.executor.ahead = 4
    await running.short_tasks()
    keys = [await running.submit() for _ in range(8)]
    await running.until(lambda: len(running.executor.started) == 2)
    assert [await running.state(key) for key in keys].count("queued") == 6


async def test_a_drain_puts_back_what_waits_for_a_slot(running):
    running.executor.ahead = 4
    await running.short_tasks()
    keys = [await running.submit() for _ in range(8)]
    await running.until(lambda: running.dispatcher.expected() == 4)
    await running.dispatcher.drain(grace_s=0)
    assert [await running.state(key) for key in keys] == ["queued"] * 8
    assert len(running.executor.started) == 2


async def test_a_drain_lets_a_task_end_within_its_grace(running):
    key = await running.submit()
    await running.until(lambda: running.executor.started)
    running.executor.go.set()
    await running.dispatcher.drain(grace_s=PATIENCE_S)
    assert (running.executor.killed, await running.state(key)) == ([], None)


async def test_a_drain_puts_back_what_does_not_end(running):
    key = await running.submit()
    await running.until(lambda: running.executor.started)
    await running.dispatcher.drain(grace_s=0)
    assert running.executor.killed == running.executor.started
    assert await running.state(key) == "queued"
    assert running.dispatcher.running == 0
