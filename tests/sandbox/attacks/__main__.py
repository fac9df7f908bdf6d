"""The whole battery in a process of its own, with two pools' whole lives.

Prints as JSON the outcome of each attack, and what there is more of after the pools were closed.
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
    Attack,
    Haunting,
    run_attack,
    run_haunting,
    with_victim,
)
from attacks.inventory import inventory, left_since
from sandbox import Pool, PoolSettings


async def _main() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        await _life(folder / "warm", ATTACKS[:1], HAUNTINGS[:1])
        before = inventory(folder)
        layers, outcomes = await _life(folder / "all", ATTACKS + FATAL, HAUNTINGS)
        left = await left_since(before, folder)
    return {"layers": layers, "outcomes": outcomes, "left": left}


async def _life(
    folder: Path, attacks: tuple[Attack, ...], hauntings: tuple[Haunting, ...]
) -> tuple[dict[str, bool], dict[str, dict[str, object]]]:
    """The whole life of a pool, and of a second one."""
    folder.mkdir()
    pool = Pool(PoolSettings(slots=2))
    await pool.start()
    try:
        layers = {layer.name: layer.available for layer in pool.layers() if layer.required}
        online = any(layer.name == "network" and layer.available for layer in pool.layers())
        tried = [a for a in attacks if online or a.policy.network is None]
        outcomes = {a.name: await run_attack(pool, folder, a) for a in tried}
        async with with_victim(pool, folder):
            outcomes |= {a.name: await run_attack(pool, folder, a) for a in NEIGHBOURS}
    finally:
        await pool.close()
    return layers, outcomes | await _hauntings(folder, hauntings)


async def _hauntings(folder: Path, hauntings: tuple[Haunting, ...]) -> dict[str, dict[str, object]]:
    pool = Pool(PoolSettings(slots=1))
    await pool.start()
    try:
        return {
            f"{one.name} {stranger}": await run_haunting(pool, folder, one, changes)
            for one in hauntings
            for stranger, changes in STRANGERS.items()
        }
    finally:
        await pool.close()


if __name__ == "__main__":
    json.dump(asyncio.run(_main()), sys.stdout)
