"""Running an attack for Node in a pool, and judging what came of it, as `attacks.running` does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from attacks.attack import SURVIVOR, Attack
from attacks.running import report, survivors, write_package

from sandbox import Call, Pool

__all__ = ["run_node_attack"]

_PATIENCE_S = 30.0

_WRAP = """
exports.handle = async (input, ctx) => {
    try {
        return { succeeded: Boolean(await attack(ctx)) };
    } catch (error) {
        return { succeeded: false, stopped_by: String(error) };
    }
};
"""


async def run_node_attack(pool: Pool, folder: Path, attack: Attack) -> dict[str, object]:
    """Whether it succeeded, and its own report or how it ended."""
    code = attack.code if attack.won else attack.code + _WRAP
    files = {"handler.js": code, **attack.files}
    package = write_package(folder / "attacked-packages" / attack.name, "", files)
    call = Call(package, "handler.js:handle", "node", limits=attack.limits, policy=attack.policy)
    servers = pool.server_pids
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reply = await pool.run(call)
            if SURVIVOR in attack.code:
                await pool.idle()
    except TimeoutError:
        return {"succeeded": True, "because": "the pool never came back"}
    if not set(servers) <= set(pool.server_pids):
        return {"succeeded": True, "because": "the fork server died", "reply": repr(reply)}
    if SURVIVOR in attack.code and (alive := survivors()):
        return {"succeeded": True, "because": f"these live on: {alive}"}
    return report(attack, reply)
