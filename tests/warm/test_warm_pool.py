"""What the warm pool promises, with processes that are no containers: starting, dying, ending.

The containers themselves are in tests/jobs; here a start is a real child process, so that a death
is a death.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from flowmonkeyd.poolsize import Window
from flowmonkeyd.warm import FAILURES_MAX, Floor, Kind, WarmPool

KIND = Kind("runtime", "sha256:1", "python", "light", False)
OTHER = Kind("other", "sha256:2", "python", "light", False)


class Sleeper:
    """A real process that waits to be ended."""

    def __init__(self, process: asyncio.subprocess.Process, group: asyncio.TaskGroup) -> None:
        self.process = process
        self.on_end: Callable[[], None] | None = None
        self.is_killed = False
        group.create_task(self._wait())

    async def _wait(self) -> None:
        await self.process.wait()
        if self.on_end is not None:
            self.on_end()

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        self.is_killed = True
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Place:
    """A pool that runs, and what it started."""

    def __init__(self, group: asyncio.TaskGroup, most: int = 4, **more) -> None:
        self.group = group
        self.started: list[Sleeper] = []
        self.refuse = 0
        settings = {"budget_bytes": 2**30, "idle_s": 60.0, "at_once": 2} | more
        self.pool = WarmPool(self.start, most, **settings)
        self.task = group.create_task(self.pool.run())

    async def start(self, kind: Kind) -> Sleeper:
        if self.refuse:
            self.refuse -= 1
            raise OSError("no container can be started")
        process = await asyncio.create_subprocess_exec("sleep", "1000")
        self.started.append(Sleeper(process, self.group))
        return self.started[-1]

    def row(self, kind: Kind = KIND) -> dict:
        return next(one for one in self.pool.statistics() if one["name"] == kind.name)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110  the pool tells nobody
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def place(**more):
    async with asyncio.TaskGroup() as group:
        made = Place(group, **more)
        try:
            yield made
        finally:
            made.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await made.task
            left = [
                one
                for one in made.started
                if not (one.is_killed or one in taken or not one.is_alive)
            ]
            for one in made.started:
                await one.kill()
            taken.clear()
            assert not left


taken: list[Sleeper] = []


def take(at: Place, kind: Kind = KIND) -> Sleeper | None:
    found = at.pool.take(kind)
    if found is not None:
        taken.append(found)
    return found


async def test_a_declared_floor_is_kept_and_a_taken_one_replaced():
    async with place() as at:
        at.pool.declare(KIND, Floor(2))
        await at.until(lambda: at.row()["size"] == 2)
        first = take(at)
        assert first is at.started[0]
        await at.until(lambda: at.row()["size"] == 2)
        assert (at.row()["hits"], at.row()["misses"]) == (1, 0)


async def test_a_dead_one_is_never_handed_out():
    async with place() as at:
        at.pool.declare(KIND, Floor(1))
        await at.until(lambda: at.row()["size"] == 1)
        at.started[0].process.kill()
        await at.started[0].process.wait()
        found = take(at)
        assert found is not at.started[0]
        await at.until(lambda: at.row()["size"] >= 1)
        assert at.pool.take(KIND) in at.started[1:]
        taken.extend(one for one in at.started[1:] if one.is_alive and one not in taken)


async def test_demand_alone_fills_a_shelf_and_a_miss_is_counted():
    async with place() as at:
        assert take(at) is None
        await at.until(lambda: at.row()["size"] == 1)
        assert (at.row()["hits"], at.row()["misses"]) == (0, 1)
        assert take(at) is at.started[0]


async def test_what_nobody_asks_for_goes():
    async with place(idle_s=0.05) as at:
        take(at)
        await at.until(lambda: at.row()["size"] == 1)
        await at.until(lambda: at.row()["size"] == 0)
        assert at.row()["target"] == 0


async def test_what_was_promised_at_publish_goes_when_nobody_comes():
    async with place(idle_s=0.2) as at:
        at.pool.declare(KIND, Floor(), promised=1)
        await at.until(lambda: at.row()["size"] == 1)
        await at.until(lambda: at.row()["size"] == 0)


async def test_failing_starts_rest_after_three_and_say_why(caplog):
    async with place() as at:
        at.refuse = 100
        at.pool.declare(KIND, Floor(1))
        await at.until(lambda: at.row()["failures"] >= FAILURES_MAX)
        tried = 100 - at.refuse
        assert at.row()["problem"] == "no container can be started"
        at.pool.declare(OTHER, Floor(0))  # a look that could start something
        await asyncio.sleep(0.05)
        assert 100 - at.refuse == tried
        assert at.pool.take(KIND) is None


async def test_memory_that_is_needed_is_given_back_by_who_is_asked_least():
    async with place() as at:
        at.pool.declare(OTHER, Floor(1))
        take(at)
        await at.until(lambda: at.row()["size"] == 1 and at.row(OTHER)["size"] == 1)
        assert await at.pool.relieve()
        assert (at.row()["size"], at.row(OTHER)["size"]) == (1, 0)
        assert await at.pool.relieve()
        assert not await at.pool.relieve()


async def test_the_budget_bounds_all_shelves_together():
    async with place(budget_bytes=3 * 16 * 1024 * 1024) as at:
        at.pool.declare(KIND, Floor(2))
        at.pool.declare(OTHER, Floor(4))
        await at.until(lambda: at.row()["size"] + at.row(OTHER)["size"] == 3)
        await asyncio.sleep(0.05)
        assert len(at.started) == 3


async def test_a_withdrawn_kind_is_ended():
    async with place() as at:
        at.pool.declare(KIND, Floor(2))
        await at.until(lambda: at.row()["size"] == 2)
        await at.pool.withdraw([KIND])
        assert at.pool.kinds() == []
        assert not any(one.is_alive for one in at.started)


async def test_a_window_that_is_open_is_a_floor():
    now = [datetime(2026, 11, 30, 7, 0, tzinfo=UTC)]
    async with place(now=lambda: now[0]) as at:
        at.pool.declare(KIND, Floor(0, [Window("0 8 * * 1-5", 60, 2)]))
        assert at.row()["target"] == 0
        now[0] = datetime(2026, 11, 30, 8, 30, tzinfo=UTC)
        at.pool.declare(KIND, Floor(0, [Window("0 8 * * 1-5", 60, 2)]))
        await at.until(lambda: at.row()["size"] == 2)


def test_a_histogram_names_its_classes():
    from flowmonkeyd.warm import Histogram

    one = Histogram()
    for took_ms in (0.3, 0.9, 18, 9000):
        one.add(took_ms)
    assert one.shown() == {"<=1": 2, "<=20": 1, ">5000": 1}


@pytest.fixture(autouse=True)
def nothing_taken_before():
    assert not taken
