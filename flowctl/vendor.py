"""The authoring library's files, for packages and for editors.

Owns which files of `flowmonkey` go along with a handler that imports it: a package carries its own
copy, so that what runs it knows nothing of it. What a folder has of the library is replaced by the
installed one, except a Python package of that name, which is the author's own.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DESCRIBE", "LIBRARY_PLACES", "imports_library", "install", "library", "vendored"]

# The handler within the library that says what a class declares.
DESCRIBE = {
    "python": "flowmonkey/describe.py:handle",
    "node": "node_modules/flowmonkey/describe.js:handle",
}
# Where it is in a package, or beside other modules of npm.
LIBRARY_PLACES = ("flowmonkey/", "node_modules/")
_PYTHON = ("__init__", "context", "declared", "describe", "rules", "schemas")
_NODE = ("package.json", "index.js", "declared.js", "rules.js", "schemas.js", "describe.js")
_NODE_PLACE = "node_modules/flowmonkey/"
_PYTHON_IMPORT = re.compile(rb"^\s*(?:from|import)\s+flowmonkey\b", re.MULTILINE)
_NODE_IMPORT = re.compile(rb"['\"]flowmonkey['\"]")


def library() -> Path:
    """Where the installed library is; its JavaScript is in the folder `node`."""
    spec = importlib.util.find_spec("flowmonkey")
    assert spec is not None, "installed together with flowctl"
    assert spec.origin is not None
    return Path(spec.origin).parent


def imports_library(contents: Mapping[str, bytes]) -> str | None:
    """ "python" or "node" for a handler's files that import the library, else None."""
    for name, data in contents.items():
        if name.startswith("node_modules/"):
            continue
        if name.endswith(".py") and _PYTHON_IMPORT.search(data):
            return "python"
        if name.endswith((".js", ".cjs", ".mjs", ".ts", ".cts", ".mts")) and _NODE_IMPORT.search(
            data
        ):
            return "node"
    return None


def vendored(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """A handler's files with what they need of the library, and with nothing else of it; those of
    a built package as they are, for they are listed."""
    if _is_built(contents):
        return dict(contents)
    kept = {name: data for name, data in contents.items() if not name.startswith(_NODE_PLACE)}
    language, place = imports_library(kept), library()
    if language == "python":
        if not any(name == "flowmonkey.py" or name.startswith("flowmonkey/") for name in kept):
            for stem in _PYTHON:
                kept[f"flowmonkey/{stem}.py"] = (place / f"{stem}.py").read_bytes()
    elif language == "node":
        for name in _NODE:
            kept[_NODE_PLACE + name] = (place / "node" / name).read_bytes()
    return kept


def _is_built(contents: Mapping[str, bytes]) -> bool:
    try:
        return "package" in json.loads(contents.get("handler.json", b"{}"))
    except (ValueError, TypeError, RecursionError):
        return False  # what is wrong with it is told when it is read


def install(folder: Path) -> None:
    """Put the JavaScript library with its types where Node and editors look for it."""
    place = folder / _NODE_PLACE
    place.mkdir(parents=True, exist_ok=True)
    for source in sorted((library() / "node").iterdir()):
        (place / source.name).write_bytes(source.read_bytes())
