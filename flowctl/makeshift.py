"""What a handler's folder lacks to be tried as it is: what a build would make of it, in a hurry.

Nothing is taken out, no type is checked and no secret looked for. What is wrong with the folder's
manifest is told by who reads it, not here. Raises Rejected where what is needed cannot be had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowctl.problems import Rejected

__all__ = ["AGENT_TRIAL", "NPM_PLACE", "made_of", "packages_of", "scripts_of"]

NPM_PLACE = "node_modules"
_LOCK = "requirements.lock"
# The handler around a stateful one, and the folder that it is in, with the rest of the agent.
_AGENT_PLACE = "flowmonkey_agent/"
AGENT_TRIAL = {
    "python": f"{_AGENT_PLACE}agenttrial.py:handle",
    "node": f"{_AGENT_PLACE}agenttrial.cjs:handle",
}


def made_of(folder: str) -> dict[str, bytes]:
    """By name: the file that a handler in TypeScript or with packages of npm is run from, what
    Python's dependencies consist of, and the agent for a stateful handler."""
    document = _object(Path(folder, "handler.json"))
    made = dict(_lacking(folder, document))
    if _handler(document).get("stateful") is True:
        made |= _agent()
    return made


def _agent() -> dict[str, bytes]:
    """What gives a stateful handler its `ctx` in a container."""
    files = (Path(__file__).parents[1] / "images/agent").glob("agent*.*")
    return {_AGENT_PLACE + one.name: one.read_bytes() for one in files if one.is_file()}


def _lacking(folder: str, document: Mapping[str, Any]) -> Mapping[str, bytes]:
    dependencies = document.get("dependencies")
    if "package" in document:  # it was built, and has them
        return {}
    if not isinstance(dependencies, dict) or not all(
        isinstance(one, str) for one in dependencies.values()
    ):
        dependencies = {}
    if not dependencies or _handler(document).get("runtime", "python") != "python":
        return scripts_of(folder)
    try:
        from flowctl.build.wheels import kept
    except ModuleNotFoundError as exc:
        raise Rejected(
            f"cannot get the dependencies: {exc.name} is not installed; "
            "pip install 'flowmonkey[build]'"
        ) from None

    lock = Path(folder, _LOCK)
    return dict(kept(dependencies, lock.read_bytes() if lock.is_file() else None))


def scripts_of(folder: str) -> dict[str, bytes]:
    """The file that a handler is run from if that has to be compiled or bundled, test values and
    all; no dependency of Python is fetched."""
    handler = _handler(_object(Path(folder, "handler.json")))
    entrypoint = handler.get("entrypoint")
    if not isinstance(entrypoint, str) or handler.get("runtime") != "node":
        return {}
    file = entrypoint.rpartition(":")[0]
    start = Path(folder, file)
    if not start.exists() and start.with_suffix(".ts").exists():
        start = start.with_suffix(".ts")
    elif not (start.is_file() and packages_of(folder)):
        return {}
    for name in packages_of(folder):
        if not Path(folder, NPM_PLACE, name).exists():
            raise Rejected(
                f"cannot try {folder}: {name} of package.json is not there; run npm install in it"
            )
    from flowctl.build.script_source import transpiled

    return {file: transpiled(folder, start.relative_to(folder).as_posix(), file)}


def packages_of(folder: str) -> list[str]:
    """The packages of npm that go into what is made of the folder's scripts."""
    found = _object(Path(folder, "package.json")).get("dependencies")
    return list(found) if isinstance(found, dict) else []


def _handler(document: Mapping[str, Any]) -> Mapping[str, Any]:
    handler = document.get("handler")
    return handler if isinstance(handler, dict) else {}


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
