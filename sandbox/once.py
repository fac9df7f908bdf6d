"""One execution, or one look at the layers, for a program that has no event loop.

Makes a pool, uses it once, and leaves nothing behind. For people at a terminal; a daemon keeps a
pool.
"""

from __future__ import annotations

import asyncio

from sandbox.model import Call, Layer, OnLog, PoolSettings, Reply
from sandbox.pool import Pool

__all__ = ["layers", "run"]


def run(call: Call, settings: PoolSettings, on_log: OnLog) -> tuple[Reply, list[Layer]]:
    """Run a call to its end; with the layers that held. Raises OSError if the interpreter cannot
    be executed."""
    return asyncio.run(_run(call, settings, on_log))


def layers(settings: PoolSettings) -> list[Layer]:
    """Every layer with what this host gives, by trying. Raises OSError as `run`."""
    return asyncio.run(_layers(settings))


async def _run(call: Call, settings: PoolSettings, on_log: OnLog) -> tuple[Reply, list[Layer]]:
    pool = Pool(settings)
    try:
        await pool.start()
        return await pool.run(call, on_log), pool.layers()
    finally:
        await pool.close()


async def _layers(settings: PoolSettings) -> list[Layer]:
    pool = Pool(settings)
    try:
        await pool.start()
        return pool.layers()
    finally:
        await pool.close()
