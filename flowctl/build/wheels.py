"""Python's dependencies, from wheels only: nothing of a dependency is run, at no time.

pip resolves and unpacks them for the Python that runs this; it is given no way to start a program,
so that neither a setup.py nor a build backend nor a version control tool can run, whatever a
dependency asks for. What depends on this machine or on the day (scripts, records) is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from flowctl.build import tools
from flowctl.problems import Rejected

__all__ = ["LOCK", "Part", "Vendored", "kept", "vendor"]

# Constraints of pip, with hashes if wanted: what makes the same versions on every day.
LOCK = "requirements.lock"
DOWNLOAD_TIMEOUT_S = 600
KEPT_S = 86_400  # a new version is seen the day after
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(\[[A-Za-z0-9._,-]+\])?")
_NOT_FOUND = re.compile(r"No matching distribution found for ([^\n]+)")
_SETTLED = re.compile(r"={2,3}\s*[^*,]+")
_NOT_OURS = {"PYTHONPATH", "PIP_NO_BINARY", "PIP_PREFIX", "PIP_PYTHON", "PIP_ROOT", "PIP_USER"}
# Raised events instead of programs: https://docs.python.org/3/library/audit_events.html
_PIP = """
import runpy, sys
def refuse(event, args):
    if event in {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
                 "os.forkpty", "os.spawn", "pty.spawn"}:
        raise PermissionError("flowmonkey: it wants to run a program")
