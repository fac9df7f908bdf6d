"""The image of a handler (layer 2): its package copied over a runtime's image, nothing of it run.

The same package over the same runtime is the same image, id and all. Python's files get bytecode
here, because no process in the container can write any; the compiler reads a stranger's text, so
it runs as nobody's user, in the image's own files, with no network and bounded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from images.runtimes import APP, REPOSITORY, USER

__all__ = ["INSIDE", "HandlerPlan", "compile_inside", "copy", "handler_name"]

REVISION = 1  # raise it when the same plan makes another image
INSIDE = APP.lstrip("/")
COMPILE_CPU_S = 60
COMPILE_MEMORY_BYTES = 1024 * 1024 * 1024
COMPILE_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HandlerPlan:
    """A package by its digest, the runtime it runs in, and the id of that runtime's image."""

    package: str
    runtime: str
    parent: str

    @property
    def name(self) -> str:
        return handler_name(self.package)

    @property
    def recipe(self) -> str:
        text = f"{REVISION} {self.package} {self.runtime} {self.parent} {APP}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def labels(self) -> dict[str, str]:
        return {
            "flowmonkey.package": self.package,
            "flowmonkey.parent": self.parent,
            "flowmonkey.recipe": self.recipe,
            "flowmonkey.runtime": self.runtime,
        }


def handler_name(package: str) -> str:
    """Name of the image of a package, by the package's digest."""
    return f"{REPOSITORY}/handler:{package}"


def copy(folder: Path, target: Path) -> None:
    """Copy a package's files; all may read them, bytecode of the host's Python is left out."""
    shutil.copytree(
        folder,
        target,
        ignore=shutil.ignore_patterns("__pycache__"),
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
    )
    for place, _, files in os.walk(target):
        os.chmod(place, 0o755)
        for name in files:
            os.chmod(os.path.join(place, name), 0o644)


def compile_inside(run: Callable[..., str], root: Path, environment: Mapping[str, str]) -> None:
    """Give the package's Python files bytecode that is taken without looking at their times.

    A file that does not compile stays without: who imports it gets Python's own message.
    """
    app = root / INSIDE
    if next(app.rglob("*.py"), None) is None:
        return
    folders = [place for place, _, _ in os.walk(app)]
    for place in folders:
        os.chown(place, USER, USER)
    run(
        *("unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child"),
        *("prlimit", f"--cpu={COMPILE_CPU_S}", f"--as={COMPILE_MEMORY_BYTES}"),
        *(f"--fsize={COMPILE_FILE_BYTES}", "--core=0"),
        *("setpriv", "--no-new-privs"),
        *("chroot", f"--userspec={USER}:{USER}", "--groups=", root),
        *("/bin/sh", "-c", '/usr/bin/python3 -I -m compileall -qq -f "$@" || :', "compile"),
        *("--invalidation-mode", "unchecked-hash", APP),
        only=environment,
    )
    for place, _, files in os.walk(app):
        for path in (place, *(os.path.join(place, name) for name in files)):
            os.chown(path, 0, 0, follow_symlinks=False)
