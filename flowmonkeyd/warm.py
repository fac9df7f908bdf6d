"""The warm pool: containers that run and wait for a job, by what they are.

A shelf holds containers of one image, size and network class, each with an agent that answers, and
is refilled in the background to the size that demand, declared floors and the memory budget give
(`poolsize`). Taking one costs no call to Podman; what has died has left its shelf by then. Starts
that fail are tried again with backoff, and after three in a row the shelf rests. The tables know
nothing of all this: a pool that is lost is made again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from flowmonkeyd.poolsize import Demand, Window, floor_at

__all__ = ["Floor", "Histogram", "Kind", "Starter", "Waiting", "WarmPool"]

log = logging.getLogger(__name__)

FAILURES_MAX = 3
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
# Cron windows are minutes long: looking twice a minute is enough.
WINDOW_EVERY_S = 30.0
# Of an idle agent with its conmon and its share of kernel memory, measured: 6 to 16 MiB.
IDLE_BYTES = 16 * 1024 * 1024
# Upper ends of the classes of a histogram of starts, in milliseconds.
_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the containers of a shelf have in common. With `package`, its handler is imported
    already (a folder in the container and an entrypoint); without, they are generic."""

    name: str
    image_id: str
    runtime: str  # python or node
    resources: str
    network: bool
    package: tuple[str, str] | None = None


class Waiting(Protocol):
    """A container with its agent, waiting. `on_end` is called once, when it has ended."""

    on_end: Callable[[], None] | None

    @property
    def is_alive(self) -> bool: ...

    async def kill(self) -> None: ...


class Starter(Protocol):
    """Starts a container of a kind and comes back when its agent has answered."""

    async def __call__(self, kind: Kind) -> Waiting: ...


def _local_now() -> datetime:
    """An operator's windows are in the machine's own time zone."""
    return datetime.now().astimezone()


@dataclass(frozen=True, slots=True)
class Floor:
    """What the operator has declared for a kind."""

    least: int = 0
    windows: Sequence[Window] = ()


