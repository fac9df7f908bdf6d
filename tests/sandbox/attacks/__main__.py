"""The whole battery in a process of its own: prints the outcome of each attack as JSON.

For the run as another user. It starts one pool and closes it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from attacks import (
    ATTACKS,
    FATAL,
    HAUNTINGS,
    NEIGHBOURS,
    STRANGERS,
    run_attack,
    run_haunting,
    with_victim,
)
from sandbox import Pool, PoolSettings


async def _main() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        pool = Pool(PoolSettings(slots=2))
        await pool.start()
        try:
            layers = {layer.name: layer.available for layer in pool.layers() if layer.required}
            outcomes = {a.name: await run_attack(pool, folder, a) for a in ATTACKS + FATAL}
            async with with_victim(pool, folder):
                outcomes |= {a.name: await run_attack(pool, folder, a) for a in NEIGHBOURS}
        finally:
            await pool.close()
        outcomes |= await _hauntings(folder)
    return {"layers": layers, "outcomes": outcomes}


async def _hauntings(folder: Path) -> dict[str, dict[str, object]]:
    pool = Pool(PoolSettings(slots=1))
    await pool.start()
    try:
        return {
            f"{one.name} {stranger}": await run_haunting(pool, folder, one, changes)
            for one in HAUNTINGS
            for stranger, changes in STRANGERS.items()
        }
    finally:
        await pool.close()


if __name__ == "__main__":
    json.dump(asyncio.run(_main()), sys.stdout)
