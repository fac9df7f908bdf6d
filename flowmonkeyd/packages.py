"""Handler packages on disk: received, checked, unpacked once under their digest, never changed.

A package is refused or kept whole: it is unpacked beside its place, flushed, and renamed into it,
so that a crash leaves a leftover that the next start removes and never half a package. The files
are read-only and readable by everyone, because the sandbox's user is nobody; the folder above is
closed. Functions block: call them in a thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowmonkeyd.documents.archive import MANIFEST, read_archive
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.errors import Invalid, Problem, Unavailable

__all__ = ["Packages", "Received"]

_INCOMING = "incoming-"


@dataclass(frozen=True, slots=True)
class Received:
    """A package that is on disk now."""

    manifest: Manifest
    manifest_json: str
    digest: str
    size_bytes: int
    files: tuple[str, ...]


class Packages:
    """The packages below one folder, by digest."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> None:
        """Make the folder and remove what an interrupted receive left."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._root.glob(f"{_INCOMING}*"):
            _remove(leftover)

    def path(self, digest: str) -> Path:
        """Where the package with this digest is."""
        return self._root / digest

    def receive(self, data: bytes) -> Received:
        """Check a package and put it on disk. Raises Invalid with every problem found."""
        files = read_archive(data)
        if MANIFEST not in files:
            message = f"has no {MANIFEST} at its top"
            raise Invalid(f"cannot accept the package: it {message}", problems=())
        manifest = parse_manifest(files[MANIFEST])
        problems = _problems(manifest, files)
        if problems:
            count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
            raise Invalid(f"cannot accept the package: {count}", problems=tuple(problems))
        digest = _digest(files)
        try:
            self._keep(digest, files)
        except OSError as exc:
            raise Unavailable(f"cannot keep the package: {exc.strerror}") from exc
        size_bytes = sum(map(len, files.values()))
        text = files[MANIFEST].decode()
        return Received(manifest, text, digest, size_bytes, tuple(sorted(files)))

    def remove_unused(self, in_use: set[str]) -> list[str]:
        """Remove packages whose digest is not in use; which."""
        gone = [entry.name for entry in self._root.iterdir() if entry.name not in in_use]
        for name in gone:
            _remove(self._root / name)
        return gone

    def _keep(self, digest: str, files: Mapping[str, bytes]) -> None:
        place = self.path(digest)
        if place.is_dir():
            return
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
        try:
            for name, content in files.items():
                target = incoming / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(target, content)
            for folder, _, _ in os.walk(incoming, topdown=False):
                os.chmod(folder, 0o755)
                _flush(Path(folder))
            try:
                incoming.rename(place)
            except OSError:
                if not place.is_dir():  # else another request was first with the same content
                    raise
                _remove(incoming)
            _flush(self._root)
        except BaseException:
            _remove(incoming)
            raise


def _problems(manifest: Manifest, files: Mapping[str, bytes]) -> list[Problem]:
    found = []
    if manifest.runtime != "python":
        message = f"runtime {manifest.runtime!r} cannot be run by this version; use python"
        found.append(Problem("$.handler.runtime", message))
    if manifest.stateful:
        message = "stateful handlers cannot be run by this version"
        found.append(Problem("$.handler.stateful", message))
    if manifest.network:
        message = "handlers have no network in this version; set it to false"
        found.append(Problem("$.execution.sandbox.network", message))
    file = manifest.entrypoint.rpartition(":")[0]
    if file not in files:
        found.append(Problem("$.handler.entrypoint", f"there is no file {file!r} in the package"))
    for name, content in files.items():
        if name.endswith(".py"):
            try:
                compile(content, name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
                line = getattr(exc, "lineno", None) or 1
                message = getattr(exc, "msg", None) or str(exc)
                found.append(Problem(f"{name}:{line}", f"is not Python: {message}"))
    return found


def _digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the names and the SHA-256 of each content: how it was packed does not matter."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n".encode())
    return total.hexdigest()


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
