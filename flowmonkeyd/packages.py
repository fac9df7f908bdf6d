"""Handler packages on disk: received, checked, unpacked once under their digest, never changed.

A package is refused or kept whole: it is unpacked beside its place, checked, flushed, and renamed
into it, so that a crash leaves a leftover that the next start removes and never half a package. The
files are read-only and readable by everyone, because the sandbox's user is nobody; the folder above
is closed. Beside the uploaded files are those that were compiled from them here; a package's digest
knows nothing of them. Functions block: call them in a thread.
"""

from __future__ import annotations

import errno
import importlib.machinery
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE, content_digest, read_archive
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.errors import Invalid, Problem, Unavailable
from flowmonkeyd.model import Signed

__all__ = ["Packages", "Received"]

_INCOMING = "incoming-"
_EXTENSION = re.compile(r"\.(cpython|pypy|graalpy|cp|abi)[-\w]*\.(so|pyd|dylib)$")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# More than the checker's own limit of CPU time; a busy machine may be slow, not endless.
_SYNTAX_TIMEOUT_S = 60
_PROBLEMS_MAX = 100


@dataclass(frozen=True, slots=True)
class Received:
    """A package that is on disk now; `size_bytes` counts its unpacked files, `manifest_json` is
    the text of handler.json as written, but for a built package's list of files, which is long and
    of use on disk only. `signed` is what the judge said."""

    manifest: Manifest
    manifest_json: str
    digest: str
    size_bytes: int
    files: tuple[str, ...]
    signed: Signed | None = None


class Packages:
    """The packages below one folder, by digest."""

    def __init__(self, root: Path, python: str = "") -> None:
        """`python` is the interpreter of the handlers; empty: the one that runs this."""
        self._root = root
        self._python = python or sys.executable

    def open(self) -> None:
        """Make the folder and remove what an interrupted receive left."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._root.glob(f"{_INCOMING}*"):
            _remove(leftover)

    def path(self, digest: str) -> Path:
        """Where the package with this digest is, if it is here. ValueError for no digest."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a package's digest")
        return self._root / digest

    def receive(
        self,
        data: bytes,
        judge: Callable[[Manifest, Mapping[str, bytes]], Signed | None] = lambda *_: None,
    ) -> Received:
        """Check a package (a ZIP) and put it on disk; the same again changes nothing.

        `judge` says who signed it, or raises, before anything is written. Raises Invalid with every
        problem found, Unavailable when it cannot be written.
        """
        files = read_archive(data)
        if MANIFEST not in files:
            why = f"it has no {MANIFEST} at its top; pack the folder's content, not the folder"
            raise Invalid(f"cannot accept the package: {why}", problems=(Problem("$", why),))
        manifest = parse_manifest(files[MANIFEST])
        signed = judge(manifest, files)
        found = (*_missing(manifest, files), *_compiled(files), *_foreign(manifest, files))
        _refuse(list(found))
        digest = content_digest(files)
        # It is not in the digest, which names the place: what is there is the same however signed.
        files = {name: content for name, content in files.items() if name != SIGNATURE}
        try:
            self._keep(digest, files)
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
            raise Unavailable(
                f"cannot keep the package: {(exc.strerror or str(exc)).lower()}",
                code="DISK_FULL" if full else None,
            ) from exc
        return Received(
            manifest,
            _kept(files[MANIFEST].decode("utf-8-sig")),
            digest,
            sum(map(len, files.values())),
            tuple(sorted(files)),
            signed,
        )

    def remove_unused(self, in_use: Collection[str]) -> list[str]:
        """Remove the packages whose digest is not in use, and say which.

        A package that was received and is not in the catalogue yet is unused: do not call this
        while a handler is being published.
        """
        found = [name for name in os.listdir(self._root) if _DIGEST.fullmatch(name)]
        unused = sorted(set(found) - set(in_use))
        for name in unused:
            # Out of its place at once, so that a crash leaves a leftover, not half a package.
            leaving = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
            (self._root / name).rename(leaving)
            _remove(leaving)
        _flush(self._root)
        return unused

    def _keep(self, digest: str, files: Mapping[str, bytes]) -> None:
        place = self.path(digest)
        if place.is_dir():
            # Whoever renamed it may not have come to flush it yet.
            _flush(self._root)
            return
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
        try:
            _unpack(files, incoming)
            if any(name.endswith(".py") for name in files):
                # Compiling keeps a core busy, and flushing the disk: at the same time.
                with _compiling(incoming, self._python) as compiler:
                    _flush_files(files, incoming)
                    _refuse(_not_python(compiler))
                _keep_compiled(incoming)
            else:
                _flush_files(files, incoming)
            for folder, _, _ in os.walk(incoming, topdown=False):
                os.chmod(folder, 0o755)  # so that `rm -r` of a data directory works
                _flush(Path(folder))
            try:
                incoming.rename(place)
            except OSError as exc:
                # Another request with the same content was first: it is the same package.
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _flush(self._root)
        finally:
            _remove(incoming)


