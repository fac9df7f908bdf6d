"""Gives tasks to those who run them, and their results to the engine.

One loop runs built-in steps inside the engine; one loop a lane keeps the executor's slots full.
Both sleep until a commit says that a task is ready, a slot is free or the daemon drains: nothing
polls. Short tasks are leased a few ahead of the slots. A task that is cancelled, or whose lease
ends, is killed; on drain, running tasks get their grace and then go back into the line. The
dispatcher keeps nothing that the tables do not know.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
# While tasks take less than this on the average, some are leased before a slot is free and wait
# for one here: no slot waits for a commit, and results can share one.
SHORT_S = 0.1
# Yet they do not wait for long, since their lease runs already.
AHEAD_MAX_S = 5.0

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

    @property
    def ahead(self) -> int:
        """How many more may be leased to wait for a slot, while tasks are short."""

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
        self.inbox: deque[Task] = deque()  # leased, not started yet
        self.busy: set[_Lease] = set()  # with the executor now
        self.claiming = False  # its room is spoken for
        self.may_have_more = True
        self.took_s = math.inf  # by a task, on the average of the last ones
        self.tasks: asyncio.TaskGroup | None = None

    @property
    def short(self) -> bool:
        return self.took_s < SHORT_S

    @property
    def room(self) -> int:
        """How many more tasks may be leased."""
        places = self.executor.slots + (self.executor.ahead if self.short else 0)
        return max(0, places - len(self.busy) - len(self.inbox))

    def took(self, seconds: float) -> None:
        known = seconds if self.took_s == math.inf else self.took_s
        self.took_s = known + (seconds - known) / 5


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
            lane.inbox.extend(tasks)
            lane.may_have_more = lane.room == 0
            self._say_room(lane)
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

    def expected(self) -> int:
        """How many results may be waited for: what waits for a slot keeps all of them busy."""
        return sum(len(lane.inbox) for lane in self._lanes.values())

    async def run(self) -> None:
        """Take and run tasks until drained."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._builtins(), name="builtins")
            for lane in self._lanes.values():
                self._say_room(lane)
                tasks.create_task(self._serve(lane), name=f"lane-{lane.lane.value}")

    async def drain(self, grace_s: float) -> None:
        """Take no more; give what runs `grace_s` to end, then kill it and put it back in line."""
        self._draining = True
        for lane in self._lanes.values():
            self._say_room(lane)
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
        async with asyncio.TaskGroup() as lane.tasks:
            while not self._draining:
                await self._woken(lane)
                self._start_waiting(lane)
                while lane.may_have_more and lane.room and not self._draining:
                    try:
                        claimed = await self._claim(lane)
                    except Unavailable as exc:
                        lane.may_have_more = True
                        await self._pause(exc)
                        continue
                    lane.inbox.extend(claimed)
                    self._say_room(lane)
                    self._start_waiting(lane)

    async def _woken(self, lane: _Lane) -> None:
        """Until there may be something to do; tasks that wait for a slot too long go back."""
        try:
            async with asyncio.timeout(AHEAD_MAX_S if lane.inbox else None):
                await lane.wake.wait()
        except TimeoutError:
            lane.took_s = math.inf
        lane.wake.clear()
        if lane.inbox and not lane.short and len(lane.busy) >= lane.executor.slots:
            late = [_lease(task) for task in lane.inbox]
            lane.inbox.clear()
            await self._put_back(late)
            lane.may_have_more = True
            self._say_room(lane)

    async def _claim(self, lane: _Lane) -> list[Task]:
        room = lane.room
        lane.claiming = True  # meanwhile no commit leases for us
        self._say_room(lane)
        lane.may_have_more = False  # until this claim, or a commit, says otherwise
        try:
            claimed = await self._engine.claim(lane.lane, room, self._worker)
        finally:
            lane.claiming = False
            self._say_room(lane)
        if self._draining:  # since the claim was asked for: nothing is started any more
            await self._put_back(map(_lease, claimed))
            return []
        lane.may_have_more |= len(claimed) == room
        return claimed

    def _start_waiting(self, lane: _Lane) -> None:
        while lane.inbox and len(lane.busy) < lane.executor.slots and not self._draining:
            self._start(lane, lane.inbox.popleft())

    def _start(self, lane: _Lane, task: Task) -> None:
        assert lane.tasks is not None
        lease = _lease(task)
        running = lane.tasks.create_task(self._one(task, lane), name=task.id)
        self._running[lease] = running
        lane.busy.add(lease)
        # Not at the end of `_one`: a task cancelled before its first step never gets there.
        running.add_done_callback(partial(self._ended, lane, lease))

    def _ended(self, lane: _Lane, lease: _Lease, _: asyncio.Task[None]) -> None:
        self._running.pop(lease, None)
        if lease in lane.busy:  # it was cancelled while it ran
            lane.busy.discard(lease)
            self._look(lane)

    def _drop_claimed(self, lease: _Lease) -> None:
        """A task that was leased to us and is cancelled before it started."""
        for lane in self._lanes.values():
            for task in [task for task in lane.inbox if _lease(task) == lease]:
                lane.inbox.remove(task)
                self._look(lane)

    def _say_room(self, lane: _Lane) -> None:
        closed = self._draining or lane.claiming
        self._engine.capacity[lane.lane] = 0 if closed else lane.room

    def _look(self, lane: _Lane) -> None:
        """There is room, or there may be tasks in line that no commit will lease for us."""
        self._say_room(lane)
        lane.may_have_more = True
        lane.wake.set()

    async def _one(self, task: Task, lane: _Lane) -> None:
        async def on_logs(lines: Sequence[Log]) -> None:
            try:
                await self._engine.append_logs(task.key, task.lease_id, lines)
            except FlowMonkeyError as exc:
                log.warning("cannot keep log lines: %s", exc, extra={"task": task.id})

        finished: Finished | None
        began = asyncio.get_running_loop().time()
        try:
            finished = await lane.executor.run(task, on_logs)
        except Exception:
            log.exception("the executor failed", extra={"task": task.id})
            error = StepError("INTERNAL", "the executor failed; the daemon's log says why")
            finished = Finished(TaskResult(Outcome.ERROR, error=error))
        lane.took(asyncio.get_running_loop().time() - began)
        lane.busy.discard(_lease(task))
        # The commit that applies the result leases the next task for the room this leaves.
        self._start_waiting(lane)
        self._say_room(lane)
        if lane.inbox and not lane.short:
            lane.wake.set()
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
