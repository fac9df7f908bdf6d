"""Gives tasks to those who run them, and their results to the engine.

One loop runs built-in steps inside the engine; one loop a lane keeps the executor's slots full.
Both sleep until a commit says that a task is ready, a slot is free or the daemon drains: nothing
polls. A task that is cancelled, or whose lease ends, is killed; on drain, running tasks get their
grace and then go back into the line. The dispatcher keeps nothing that the tables do not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import FlowMonkeyError, LeaseLost, Unavailable
from flowmonkeyd.model import Lane, Outcome, StepError, Task, TaskResult
from flowmonkeyd.store import Committed

__all__ = ["Dispatcher", "Executor", "Finished", "Log", "OnLogs"]

log = logging.getLogger(__name__)

# After a refusal (a full disk, say) the loops wait this long before they try again.
RETRY_S = 1.0

# (at_ms, stream, level, message, fields)
Log = tuple[int, str, str | None, str, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What an executor made of a task: its result, and the log lines not yet handed over."""

    result: TaskResult
    logs: Sequence[Log] = field(default_factory=tuple)


class OnLogs(Protocol):
    """Takes log lines of a task while it runs."""

    async def __call__(self, lines: Sequence[Log]) -> None: ...


class Executor(Protocol):
    """Runs the tasks of one lane: in the sandbox, in containers."""

    @property
    def slots(self) -> int:
        """How many tasks it runs at a time."""

    async def run(self, task: Task, on_logs: OnLogs) -> Finished | None:
        """Run a task to its end. Cancelling kills whatever runs; it never raises for a handler.
        None: there is nothing to hand over, for the task was given up with a verb of the engine's
        (a job that has paused)."""


_Lease = tuple[int, int]  # task key, lease


class _Lane:
    """One executor with what is known of its line."""

    def __init__(self, lane: Lane, executor: Executor) -> None:
        self.lane = lane
        self.executor = executor
        self.wake = asyncio.Event()
        self.inbox: deque[Task] = deque()  # leased in a commit, not started yet
        self.busy: set[_Lease] = set()  # with the executor now
        self.may_have_more = True


