"""One execution for a program that has no event loop.

Makes a pool, uses it once, and leaves nothing behind. For people at a terminal; a daemon keeps a
pool.
"""

from __future__ import annotations

import asyncio

from sandbox.model import Call, OnLog, PoolSettings, Reply
from sandbox.pool import Pool

__all__ = ["run"]


def run(call: Call, settings: PoolSettings, on_log: OnLog) -> Reply:
    """Run a call to its end. Raises OSError if the interpreter cannot be executed."""
    return asyncio.run(_run(call, settings, on_log))


async def _run(call: Call, settings: PoolSettings, on_log: OnLog) -> Reply:
    pool = Pool(settings)
    try:
        await pool.start()
        return await pool.run(call, on_log)
    finally:
        await pool.close()