sys.addaudithook(refuse)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
# Where and when it was installed is no part of what it is.
_LOCAL_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a package contains; `kind` is pypi or npm, `license` as its metadata says."""

    kind: str
    name: str
    version: str
    license: str | None


@dataclass(frozen=True, slots=True)
class Vendored:
    """Files by name as they go into the package, and which distributions they are of."""

    files: Mapping[str, bytes]
    parts: tuple[Part, ...]
    warnings: tuple[str, ...]


def vendor(dependencies: Mapping[str, str], lock: bytes | None) -> Vendored:
    """Resolve {name: version specifier}. Raises Rejected with one line a problem."""
    if not dependencies:
        return Vendored({}, (), ())
    wanted = _requirements(dependencies)
    with tempfile.TemporaryDirectory(prefix="flowctl-wheels-") as place:
        target = Path(place, "target")
        _install(wanted, lock, Path(place), target)
        return Vendored(dict(_files(target)), tuple(_parts(target)), tuple(_unsettled(wanted)))


def kept(dependencies: Mapping[str, str], lock: bytes | None) -> Mapping[str, bytes]:
    """The files of `vendor`, which are fetched once a day and kept in the user's cache: for who
    tries a handler, again and again. Raises Rejected as that."""
    settings = sorted(one for one in os.environ.items() if one[0].startswith("PIP_"))
    asked = [sys.version, sys.platform, sorted(dependencies.items()), settings, str(lock)]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    place = tools.cache() / "wheels"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another one tidies up too
            if time.time() - old.stat().st_mtime > KEPT_S:
                old.unlink()
    with contextlib.suppress(FileNotFoundError), zipfile.ZipFile(place / name) as archive:
        return {one: archive.read(one) for one in archive.namelist()}
    files = vendor(dependencies, lock).files
    fd, incoming = tempfile.mkstemp(dir=place)
    with open(fd, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for one, content in files.items():
            archive.writestr(one, content)
    os.replace(incoming, place / name)
    return files


def _requirements(dependencies: Mapping[str, str]) -> list[Requirement]:
    found, problems = [], []
    for name, specifier in sorted(dependencies.items()):
        try:
            if not _NAME.fullmatch(name):
                raise InvalidRequirement
            one = Requirement(name)
            one.specifier = SpecifierSet("" if specifier == "*" else specifier)
            found.append(one)
        except (InvalidRequirement, InvalidSpecifier):
            why = f"{specifier[:100]!r} is not a version such as ==1.2.3 or >=1,<2"
            problems.append(f"$.dependencies.{name}: {why}")
    if problems:
        raise Rejected("cannot read the dependencies", tuple(problems))
    return found


def _install(wanted: list[Requirement], lock: bytes | None, place: Path, target: Path) -> None:
    arguments = ["install", "--target", str(target), "--only-binary", ":all:", "--no-compile"]
    arguments += ["--ignore-installed", "--no-input", "--disable-pip-version-check", "--quiet"]
    arguments += ["--no-warn-conflicts", "--no-user"]
    if lock is not None:
        (place / LOCK).write_bytes(lock)
        arguments += ["--constraint", str(place / LOCK)]
    done = _pip([*arguments, "--", *map(str, wanted)])
    if done.returncode == 0:
        return
    told = done.stderr
    missing = _NOT_FOUND.search(told)
    if missing:
        raise Rejected(f"cannot get the dependency {missing[1]}: {_why_missing(missing[1])}")
    if "flowmonkey: it wants to run a program" in told:
        why = "one of them would have to be built on this machine; only wheels are used"
        raise Rejected(f"cannot get the dependencies: {why}", tuple(_last_lines(told)))
    if "No module named pip" in told:
        why = "pip is missing; install it (python3 -m ensurepip, or apt install python3-pip)"
        raise Rejected(f"cannot get the dependencies: {why}")
    raise Rejected("cannot get the dependencies: pip says why", tuple(_last_lines(told)))


def _why_missing(requirement: str) -> str:
    """Whether an index has it at all, for the two have different remedies."""
    try:
        name = Requirement(requirement).name
    except InvalidRequirement:
        name = requirement
    known = _pip(["index", "versions", "--disable-pip-version-check", "--no-input", "--", name])
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if known.returncode == 0:
        return (
            f"there is no wheel of that version for {python} on this machine, and sources are "
            "never built; ask for another version, or give pip a wheel with PIP_FIND_LINKS"
        )
    return "the package index has no such version; check its name and version"


def _pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # From the user's settings: where the indexes are. Not: what may be built, where it goes.
    environ = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    command = [sys.executable, "-c", _PIP, *arguments]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            stdin=subprocess.DEVNULL,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        why = f"pip did not finish within {DOWNLOAD_TIMEOUT_S} seconds"
        raise Rejected(f"cannot get the dependencies: {why}; try again") from None


def _last_lines(told: str) -> list[str]:
    lines = [line.strip() for line in told.splitlines() if line.strip().startswith("ERROR")]
    return [line.removeprefix("ERROR: ") for line in lines[-10:]]


def _files(target: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        first, _, rest = name.partition("/")
        if path.is_symlink() or not path.is_file():
            continue
        if first == "bin" or "__pycache__" in name.split("/") or name.endswith((".pyc", ".pyo")):
            continue
        if first.endswith(".dist-info") and rest in _LOCAL_FILES:
            continue
        yield name, path.read_bytes()


def _parts(target: Path) -> Iterator[Part]:
    for path in sorted(target.glob("*.dist-info/METADATA")):
        said = BytesParser().parsebytes(path.read_bytes(), headersonly=True)
        yield Part("pypi", str(said["Name"]), str(said["Version"]), _license(said))


def _license(said: Message) -> str | None:
    """PEP 639's expression, else the old field if it is short, else the classifiers."""
    expression, old = said.get("License-Expression"), said.get("License")
    if expression:
        return str(expression)
    if old and len(str(old)) <= 100 and "\n" not in str(old) and str(old) != "UNKNOWN":
        return str(old)
    trove = [str(one) for one in said.get_all("Classifier", []) if str(one).startswith("License")]
    return ", ".join(one.rpartition(" :: ")[2] for one in trove) or None


def _unsettled(wanted: list[Requirement]) -> Iterator[str]:
    for one in wanted:
        if not _SETTLED.fullmatch(str(one.specifier)):
            yield (
                f"$.dependencies.{one.name}: {str(one.specifier) or 'any'} may be another version "
                f"on another day; == one version, or write a {LOCK}"
            )
