"""Wakes the engine when something is due: waits, time-outs, leases, delayed tasks.

Sleeps until the next due row, or until a commit brings an earlier one. What is due is read from the
tables each time, so a lost hint costs nothing but the wait for the next one.
"""

from __future__ import annotations

import asyncio
import logging

from flowmonkeyd.clock import Clock
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import Unavailable
from flowmonkeyd.store import Committed

__all__ = ["Timers"]

log = logging.getLogger(__name__)

# Wall-clock time may be set forward while we sleep (NTP, suspend): look again this often.
LONGEST_SLEEP_S = 60.0
RETRY_S = 1.0


class Timers:
    """`run()` works until cancelled; `committed()` is told of every commit."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._next_ms: int | None = None
        self._earlier = asyncio.Event()

    def committed(self, hints: Committed) -> None:
        self._expect(hints.due_at_ms)

    async def run(self) -> None:
        """Fire what is due, sleep, again."""
        while True:
            # Forgotten before the look: it sees neither the writes behind it in its own batch nor
            # the built-in steps that run before that batch's commit, so their hints must stay.
            self._next_ms = None
            self._earlier.clear()
            try:
                self._expect(await self._engine.fire_due())
            except Unavailable as exc:
                log.warning("cannot fire what is due: %s", exc)
                await asyncio.sleep(RETRY_S)
                continue
            await self._sleep()

    def _expect(self, due_at_ms: int | None) -> None:
        if due_at_ms is not None and (self._next_ms is None or due_at_ms < self._next_ms):
            self._next_ms = due_at_ms
            self._earlier.set()

    async def _sleep(self) -> None:
        """Until the next due time, however often an earlier one comes in."""
        while True:
            left_s = LONGEST_SLEEP_S
            if self._next_ms is not None:
                left_s = min(left_s, (self._next_ms - self._clock.now_ms()) / 1000)
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await self._earlier.wait()
            except TimeoutError:
                return
            self._earlier.clear()
