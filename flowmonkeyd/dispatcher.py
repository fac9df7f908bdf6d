"""Gives tasks to those who run them, and their results to the engine.

One loop runs built-in steps inside the engine; one loop a lane keeps the executor's slots full.
Both sleep until a commit says that a task is ready, a slot is free or the daemon drains: nothing
polls. A task that is cancelled, or whose lease ends, is killed; on drain, running tasks get their
grace and then go back into the line. The dispatcher keeps nothing that the tables do not know.
"""

from __future__ import annotations

import asyncio
import logging
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
    """Runs one kind of task. Two exist: the sandbox, and in-process handlers in the harness."""

    @property
    def slots(self) -> int:
        """How many tasks it runs at a time."""

    async def run(self, task: Task, on_logs: OnLogs) -> Finished:
        """Run a task to its end. Cancelling kills whatever runs; it never raises for a handler."""


class Dispatcher:
    """`run()` works until `drain()`; `committed()` is told of every commit."""

    def __init__(self, engine: Engine, executors: Mapping[Lane, Executor], worker: str) -> None:
        self._engine = engine
        self._executors = executors
        self._worker = worker
        self._wake = {lane.value: asyncio.Event() for lane in (*executors, Lane.BUILTIN)}
        self._running: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._draining = False

    @property
    def running(self) -> int:
        """How many tasks run now."""
        return len(self._running)

    def committed(self, hints: Committed) -> None:
        """A commit happened: wake the lanes with work, kill what is no longer wanted."""
        for lane in hints.ready:
            if lane in self._wake:
                self._wake[lane].set()
        for dropped in hints.dropped:
            running = self._running.get(dropped)
            if running is not None:
                running.cancel()

    async def run(self) -> None:
        """Take and run tasks until drained."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._builtins(), name="builtins")
            for lane, executor in self._executors.items():
                tasks.create_task(self._lane(lane, executor), name=f"lane-{lane.value}")

    async def drain(self, grace_s: float) -> None:
        """Take no more; give what runs `grace_s` to end, then kill it and put it back in line."""
        self._draining = True
        for wake in self._wake.values():
            wake.set()
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=grace_s)
        left = dict(self._running)
        for task in left.values():
            task.cancel()
        if left:
            await asyncio.wait(left.values())
        await self._put_back(left)

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
        wake = self._wake[Lane.BUILTIN.value]
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

    async def _lane(self, lane: Lane, executor: Executor) -> None:
        wake, busy = self._wake[lane.value], 0

        # Not at the end of `_one`: a task cancelled before its first step never gets there.
        def ended(lease: tuple[int, int], _: asyncio.Task[None]) -> None:
            nonlocal busy
            busy -= 1
            self._running.pop(lease, None)
            wake.set()

        async with asyncio.TaskGroup() as tasks:
            while not self._draining:
                await wake.wait()
                wake.clear()
                while not self._draining and (free := executor.slots - busy) > 0:
                    try:
                        claimed = await self._claim(lane, free)
                    except Unavailable as exc:
                        await self._pause(exc)
                        continue
                    for task in claimed:
                        lease = (task.key, task.lease_id)
                        running = tasks.create_task(self._one(task, executor), name=task.id)
                        self._running[lease] = running
                        busy += 1
                        running.add_done_callback(partial(ended, lease))
                    if len(claimed) < free:
                        break

    async def _claim(self, lane: Lane, free: int) -> list[Task]:
        claimed = await self._engine.claim(lane, free, self._worker)
        if self._draining:  # since the claim was asked for: nothing is started any more
            await self._put_back((task.key, task.lease_id) for task in claimed)
            return []
        return claimed

    async def _one(self, task: Task, executor: Executor) -> None:
        async def on_logs(lines: Sequence[Log]) -> None:
            try:
                await self._engine.append_logs(task.key, task.lease_id, lines)
            except FlowMonkeyError as exc:
                log.warning("cannot keep log lines: %s", exc, extra={"task": task.id})

        try:
            finished = await executor.run(task, on_logs)
        except Exception:
            log.exception("the executor failed", extra={"task": task.id})
            error = StepError("INTERNAL", "the executor failed; the daemon's log says why")
            finished = Finished(TaskResult(Outcome.ERROR, error=error))
        await self._hand_over(task, finished)

    async def _hand_over(self, task: Task, finished: Finished) -> None:
        while True:
            try:
                await self._engine.finish(task.key, task.lease_id, finished.result, finished.logs)
                return
            except LeaseLost:
                log.info("a late result changed nothing", extra={"task": task.id})
                return
            except Unavailable as exc:
                if self._draining:
                    return  # the next start runs the attempt again
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
