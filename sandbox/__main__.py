"""`python -m sandbox probe`: what this host gives the sandbox, layer by layer, for an operator."""

from __future__ import annotations

import asyncio
import sys

from sandbox.model import ALL_LAYERS, Layer, PoolSettings
from sandbox.pool import Pool

__all__ = ["main"]


async def _probe() -> list[Layer]:
    pool = Pool(PoolSettings(slots=1, spares=1))
    await pool.start()
    try:
        return pool.layers()
    finally:
        await pool.close()


def main(arguments: list[str]) -> int:
    """Print the table; 0 if every required layer holds, 1 if one does not, 2 for a wrong word."""
    if arguments != ["probe"]:
        print("usage: python -m sandbox probe", file=sys.stderr)
        return 2
    layers = asyncio.run(_probe())
    for layer in layers:
        state = "holds" if layer.available else "MISSING" if layer.required else "missing"
        print(f"{layer.name:<18} {state:<8} {ALL_LAYERS[layer.name]} ({layer.detail})")
    return 0 if all(layer.available or not layer.required for layer in layers) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
