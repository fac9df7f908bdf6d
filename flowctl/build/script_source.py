"""JavaScript and TypeScript: types checked, stripped, bundled into one file by esbuild.

The work is done by the programs in the folder `node`; here is what goes in and what comes out.
npm's packages come from the handler's package-lock.json, and none of their scripts is run. The same
sources make the same bundle, wherever they are.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowctl.build import tools
from flowctl.build.scan import Planted
from flowctl.build.wheels import Part
from flowctl.problems import Rejected

__all__ = [
    "_IN_IMAGES",
    "Bundle",
    "bundle",
    "is_source",
    "resolved_entry",
    "transpiled",
    "with_tools",
]

SOURCES = (".ts", ".mts", ".cts", ".tsx", ".js", ".mjs", ".cjs", ".jsx")
# The oldest Node that the sandbox runs.
TARGET = "node20"
BUILD_TIMEOUT_S = 300
PROBLEMS_MAX = 100
_ESBUILD_ERROR = re.compile(r"\[ERROR\] (.*)\n\n    (.+?):(\d+):\d+:")
_DECLARATIONS = (".d.ts", ".d.mts", ".d.cts")
# What a handler's entry is built from, by what it is called where it runs.
_FROM = {".js": (".ts", ".tsx", ".jsx"), ".mjs": (".mts", ".ts"), ".cjs": (".cts", ".ts")}
# Packages of npm that images of stateful handlers have in /node_modules.
_IN_IMAGES = ("puppeteer", "sharp")
_TO = {".ts": ".js", ".tsx": ".js", ".jsx": ".js", ".mts": ".mjs", ".cts": ".cjs"}


@dataclass(frozen=True, slots=True)
class Bundle:
    """One file to run; `stripped` are the handler's own sources as they went into it. `asked` is
    the same with flowmonkey left outside, or None where nothing imports that."""

    code: bytes
    asked: bytes | None
    stripped: Mapping[str, bytes]
    planted: tuple[Planted, ...]
    parts: tuple[Part, ...]
    warnings: tuple[str, ...]


def is_source(name: str) -> bool:
    """Whether a file is code, which a bundle contains."""
    return name.endswith(SOURCES)


def resolved_entry(file: str, files: Mapping[str, bytes]) -> tuple[str, str]:
    """The file that an entrypoint begins in, and what it is called once it is built."""
    stem, dot, end = file.rpartition(".")
    suffix = dot + end
    if suffix in _TO:
        return file, stem + _TO[suffix]
    if file not in files:
        for source in _FROM.get(suffix, ()):
            if stem + source in files:
                return stem + source, file
    return file, file


def with_tools(document: dict[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """handler.json with those of a stateful handler's dependencies as its tools that its image has
    and no bundle can contain: they bring programs along. Parts of the wrong shape stay as they are.
    """
    handler, execution = document.get("handler"), document.get("execution", {})
    if not isinstance(handler, dict) or not isinstance(execution, dict):
        return document
    if handler.get("runtime") != "node" or handler.get("stateful") is not True:
        return document
    named = json.loads(files.get("package.json", b"{}")).get("dependencies") or {}
    tools = execution.get("tools") or []
    more = [one for one in _IN_IMAGES if one in named and one not in tools]
    if not more or not isinstance(tools, list):
        return document
    return document | {"execution": execution | {"tools": [*tools, *more]}}


def bundle(
    entry: str,
    out: str,
    files: Mapping[str, bytes],
    library: Path,
    outside: Collection[str] = (),
) -> Bundle:
    """Bundle from the file `entry` to one called `out`. Raises Rejected with every problem.

    `library` is the folder of flowmonkey's JavaScript; packages `outside` are not bundled: the
    image has them.
    """
    with tempfile.TemporaryDirectory(prefix="flowctl-bundle-") as made:
        place = Path(made).resolve()
        _write(files, place / "sources")
        _write(files, place / "stripped")
        if json.loads(files.get("package.json", b"{}")).get("dependencies"):
            _install(place)
        sources = sorted(n for n in files if is_source(n) and not n.endswith(_DECLARATIONS))
        declared = sorted(n for n in files if n.endswith(_DECLARATIONS))
        answer = _run(
            {
                "folder": str(place / "sources"),
                "stripped": str(place / "stripped"),
                "sources": [*sources, *declared],
                "entry": entry,
                "out": out,
                "library": str(library),
                "target": TARGET,
                "outside": [one for one in _IN_IMAGES if one in outside],
            }
        )
        if answer["problems"]:
            raise Rejected("cannot build the handler", tuple(_told(answer["problems"])))
        return Bundle(
            answer["bundle"].encode(),
            answer["asked"].encode() if "asked" in answer else None,
            {name: text.encode() for name, text in answer["stripped"].items()},
            tuple(Planted(one["file"], one["line"], one["text"]) for one in answer["values"]),
            tuple(_parts(answer["inputs"], place / "stripped")),
            tuple(_told(answer["warnings"])),
        )


def transpiled(folder: str, entry: str, out: str) -> bytes:
    """The file `entry` of a folder as one to run, called `out`, with nothing taken out of it and
    flowmonkey left outside; its types are not checked. Raises Rejected with what is wrong."""
    form = "esm" if out.endswith(".mjs") else "cjs"
    options = [f"--target={TARGET}", f"--format={form}", "--log-level=error", "--charset=utf8"]
    options += ["--bundle", "--platform=node", "--external:flowmonkey", "--sourcemap=inline"]
    # The program itself: what npm puts before it is Node, for another tenth of a second.
    program = next(tools.install().glob("node_modules/@esbuild/*/bin/esbuild"))
    done = subprocess.run(
        [program, entry, *options],
        cwd=folder,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=BUILD_TIMEOUT_S,
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace")
        found = _ESBUILD_ERROR.findall(said)
        lines = [f"{file}:{line}: {why}" for why, file, line in found] or said.splitlines()
        raise Rejected(f"cannot compile {entry}", tuple(lines[:PROBLEMS_MAX]))
    return done.stdout


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _install(place: Path) -> None:
    if not (place / "stripped/package-lock.json").exists():
        raise Rejected(
            "cannot get the dependencies: package.json has some and there is no "
            "package-lock.json; make it with npm install --package-lock-only"
        )
    tools.npm_ci(place / "stripped", "the dependencies")
    (place / "sources/node_modules").symlink_to(place / "stripped/node_modules")


def _run(request: Mapping[str, Any]) -> dict[str, Any]:
    program = [str(tools.SCRIPTS / "build.cjs"), str(tools.install()), json.dumps(request)]
    try:
        done = subprocess.run(
            tools.node(program),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        why = f"it did not finish within {BUILD_TIMEOUT_S} seconds"
        raise Rejected(f"cannot build the handler: {why}") from None
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Rejected("cannot build the handler: the build tool failed", tuple(lines[-10:]))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _told(problems: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    known = dict.fromkeys(f"{one['file']}:{one['line']}: {one['message']}" for one in problems)
    yield from list(known)[:PROBLEMS_MAX]


def _parts(inputs: Iterable[str], stripped: Path) -> Iterator[Part]:
    """The packages of npm that files of the bundle came from."""
    folders = set[Path]()
    for name in inputs:
        before, found, after = name.rpartition("node_modules/")
        if found:
            depth = 2 if after.startswith("@") else 1
            folders.add(Path(before, "node_modules", *after.split("/")[:depth]))
    for folder in sorted(folders):
        said = json.loads((stripped / folder / "package.json").read_bytes())
        license = said.get("license")
        text = license if isinstance(license, str) else None
        yield Part("npm", str(said["name"]), str(said["version"]), text)
