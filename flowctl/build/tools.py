"""The tools for JavaScript and TypeScript: at the exact versions of the lock, in the user's cache.

npm installs them once, without running any of their scripts, beside the place and renames them into
it, so that an interrupted installation is none. Needs Node and npm; never writes into a project.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flowctl.problems import Rejected

__all__ = ["SCRIPTS", "cache", "install", "node", "npm_ci"]

# The programs that use the tools, and the lock.
SCRIPTS = Path(__file__).with_name("node")
INSTALL_TIMEOUT_S = 600
_LOCK = ("package.json", "package-lock.json")


def install() -> Path:
    """The folder with node_modules of the tools, installed if it is not there yet.

    Raises Rejected when that cannot be done.
    """
    lock = b"".join((SCRIPTS / name).read_bytes() for name in _LOCK)
    place = cache() / f"tools-{hashlib.sha256(lock).hexdigest()[:16]}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix="incoming-", dir=place.parent))
    try:
        for name in _LOCK:
            shutil.copyfile(SCRIPTS / name, incoming / name)
        npm_ci(incoming, "the build tools")
        try:
            incoming.rename(place)
        except OSError:
            if not place.is_dir():  # else another build was first
                raise
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return place


def npm_ci(folder: Path, what: str) -> None:
    """Install what the package-lock.json in a folder says, running none of its scripts."""
    command = [_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    command += ["--loglevel=error", "--no-update-notifier"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        why = f"npm did not finish within {INSTALL_TIMEOUT_S} seconds"
        raise Rejected(f"cannot install {what}: {why}; try again") from None
    if done.returncode != 0:
        raise Rejected(f"cannot install {what}: npm says why", _errors(done.stderr))


def node(arguments: Sequence[str]) -> list[str]:
    """The command line that runs Node with arguments. Raises Rejected where it is missing."""
    return [_program("node"), *arguments]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Rejected(
            f"cannot build JavaScript: {name} is missing; install Node 20 or newer with npm"
        )
    return found


def _errors(told: str) -> tuple[str, ...]:
    lines = [line.removeprefix("npm error").strip() for line in told.splitlines()]
    return tuple(line for line in lines if line)[:10]


def cache() -> Path:
    """The user's folder for what can be fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowmonkey"
