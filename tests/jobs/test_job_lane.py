"""The dispatcher with jobs: a lane of its own, and room that a paused job gives back."""

import asyncio

import pytest

from flowmonkeyd.clock import RandomIds, SystemClock
from flowmonkeyd.dispatcher import Dispatcher, Finished
from flowmonkeyd.engine import Engine
from flowmonkeyd.model import JobEnd, Lane, NewExecution, Outcome, TaskResult, Wait, WaitKind
from flowmonkeyd.store import Store, executions
from tests.flows import doc, step
from tests.jobs.instances import Machine, publish

PATIENCE_S = 15


class Container:
    """An executor with room for one: each job pauses at first and then completes."""

    slots = 1
    ahead = 0

    def __init__(self, fm):
        self.machine = Machine(fm)
        self.engine = fm.engine
        self.ran = []

    async def run(self, task, on_logs):
        instance = await self.machine.instance(task)
        await instance.begin()
        self.ran.append((task.execution_id, instance.job.attempt))
        if instance.job.attempt == 1:
            wait = Wait(WaitKind.PAUSE, None, "upload", "uploaded")
            await self.engine.pause_job(instance.fence, 1, wait, None, self.machine.ns)
            return None
        end = JobEnd(instance.job.key, instance.name, 1, self.machine.ns)
        return Finished(TaskResult(Outcome.SUCCESS, output=1, job=end))


class Running:
    def __init__(self, path):
        self.clock = SystemClock()
        self.store = Store(path, self.clock)
        self.engine = Engine(self.store, RandomIds())
        self.executor = Container(self)
        self.dispatcher = Dispatcher(self.engine, {Lane.CONTAINER: self.executor}, "test")
        self.changed = asyncio.Event()
        self.dropped = set()
        self.store.on_commit = self.committed

    def committed(self, hints):
        self.dispatcher.committed(hints)
        self.dropped |= hints.dropped
        self.changed.set()

    async def until(self, statuses):
        """Until this many executions have each of these statuses."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.store.read(executions.counts) != statuses:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def running(tmp_path):
    it = Running(tmp_path / "fm.db")
    await it.store.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(it.store.run())
        await it.engine.recover()
        loop = group.create_task(it.dispatcher.run())
        await publish(it)
        await it.engine.apply_flow(doc(step("s", "acme/film")))
        yield it
        loop.cancel()
        await asyncio.wait([loop])
        await it.store.close()


@pytest.mark.parametrize("early", [True, False], ids=["leased in the commit", "asked for"])
async def test_a_paused_job_gives_its_room_to_the_next(running, early):
    running.store.before_commit = running.engine.run_ready if early else None
    await running.engine.submit_batch([NewExecution("f", tenant_id="t") for _ in range(3)])
    await running.until({"waiting": 3})
    assert running.dropped == set()  # nobody was told to kill what had paused
    await running.engine.send_event("uploaded", None, "t")
    await running.until({"completed": 3})
    assert sorted(attempt for _, attempt in running.executor.ran) == [1, 1, 1, 2, 2, 2]
    assert running.dispatcher.running == 0
