"""Who waits for what has been committed: the ends of executions, and followers of the tables.

A follower holds the seq it has seen and reads the tables on each wake-up, so a slow reader costs
nothing but its own lateness, and nothing is told that is not committed. Nothing here polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.store import Committed

__all__ = ["Feed"]

# A blank line now and then tells a quiet stream from a dead one.
HEARTBEAT_S = 15.0

Rows = list[dict[str, Any]]
# Rows after a seq, and whether there will never be more: both from one look at the tables.
Read = Callable[[int], Awaitable[tuple[Rows, bool]]]


class Feed:
    """`committed()` is told of every commit; `close()` ends every stream and wait."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._closed = False
        self.followers = 0  # streams that are open now

    @property
    def waiting(self) -> int:
        """How many requests wait for an execution's end now."""
        return sum(map(len, self._waiters.values()))

    def committed(self, hints: Committed) -> None:
        for execution_id in hints.ended:
            for waiter in self._waiters.pop(execution_id, ()):
                if not waiter.done():
                    waiter.set_result(None)
        if hints.events:
            self._wake()

    def close(self) -> None:
        """The daemon drains: streams and waits end now."""
        self._closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._wake()

    def expect_end(self, execution_id: str) -> asyncio.Future[None]:
        """A future that is done once the execution has ended from now on, or the daemon drains."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            waiter.set_result(None)
        else:
            self._waiters.setdefault(execution_id, []).append(waiter)
        return waiter

    def forget(self, execution_id: str, waiter: asyncio.Future[None]) -> None:
        """The caller no longer waits."""
        waiters = self._waiters.get(execution_id)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[execution_id]

    async def follow(self, read: Read, after: int) -> AsyncGenerator[bytes, None]:
        """NDJSON lines of the rows `read(after)` gives, until it says that was all or the daemon
        drains; the reader goes on after the last seq it has."""
        self.followers += 1
        try:
            while True:
                changed, closed = self._changed, self._closed  # before the look: none is missed
                rows, over = await read(after)
                if rows:
                    after = rows[-1]["seq"]
                    yield b"".join(jsontext.dumps(row).encode() + b"\n" for row in rows)
                if over or closed:
                    return
                if not rows and not await _set_within(changed, HEARTBEAT_S):
                    yield b"\n"
        finally:
            self.followers -= 1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