class Dispatcher:
    """`run()` works until `drain()`; `committed()` is told of every commit.

    Tasks are leased in the commits that make them ready, as long as the lane has room (the
    engine's `capacity`, kept here: room and running tasks make up the executor's slots). What a
    commit could not lease for want of room is looked for once there is some.
    """

    def __init__(self, engine: Engine, executors: Mapping[Lane, Executor], worker: str) -> None:
        self._engine = engine
        self._executors = executors
        self._worker = engine.worker = worker
        self._lanes = {lane.value: _Lane(lane, executor) for lane, executor in executors.items()}
        self._builtin = asyncio.Event()
        self._running: dict[_Lease, asyncio.Task[None]] = {}
        self._draining = False

    @property
    def running(self) -> int:
        """How many tasks run now."""
        return len(self._running)

    def committed(self, hints: Committed) -> None:
        """A commit happened: start what it leased, look for what it made ready, kill what is no
        longer wanted."""
        for name, tasks in hints.claimed.items():
            lane = self._lanes[name]
            self._engine.capacity[lane.lane] -= len(tasks)
            lane.inbox.extend(tasks)
            lane.may_have_more = self._engine.capacity[lane.lane] <= 0
            if tasks:
                lane.wake.set()
        for name in hints.ready & self._lanes.keys():
            self._look(self._lanes[name])
        if Lane.BUILTIN.value in hints.ready:
            self._builtin.set()
        for dropped in hints.dropped:
            if (running := self._running.get(dropped)) is not None:
                running.cancel()
            else:
                self._drop_claimed(dropped)

    async def run(self) -> None:
        """Take and run tasks until drained."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._builtins(), name="builtins")
            for lane in self._lanes.values():
                self._engine.capacity[lane.lane] = lane.executor.slots
                tasks.create_task(self._serve(lane), name=f"lane-{lane.lane.value}")

    async def drain(self, grace_s: float) -> None:
        """Take no more; give what runs `grace_s` to end, then kill it and put it back in line."""
        self._draining = True
        for lane in self._lanes.values():
            self._engine.capacity[lane.lane] = 0
            lane.wake.set()
        self._builtin.set()
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=grace_s)
        left = dict(self._running)
        for task in left.values():
            task.cancel()
        if left:
            await asyncio.wait(left.values())
        await self._put_back(left)
        for lane in self._lanes.values():
            await self._put_back(_lease(task) for task in lane.inbox)

    async def _put_back(self, leases: Iterable[tuple[int, int]]) -> None:
        for key, lease_id in leases:
            try:
                await self._engine.release(key, lease_id)
            except LeaseLost:
                pass  # it ended, or was cancelled, at the last moment
            except Unavailable:
                log.warning("cannot put a task back now; the next start will", extra={"task": key})

    # --- built-in steps ------------------------------------------------------------------------

    async def _builtins(self) -> None:
        wake = self._builtin
        while not self._draining:
            await wake.wait()
            wake.clear()
            while not self._draining:
                try:
                    if not await self._engine.run_builtins():
                        break
                except Unavailable as exc:
                    await self._pause(exc)

    # --- a lane --------------------------------------------------------------------------------

    async def _serve(self, lane: _Lane) -> None:
        async with asyncio.TaskGroup() as tasks:
            while not self._draining:
                await lane.wake.wait()
                lane.wake.clear()
                while lane.inbox and not self._draining:
                    self._start(tasks, lane, lane.inbox.popleft())
                while lane.may_have_more and not self._draining:
                    room = self._engine.capacity[lane.lane]
                    if room <= 0:
                        break
                    # Meanwhile no commit leases for us: the room is spoken for.
                    self._engine.capacity[lane.lane] = 0
                    lane.may_have_more = False  # until this claim, or a commit, says otherwise
                    try:
                        claimed = await self._claim(lane.lane, room)
                    except Unavailable as exc:
                        self._give_room(lane, room)
                        lane.may_have_more = True
                        await self._pause(exc)
                        continue
                    lane.may_have_more |= len(claimed) == room
                    self._give_room(lane, room - len(claimed))
                    for task in claimed:
                        self._start(tasks, lane, task)

    def _start(self, tasks: asyncio.TaskGroup, lane: _Lane, task: Task) -> None:
        lease = _lease(task)
        running = tasks.create_task(self._one(task, lane), name=task.id)
        self._running[lease] = running
        lane.busy.add(lease)
        # Not at the end of `_one`: a task cancelled before its first step never gets there.
        running.add_done_callback(partial(self._ended, lane, lease))

    def _ended(self, lane: _Lane, lease: _Lease, _: asyncio.Task[None]) -> None:
        self._running.pop(lease, None)
        if lease in lane.busy:  # it was cancelled while it ran
            lane.busy.discard(lease)
            self._give_room(lane, 1)
            self._look(lane)

    def _drop_claimed(self, lease: _Lease) -> None:
        """A task that was leased to us and is cancelled before it started."""
        for lane in self._lanes.values():
            for task in [task for task in lane.inbox if _lease(task) == lease]:
                lane.inbox.remove(task)
                self._give_room(lane, 1)
                self._look(lane)

    def _give_room(self, lane: _Lane, count: int) -> None:
        if not self._draining:
            self._engine.capacity[lane.lane] += count

    def _look(self, lane: _Lane) -> None:
        """There may be tasks in line that no commit will lease for us."""
        lane.may_have_more = True
        lane.wake.set()

    async def _claim(self, lane: Lane, room: int) -> list[Task]:
        claimed = await self._engine.claim(lane, room, self._worker)
        if self._draining:  # since the claim was asked for: nothing is started any more
            await self._put_back(map(_lease, claimed))
            return []
        return claimed

    async def _one(self, task: Task, lane: _Lane) -> None:
        async def on_logs(lines: Sequence[Log]) -> None:
            try:
                await self._engine.append_logs(task.key, task.lease_id, lines)
            except FlowMonkeyError as exc:
                log.warning("cannot keep log lines: %s", exc, extra={"task": task.id})

        finished: Finished | None
        try:
            finished = await lane.executor.run(task, on_logs)
        except Exception:
            log.exception("the executor failed", extra={"task": task.id})
            error = StepError("INTERNAL", "the executor failed; the daemon's log says why")
            finished = Finished(TaskResult(Outcome.ERROR, error=error))
        # The commit that applies the result leases the next task for the room this leaves.
        lane.busy.discard(_lease(task))
        self._give_room(lane, 1)
        if finished is None:
            self._look(lane)  # no commit follows that would
            return
        await self._hand_over(task, lane, finished)

    async def _hand_over(self, task: Task, lane: _Lane, finished: Finished) -> None:
        while True:
            try:
                await self._engine.finish(task.key, task.lease_id, finished.result, finished.logs)
                return
            except LeaseLost:
                log.info("a late result changed nothing", extra={"task": task.id})
                self._look(lane)
                return
            except Unavailable as exc:
                if self._draining:
                    return  # the next start runs the attempt again
                self._look(lane)
                await self._pause(exc)
            except Exception:
                if finished.result.fatal:
                    raise  # not even a failure can be saved: a bug of the engine's own
                log.exception("the engine cannot apply a result", extra={"task": task.id})
                error = StepError("INTERNAL", "the result cannot be applied; see the daemon's log")
                finished = Finished(TaskResult(Outcome.ERROR, error=error, fatal=True))

    async def _pause(self, exc: Unavailable) -> None:
        log.warning("the engine refuses for now: %s", exc)
        await asyncio.sleep(RETRY_S)


def _lease(task: Task) -> _Lease:
    return (task.key, task.lease_id)