def _kept(manifest: str) -> str:
    """It goes with every task, and 1 000 names with their digests are 100 KiB."""
    document = json.loads(manifest)
    if "package" not in document:
        return manifest
    del document["package"]["files"]
    return json.dumps(document, ensure_ascii=False)


def _foreign(manifest: Manifest, files: Mapping[str, bytes]) -> list[Problem]:
    """Extension modules that only another Python or machine could load (PEP 3149, PEP 738)."""
    if manifest.runtime != "python":
        return []
    here = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    if manifest.stateful is not None:  # it runs in an image, whose Python is another than ours
        ours = sys.implementation.cache_tag or ""
        here = tuple(one.replace(ours, "cpython-311") for one in here)
    return [
        Problem("$", f"{name!r} is made for another Python or machine; here it is {here[0]}")
        for name in sorted(files)
        if _EXTENSION.search(name) and not name.endswith(here[:-1])
    ][:1]


def _missing(manifest: Manifest, files: Mapping[str, bytes]) -> list[Problem]:
    file = manifest.entrypoint.rpartition(":")[0]
    if file in files:
        return []
    return [Problem("$.handler.entrypoint", f"there is no file {file!r} in the package")]


def _compiled(files: Mapping[str, bytes]) -> list[Problem]:
    """Compiled code would be run instead of the source beside it, which people can read."""
    message = "is compiled code; leave it out, it is made here from the sources"
    return [
        Problem(name, message)
        for name in sorted(files)
        if name.lower().endswith((".pyc", ".pyo")) or "__pycache__" in name.lower().split("/")
    ][:_PROBLEMS_MAX]


@contextmanager
def _compiling(folder: Path, python: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program that compiles the Python files of a folder; it does not outlive the block."""
    program = Path(__file__).with_name("syntax.py")
    command = [python, "-I", "-S", "-B", str(program), str(folder)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,  # a group, as it may start a second one
    ) as compiler:
        try:
            yield compiler
        finally:
            with suppress(ProcessLookupError):
                os.killpg(compiler.pid, signal.SIGKILL)


def _not_python(compiler: subprocess.Popen[bytes]) -> list[Problem]:
    """The files that did not compile, as problems at `file:line`."""
    try:
        told, _ = compiler.communicate(timeout=_SYNTAX_TIMEOUT_S)
        found = json.loads(told) if compiler.returncode == 0 else None
    except (subprocess.SubprocessError, ValueError):
        found = None
    if found is None:
        return [Problem("$", "its Python files take too much time or memory to compile")]
    return [
        Problem(f"{name}:{line}", f"is not Python: {message}")
        for name, line, message in found[:_PROBLEMS_MAX]
    ]


def _refuse(problems: list[Problem]) -> None:
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise Invalid(f"cannot accept the package: {count}", problems=tuple(problems))


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o444)  # whatever the umask


def _flush_files(names: Iterable[str], folder: Path) -> None:
    for name in names:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _keep_compiled(folder: Path) -> None:
    """What was compiled beside the sources is as durable and as unchangeable as they."""
    for path in folder.rglob("__pycache__/*.pyc"):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove a folder whose folders may be read-only; what cannot go stays a leftover."""
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)
