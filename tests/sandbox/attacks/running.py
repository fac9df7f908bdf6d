"""Running an attack in a pool, and judging what came of it.

Owns the packages that attacks are written into and the questions that are asked after every one:
is the fork server still the same, does anything of the attack live on. It decides nothing about
the confinement; an attack that could not run at all is neither stopped nor successful (None).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from attacks.attack import SURVIVOR, Attack
from attacks.inventory import numbers
from sandbox import Call, Ending, Pool, Reply

__all__ = ["judged", "run_attack", "survivors", "write_package"]

_PATIENCE_S = 30.0

_WRAP = """
def handle(input, ctx):
    try:
        return {"succeeded": bool(attack())}
    except (OSError, ValueError, ImportError, MemoryError) as exc:
        return {"succeeded": False, "stopped_by": f"{type(exc).__name__}: {exc}"}
"""


def write_package(folder: Path, code: str, files: dict[str, str | bytes] | None = None) -> str:
    """A handler package with that code; readable by the handler's user."""
    for name, content in {"handler.py": code, **(files or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o644)
        path.parent.chmod(0o755)
    folder.chmod(0o755)
    return str(folder)


async def run_attack(pool: Pool, folder: Path, attack: Attack) -> dict[str, object]:
    """Whether it succeeded, and its own report or how it ended (see `judged`)."""
    code = attack.code if attack.won else attack.code + _WRAP
    package = write_package(folder / "attacked-packages" / attack.name, code, dict(attack.files))
    call = Call(package, limits=attack.limits, policy=attack.policy, reuse=attack.reuse)
    return await judged(pool, attack, call)


async def judged(pool: Pool, attack: Attack, call: Call) -> dict[str, object]:
    """Run the attack by this call of it: whether it succeeded, and its report or how it ended.

    Only one attack that tries to survive may run at a time on a host: survivors are known by
    their name alone.
    """
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
    return _report(attack, reply)


def survivors(name: str = SURVIVOR) -> list[int]:
    """Processes of the host with the name that survivors give themselves."""
    found = []
    for pid in numbers("/proc"):
        for thread in numbers(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip() == name:
                    found.append(int(pid))
    return sorted(set(found))


def _report(attack: Attack, reply: Reply) -> dict[str, object]:
    """What the reply says about the attack; `succeeded` None: it was not tried at all."""
    if attack.won is not None:
        said = {"ending": str(reply.ending), "message": reply.message, "result": reply.result}
        return {"succeeded": bool(attack.won(reply)), **said}
    if reply.ending is Ending.UNAVAILABLE:
        return {"succeeded": None, "broken": reply.message}
    if reply.result is None:
        return {"succeeded": False, "ending": str(reply.ending), "message": reply.message}
    if reply.result["outcome"] != "success":
        return {"succeeded": None, "broken": reply.result["error"]["message"]}
    return dict(reply.result["output"])
