"""The image of a handler (layer 2): its package copied over a runtime's image, nothing of it run.

The same package over the same runtime is the same image, id and all. Python's files have bytecode,
because no process in the container can write any: the daemon's own if its Python is the image's.
Else it is made here; the compiler reads a stranger's text, so it runs as the user of handlers, in
the image's own files, with no network and bounded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

from images.runtimes import APP, REPOSITORY, USER

__all__ = ["INSIDE", "HandlerPlan", "compile_inside", "copy", "handler_name"]

REVISION = 2  # raise it when the same plan makes another image
INSIDE = APP.lstrip("/")
COMPILE_CPU_S = 60
COMPILE_MEMORY_BYTES = 1024 * 1024 * 1024
COMPILE_FILE_BYTES = 64 * 1024 * 1024
# Of the Python in the images.
TAG, MAGIC = ".cpython-311.pyc", b"\xa7\r\r\n"


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
    """Copy a package's files, which all may read then. Of bytecode only what Python 3.11 takes as
    that of the source beside it: the daemon made it when the package was published."""
    for place, _, names in os.walk(folder, onerror=_refuse):
        kept = target / Path(place).relative_to(folder)
        is_cache = kept.name == "__pycache__"
        if is_cache and not names:
            continue
        kept.mkdir(exist_ok=True)
        for name in names:
            if not is_cache or _is_bytecode(Path(place, name)):
                shutil.copyfile(Path(place, name), kept / name)
    for place, _, names in os.walk(target):
        os.chmod(place, 0o755)
        for name in names:
            os.chmod(os.path.join(place, name), 0o644)


def compile_inside(run: Callable[..., str], root: Path, environment: Mapping[str, str]) -> None:
    """Give Python files without bytecode some that is taken without looking at their times.

    A file that does not compile stays without: who imports it gets Python's own message.
    """
    app = root / INSIDE
    files = [source for source in sorted(app.rglob("*.py")) if not _cached(source).exists()]
    if not files:
        return
    folders = {source.parent for source in files}
    folders |= {one for folder in folders if (one := folder / "__pycache__").exists()}
    for folder in folders:
        os.chown(folder, USER, USER)
    run(
        *("unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child"),
        *("prlimit", f"--cpu={COMPILE_CPU_S}", f"--as={COMPILE_MEMORY_BYTES}"),
        *(f"--fsize={COMPILE_FILE_BYTES}", "--core=0", "setpriv", "--no-new-privs"),
        *("chroot", f"--userspec={USER}:{USER}", "--groups=", root),
        *("/bin/sh", "-c", '/usr/bin/python3 -I -m compileall -qq -f "$@" || :', "compile"),
        # The names that the daemon's own compiling gives them; an import sets the real ones.
        *("--invalidation-mode", "unchecked-hash", "-s", APP, "-p", "/package"),
        *(f"/{source.relative_to(root)}" for source in files),
        only=environment,
    )
    for place, _, names in os.walk(app):
        for path in (place, *(os.path.join(place, name) for name in names)):
            os.chown(path, 0, 0, follow_symlinks=False)


def _refuse(error: OSError) -> None:
    """Half a package is none; os.walk would pass over what it cannot read."""
    raise error


def _cached(source: Path) -> Path:
    return source.parent / "__pycache__" / f"{source.stem}{TAG}"


def _is_bytecode(path: Path) -> bool:
    """PEP 552: hash-based, unchecked (flags 1), of the source beside it."""
    source = path.parent.parent / f"{path.name.removesuffix(TAG)}.py"
    if MAGIC_NUMBER != MAGIC or not path.name.endswith(TAG) or not source.exists():
        return False
    head = path.read_bytes()[:16]
    return head == MAGIC + b"\1\0\0\0" + source_hash(source.read_bytes())
