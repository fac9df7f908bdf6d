"""Running an attack for Node in a pool, and judging what came of it, as `attacks.running` does."""

from __future__ import annotations

from pathlib import Path

from attacks.attack import Attack
from attacks.running import judged, write_package

from sandbox import Call, Pool

__all__ = ["run_node_attack"]

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
    return await judged(pool, attack, call)
