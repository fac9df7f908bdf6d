"""The whole battery for Node in a process of its own: as JSON the outcome of each attack, and what
there is more of after the pool was closed."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from attacks.inventory import inventory, left_since

from node_attacks import NODE_ATTACKS, run_node_attack
from sandbox import Pool, PoolSettings


async def _main() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        await _life(folder, 1)
        before = inventory(folder)
        layers, outcomes = await _life(folder, len(NODE_ATTACKS))
        left = await left_since(before, folder)
    return {"layers": layers, "outcomes": outcomes, "left": left}


async def _life(folder: Path, count: int) -> tuple[dict[str, bool], dict[str, object]]:
    pool = Pool(PoolSettings(slots=1))
    await pool.start()
    try:
        layers = {layer.name: layer.available for layer in pool.layers()}
        tried = [a for a in NODE_ATTACKS[:count] if layers["network"] or a.policy.network is None]
        return layers, {a.name: await run_node_attack(pool, folder, a) for a in tried}
    finally:
        await pool.close()


if __name__ == "__main__":
    json.dump(asyncio.run(_main()), sys.stdout)
