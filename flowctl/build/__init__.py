"""Makes a package (.afh) of a handler's folder, so that the same folder makes the same bytes.

What is for development only is taken out, JavaScript is bundled, Python's dependencies come in from
wheels, everything is listed with its SHA-256 and in an SBOM, and what was made is searched for
secrets. It runs no line of the handler outside the sandbox, nor of what it depends on, and writes
into no folder but temporary ones and the cache of its tools.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowctl import vendor
from flowctl.build import python_source, script_source, wheels
from flowctl.build.sbom import SBOM, sbom
from flowctl.build.scan import Finding, Planted, findings, survivors
from flowctl.build.wheels import Part
from flowctl.documents import files_of, refusals
from flowctl.problems import Rejected
from flowmonkey.rules import faults
from flowmonkeyd import __version__
from flowmonkeyd.documents import archive
from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.documents.text import parse_json

__all__ = ["Built", "Finding", "build", "written"]

# What authors have beside a handler and nobody needs where it runs.
_LEFT_OUT = {"test", "tests", "__tests__", "node_modules", "venv", "coverage"}
_LEFT_OUT |= {"conftest.py", "pyproject.toml", "pytest.ini", "requirements.txt"}
# What says how to build, and is not packed.
_DIRECTIONS = {wheels.LOCK, "package.json", "package-lock.json", "tsconfig.json"}


@dataclass(frozen=True, slots=True)
class Built:
    """A package: `data` are the bytes of the .afh, `digest` its content's, `files` name to size.
    `allowed` are the findings that a given fingerprint let pass."""

    data: bytes
    manifest: Manifest
    digest: str
    files: Mapping[str, int]
    allowed: tuple[Finding, ...]
    warnings: tuple[str, ...]


@dataclass(slots=True)
class _Made:
    """What goes into the package beside handler.json and the SBOM. `own` is what is searched for
    secrets; `bundles` are its names with others' code. `asked` is run to say what it declares."""

    files: dict[str, bytes]
    own: dict[str, bytes]
    bundles: tuple[str, ...] = ()
    asked: dict[str, bytes] = field(default_factory=dict)
    planted: tuple[Planted, ...] = ()
    parts: tuple[Part, ...] = ()
    warnings: tuple[str, ...] = ()


def build(folder: Path, *, allow: Collection[str] = ()) -> Built:
    """Build the handler in a folder. Raises Rejected with every problem found, NotReady where its
    class cannot be asked, in the sandbox, what it declares.

    `allow` holds fingerprints of findings that somebody looked at.
    """
    files = dict(files_of(str(folder), _is_left_out))
    name = str(folder)
    document = _document(files, name)
    start, document = _entered(document, files)
    with refusals(name):
        document = script_source.with_tools(document, files)
        manifest = parse_manifest(document)
    problems = [
        f"$.inputs[{index}]: {fault}"
        for index, declared in enumerate(document.get("inputs", ()))
        for fault in faults(declared)
    ]
    if start not in files:
        problems.append(f"$.handler.entrypoint: there is no file {start!r}")
    if problems:
        raise Rejected(f"cannot build {name}: {MANIFEST} is not right", tuple(problems))
    with refusals(name):
        if manifest.runtime == "node":
            made = _made_of_scripts(start, manifest, files)
        else:
            made = _made_of_python(manifest, files)
    _declare(document, made, name)
    own = {**made.own, MANIFEST: _json(document)}
    found = [*findings(own, made.bundles), *survivors(own, made.planted)]
    blocking = [one for one in found if one.fingerprint not in allow]
    if blocking:
        raise Rejected(
            f"cannot build {name}: it may contain secrets; take them out, or let one pass that you "
            "looked at with --allow and its fingerprint",
            tuple(f"{f.file}:{f.line}: {f.kind} (fingerprint {f.fingerprint})" for f in blocking),
        )
    stale = sorted(set(allow) - {one.fingerprint for one in found})
    made.warnings += tuple(f"--allow {one}: nothing has this fingerprint" for one in stale)
    return _packed(document, made, name, tuple(found))


def written(built: Built, file: str) -> None:
    """Write a package to a file, whole or not at all. Raises Rejected where that cannot be done."""
    incoming = f"{file}.incoming"
    try:
        Path(incoming).write_bytes(built.data)
        os.replace(incoming, file)
    except OSError as exc:
        Path(incoming).unlink(missing_ok=True)
        raise Rejected(f"cannot write {file}: {(exc.strerror or str(exc)).lower()}") from exc


def _is_left_out(name: str) -> bool:
    stem, _, end = name.rpartition(".")
    is_test = end in ("py", "js", "cjs", "mjs", "ts", "cts", "mts") and (
        stem.startswith("test_") or stem.endswith(("_test", ".test", ".spec"))
    )
    return name.startswith(".") or name in _LEFT_OUT or name.endswith(".afh") or is_test


