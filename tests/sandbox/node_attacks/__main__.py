"""The whole battery for Node in a process of its own: prints the outcome of each as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from node_attacks import NODE_ATTACKS, run_node_attack
from sandbox import Pool, PoolSettings


async def _main() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        pool = Pool(PoolSettings(slots=1))
        await pool.start()
        try:
            layers = {layer.name: layer.available for layer in pool.layers() if layer.required}
            outcomes = {a.name: await run_node_attack(pool, folder, a) for a in NODE_ATTACKS}
        finally:
            await pool.close()
    return {"layers": layers, "outcomes": outcomes}


if __name__ == "__main__":
    json.dump(asyncio.run(_main()), sys.stdout)