class Histogram:
    """Durations by class, for people: {"<=20": 3, …, ">5000": 1}."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_MS) + 1)

    def add(self, took_ms: float) -> None:
        """One more."""
        place = next((n for n, most in enumerate(_BOUNDS_MS) if took_ms <= most), len(_BOUNDS_MS))
        self._counts[place] += 1

    def shown(self) -> dict[str, int]:
        """The classes that are not empty."""
        names = [*(f"<={most}" for most in _BOUNDS_MS), f">{_BOUNDS_MS[-1]}"]
        return {name: n for name, n in zip(names, self._counts, strict=True) if n}


@dataclass(slots=True)
class _Shelf:
    kind: Kind
    floor: Floor
    demand: Demand = field(default_factory=Demand)
    waiting: list[Waiting] = field(default_factory=list)
    starting: int = 0
    # Asked for without demand, at publish, and until when.
    promised: int = 0
    promised_until_s: float = 0.0
    hits: int = 0
    misses: int = 0
    failures: int = 0  # in a row
    again_at_s: float = 0.0
    why: str | None = None


class WarmPool:
    """`run()` keeps the shelves filled; `take` is immediate. Times are of the running loop."""

    def __init__(
        self,
        start: Starter,
        most: int,
        budget_bytes: int,
        idle_s: float,
        at_once: int,
        now: Callable[[], datetime] = _local_now,
    ) -> None:
        """`most` for each shelf; `budget_bytes` of all that wait; `at_once` starts at a time."""
        self._start = start
        self._most = most
        self._room = budget_bytes // IDLE_BYTES
        self._idle_s = idle_s
        self._at_once = at_once
        self._now = now
        self._shelves: dict[Kind, _Shelf] = {}
        self._wake = asyncio.Event()
        self._starting = 0
        self._closed = False
        self.warm, self.cold = Histogram(), Histogram()

    def declare(self, kind: Kind, floor: Floor, promised: int = 0) -> None:
        """The kind exists; `promised` are started now although nobody has asked yet."""
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = _Shelf(kind, floor)
        shelf.floor = floor
        if promised:
            shelf.promised = promised
            shelf.promised_until_s = self._time() + self._idle_s
        self._wake.set()

    async def withdraw(self, kinds: Iterable[Kind]) -> None:
        """These kinds are no more: a handler was yanked, an image removed."""
        shelves = [self._shelves.pop(kind) for kind in list(kinds) if kind in self._shelves]
        for one in itertools.chain.from_iterable(shelf.waiting for shelf in shelves):
            one.on_end = None
            await one.kill()

    def kinds(self) -> list[Kind]:
        """All that were declared or asked for."""
        return list(self._shelves)

    def take(self, kind: Kind) -> Waiting | None:
        """The one that has waited longest, now the caller's; None: there is none."""
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = _Shelf(kind, Floor())
        shelf.demand.arrived(self._time())
        self._wake.set()
        while shelf.waiting:
            found = shelf.waiting.pop(0)
            found.on_end = None
            if found.is_alive:
                shelf.hits += 1
                shelf.promised = max(0, shelf.promised - 1)
                return found
        shelf.misses += 1
        return None

    async def relieve(self) -> bool:
        """Memory is short: end one that waits, of the shelf that is asked least. False: none."""
        shelves = [shelf for shelf in self._shelves.values() if shelf.waiting]
        if not shelves:
            return False
        now_s = self._time()
        shelf = max(shelves, key=lambda one: one.demand.idle_s(now_s))
        shelf.promised = 0
        # Not at once again: whoever needs the memory comes first.
        shelf.again_at_s = max(shelf.again_at_s, now_s + BACKOFF_FIRST_S)
        await self._drop(shelf.waiting.pop(0))
        return True

    async def run(self) -> None:
        """Fill and trim, until cancelled; then nothing waits any more."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._wake.clear()
                    await self._trim()
                    again_s = self._fill(group)
                    try:
                        async with asyncio.timeout(again_s):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
        finally:
            self._closed = True
            for shelf in self._shelves.values():
                while shelf.waiting:
                    await self._drop(shelf.waiting.pop())

    def statistics(self) -> list[dict[str, Any]]:
        """A row for each shelf, as `flowctl pool` shows it."""
        now_s = self._time()
        return [
            {
                "name": shelf.kind.name,
                "resources": shelf.kind.resources,
                "network": shelf.kind.network,
                "isGeneric": shelf.kind.package is None,
                "size": len(shelf.waiting),
                "starting": shelf.starting,
                "target": self._target(shelf, now_s),
                "hits": shelf.hits,
                "misses": shelf.misses,
                "failures": shelf.failures,
                "problem": shelf.why,
            }
            for shelf in self._shelves.values()
        ]

    def starts(self) -> Mapping[str, dict[str, int]]:
        """Histograms of how long a job waited for its container, in ms."""
        return {"warm": self.warm.shown(), "cold": self.cold.shown()}

    # --- inside ----------------------------------------------------------------------------------

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    def _target(self, shelf: _Shelf, now_s: float) -> int:
        least = floor_at(shelf.floor.least, shelf.floor.windows, self._now())
        target = shelf.demand.target(now_s, least, self._most, self._idle_s)
        promised = shelf.promised if now_s < shelf.promised_until_s else 0
        return min(self._most, max(target, promised))

    def _fill(self, group: asyncio.TaskGroup) -> float:
        """Start what is missing, what is asked most first; how long until the next look."""
        now_s = self._time()
        again_s = min(WINDOW_EVERY_S, self._idle_s)
        shelves = sorted(self._shelves.values(), key=lambda one: -one.demand.rate(now_s))
        for shelf in shelves:
            missing = self._target(shelf, now_s) - len(shelf.waiting) - shelf.starting
            if missing > 0 and shelf.again_at_s > now_s:
                again_s = min(again_s, shelf.again_at_s - now_s)
                continue
            for _ in range(missing):
                held = sum(len(s.waiting) + s.starting for s in self._shelves.values())
                if self._starting >= self._at_once or held >= self._room:
                    return again_s
                shelf.starting += 1
                self._starting += 1
                group.create_task(self._refill(shelf), name=f"warm-{shelf.kind.name}")
        return max(again_s, 0.01)

    async def _refill(self, shelf: _Shelf) -> None:
        began_s = self._time()
        try:
            made = await self._start(shelf.kind)
        except Exception as exc:
            shelf.failures += 1
            shelf.why = str(exc)
            wait_s = BACKOFF_FIRST_S * 2 ** (shelf.failures - 1)
            if shelf.failures >= FAILURES_MAX:
                wait_s = BACKOFF_MAX_S
                log.warning("a warm container cannot be started: %s", exc)
            shelf.again_at_s = self._time() + min(wait_s, BACKOFF_MAX_S)
            return
        finally:
            shelf.starting -= 1
            self._starting -= 1
            self._wake.set()
        shelf.failures, shelf.why = 0, None
        shelf.demand.refilled(self._time() - began_s)
        if self._closed or self._shelves.get(shelf.kind) is not shelf:
            await self._drop(made)
            return

        def ended() -> None:
            if made in shelf.waiting:
                shelf.waiting.remove(made)
                self._wake.set()

        made.on_end = ended
        shelf.waiting.append(made)

    async def _trim(self) -> None:
        """End what is beyond the target: one of each shelf at a look, the oldest first."""
        now_s = self._time()
        surplus = False
        for shelf in list(self._shelves.values()):
            if len(shelf.waiting) > self._target(shelf, now_s):
                surplus = True
                await self._drop(shelf.waiting.pop(0))
        if surplus:
            self._wake.set()

    async def _drop(self, one: Waiting) -> None:
        one.on_end = None
        await one.kill()