def _document(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if MANIFEST not in files:
        raise Rejected(f"cannot build {name}: it has no {MANIFEST}; name a handler's folder")
    with refusals(name):
        document = dict(parse_json(files[MANIFEST]))
    for mine, where in (("package", "$.package"), (SIGNATURE, SIGNATURE), (SBOM, SBOM)):
        if mine in document or mine in files:
            raise Rejected(f"cannot build {name}: {where} is made by the build; take it out")
    return document


def _entered(document: dict[str, Any], files: Mapping[str, bytes]) -> tuple[str, dict[str, Any]]:
    """The file that the handler begins in, and handler.json with what it will be called."""
    handler = document.get("handler")
    entrypoint = handler.get("entrypoint") if isinstance(handler, dict) else None
    if not isinstance(handler, dict) or not isinstance(entrypoint, str):
        return "handler.py", document
    file, colon, name = entrypoint.rpartition(":")
    if handler.get("runtime") != "node" or not colon:
        return file, document
    start, built = script_source.resolved_entry(file, files)
    return start, document | {"handler": handler | {"entrypoint": f"{built}:{name}"}}


def _made_of_python(manifest: Manifest, files: Mapping[str, bytes]) -> _Made:
    own = {name: data for name, data in files.items() if name not in _DIRECTIONS | {MANIFEST}}
    uses = any(python_source.imports_library(own[n]) for n in own if n.endswith(".py"))
    planted, problems = [], []
    for name in sorted(own):
        if name.endswith(".py"):
            stripped = python_source.strip(own[name], uses)
            own[name] = stripped.source
            planted += [Planted(name, one.line, one.text) for one in stripped.values]
            problems += [f"{name}:{line}: {why}" for line, why in stripped.problems]
            problems += _not_python(name, own[name])
    if problems:
        raise Rejected("cannot build the handler", tuple(dict.fromkeys(problems)))
    got = wheels.vendor(manifest.dependencies, files.get(wheels.LOCK))
    for name, source in got.files.items():
        problems += _not_python(name, source) if name.endswith(".py") else []
    if problems:  # a daemon would not take them
        raise Rejected("cannot use the dependencies", tuple(problems))
    both = sorted({n.partition("/")[0] for n in own} & {n.partition("/")[0] for n in got.files})
    if both:
        why = f"{both[0]!r} is in the folder and comes with a dependency too; rename it"
        raise Rejected(f"cannot build the handler: {why}")
    whole = {**own, **got.files}
    parts = got.parts
    if uses:
        whole = vendor.vendored(whole)
        parts += (_LIBRARY_PART,)
    asked = whole if uses else {}
    return _Made(whole, own, (), asked, tuple(planted), parts, got.warnings)


def _not_python(name: str, source: bytes) -> list[str]:
    try:
        compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as exc:
        return [f"{name}:{exc.lineno or 1}: is not Python: {exc.msg}"]
    except (ValueError, RecursionError, MemoryError):
        return [f"{name}:1: is not Python, or nested too deeply"]
    return []


def _made_of_scripts(start: str, manifest: Manifest, files: Mapping[str, bytes]) -> _Made:
    if manifest.dependencies:
        why = "for node, list them in package.json, with a package-lock.json"
        raise Rejected(f"cannot build the handler: $.dependencies: {why}")
    out = manifest.entrypoint.rpartition(":")[0]
    code = {n: d for n, d in files.items() if script_source.is_source(n) or n in _DIRECTIONS}
    other = {n: d for n, d in files.items() if n not in code and n != MANIFEST}
    outside = manifest.stateful.tools if manifest.stateful is not None else ()
    got = script_source.bundle(start, out, other | code, vendor.library() / "node", outside)
    asked = {**other, out: got.asked} if got.asked is not None else {}
    own = {**other, **got.stripped, out: got.code}
    parts = got.parts if got.asked is None else (*got.parts, _LIBRARY_PART)
    made = _Made({**other, out: got.code}, own, (out,), asked, got.planted, parts, got.warnings)
    if out in got.stripped:
        # The source of the same name is searched too, beside the bundle that takes its place.
        made.own[f"{out} (bundled)"] = got.code
        made.own[out], made.bundles = got.stripped[out], (f"{out} (bundled)",)
    return made


_LIBRARY_PART = Part("generic", "flowmonkey", __version__, "MIT")


def _declare(document: dict[str, Any], made: _Made, name: str) -> None:
    """Write into handler.json what the handler's class declares."""
    if not made.asked:
        return
    from flowctl.trial import describe

    # Its dependencies are there already.
    alone = {name: value for name, value in document.items() if name != "dependencies"}
    with TemporaryDirectory(prefix="flowctl-asked-") as place:
        for file, content in {**made.asked, MANIFEST: _json(alone)}.items():
            path = Path(place, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        said = describe(place)
    if said.is_class and document.setdefault("inputs", said.inputs) != said.inputs:
        why = "$.inputs is not what the class declares; take it out, it is written by the build"
        raise Rejected(f"cannot build {name}: {why}")
    if said.schemas:
        document.setdefault("schemas", dict(said.schemas))


def _packed(
    document: dict[str, Any], made: _Made, name: str, allowed: tuple[Finding, ...]
) -> Built:
    with refusals(name):
        manifest = parse_manifest(document)
        sources = archive.content_digest({**made.files, MANIFEST: _json(document)})
        files = {**made.files, SBOM: sbom(manifest, made.parts, sources)}
        package = {
            "format": archive.FORMAT,
            "files": archive.listed_files(files),
            "builder": f"flowmonkey/{__version__}",
            "sbom": SBOM,
        }
        files[MANIFEST] = _json({**document, "package": package})
        data = archive.pack_files(files)
        manifest = parse_manifest(files[MANIFEST])
    sizes = {one: len(files[one]) for one in sorted(files)}
    return Built(data, manifest, archive.content_digest(files), sizes, allowed, made.warnings)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
