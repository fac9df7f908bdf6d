"""Executions for a program that has no event loop, one after another.

`Bench` is a pool on the caller's thread that runs only while it is asked to, and leaves nothing
behind. For people at a terminal and for tests; a daemon keeps a pool of its own.
"""

from __future__ import annotations

import asyncio
from typing import Self

from sandbox.model import Call, OnLog, PoolSettings, Reply
from sandbox.pool import Pool

__all__ = ["Bench", "run"]


class Bench:
    """A pool without a loop around it. An interrupt (SIGINT) ends what runs, and is raised."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._pool: Pool | None = None
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the pool. With `try_layers` false that does not wait for its fork server, which
        starts while the caller does other things. Raises OSError if it cannot be executed."""
        self._runner.run(self._start())

    def run(self, call: Call, on_log: OnLog) -> Reply:
        """Run a call to its end."""
        assert self._pool is not None, "not started"
        return self._runner.run(self._pool.run(call, on_log))

    def close(self) -> None:
        """Kill everything and wait until it is gone."""
        if self._pool is not None:
            self._runner.run(self._stop(self._pool))
            self._pool = None
        self._runner.close()

    async def _stop(self, pool: Pool) -> None:
        await pool.close()
        await asyncio.sleep(0)  # who waits for a death to close descriptors hears of it

    async def _start(self) -> None:
        self._pool = Pool(self.settings)  # it wants its loop running
        await self._pool.start()


def run(call: Call, settings: PoolSettings, on_log: OnLog) -> Reply:
    """Run a call to its end. Raises OSError if the interpreter cannot be executed."""
    with Bench(settings) as bench:
        return bench.run(call, on_log)
