"""What users write, read on this side: the one file that imports `flowmonkeyd.documents`.

The import is inside the functions: it brings pydantic, which a list must not wait for. Whatever
is wrong with a document becomes Rejected with one line a problem, `path: message`.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from flowctl.problems import Rejected

__all__ = [
    "Edge",
    "bare_manifest",
    "check",
    "edges",
    "files_of",
    "pack",
    "package_of",
    "read_all",
    "refusals",
]

Edge = tuple[str, str, str | None]

# What version control and Python leave in a folder; never part of a handler.
_LEFT_OUT = frozenset(
    {"__pycache__", ".git", ".hg", ".svn", ".bzr", "CVS"}
    | {".gitignore", ".gitattributes", ".gitmodules", ".hgignore", ".hgtags"}
)
_NPM_LINKS = ".bin"  # in node_modules: links to programs, which no handler can start
PACKAGE_MAX_BYTES = 256 * 1024 * 1024  # held in memory here; the daemon's own limit is lower


def read_all(files: tuple[str, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    """The documents of all files in order, each with a name for messages; `-` is stdin.

    Raises Rejected for a file that cannot be read or is neither JSON nor YAML.
    """
    from flowmonkeyd.documents.flow import parse_documents

    found: list[tuple[str, Mapping[str, Any]]] = []
    for file in files:
        name = "stdin" if file == "-" else file
        text = _text(file, name)
        with refusals(name):
            documents = parse_documents(text)
        if not documents:
            raise Rejected(f"cannot read {name}: it has no document")
        many = len(documents) > 1
        found += [
            (f"{name}[{number}]" if many else name, document)
            for number, document in enumerate(documents)
        ]
    return found


def check(name: str, document: Mapping[str, Any]) -> tuple[str, list[str]]:
    """`ID@VERSION` of a valid flow and its warnings. Raises Rejected with every problem."""
    from flowmonkeyd.documents.flow import parse_flow

    with refusals(name):
        flow, warnings = parse_flow(document)
    return f"{flow.id}@{flow.version}", [f"{w.path}: {w.message}" for w in warnings]


def edges(name: str, document: Mapping[str, Any]) -> list[Edge]:
    """(from, label, to) of every way through a flow; `to` is None where it ends.

    A label is success, failure, resume, default, a condition in words, or a case.
    """
    from flowmonkeyd.documents.flow import edges as edges_of
    from flowmonkeyd.documents.flow import parse_flow

    with refusals(name):
        flow, _ = parse_flow(document)
    return [
        (start, _label(flow.steps[start].config, label), end)
        for start, label, end in edges_of(flow)
    ]


def package_of(path: str) -> bytes:
    """The package that is to be sent: a built file as it is, or what `pack` makes of a folder."""
    if os.path.isdir(path):
        return pack(path)
    try:
        with open(path, "rb") as stream:
            data = stream.read(PACKAGE_MAX_BYTES + 1)
    except OSError as exc:
        raise Rejected(f"cannot read {path}: {(exc.strerror or str(exc)).lower()}") from exc
    if len(data) > PACKAGE_MAX_BYTES:
        raise Rejected(f"cannot publish {path}: it has more than {PACKAGE_MAX_BYTES} bytes")
    if not data.startswith(b"PK"):
        raise Rejected(f"cannot publish {path}: it is no package; build one with handler build")
    return data


def pack(
    folder: str,
    made: Mapping[str, bytes] = MappingProxyType({}),
    leave: Callable[[str], bool] = lambda name: False,
) -> bytes:
    """The package (zip) of a handler's folder: its regular files, without leftovers and what
    `leave` says, what was `made` of them, and the authoring library if they import it.

    Raises Rejected for links and special files: what they point to is not in the folder.
    """
    contents = {**dict(files_of(folder, leave)), **made}
    if "handler.json" not in contents:
        raise Rejected(f"cannot pack {folder}: it has no handler.json; name a handler's folder")
    if not made and (file := _unbuilt(contents)) is not None:
        raise Rejected(
            f"cannot publish {folder}: {file} has to be made of its TypeScript; run flowctl "
            f"handler build {folder} -o FILE.afh and publish that"
        )
    from flowctl.vendor import vendored
    from flowmonkeyd.documents.archive import pack_files

    with refusals(folder):
        return pack_files(vendored(contents))


def _unbuilt(contents: Mapping[str, bytes]) -> str | None:
    """The file that a handler begins in, where only the TypeScript is there that makes it."""
    try:
        entrypoint = json.loads(contents["handler.json"])["handler"]["entrypoint"]
        file = entrypoint.rpartition(":")[0]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # what reads the manifest tells
    stem = file.rpartition(".")[0]
    is_there = any(f"{stem}{end}" in contents for end in (".ts", ".mts", ".cts", ".tsx"))
    return file if is_there and file not in contents else None


def bare_manifest(folder: str) -> bytes:
    """A folder's handler.json with what says how to load it, and nothing else. Raises Rejected."""
    from flowmonkeyd.documents.manifest import parse_manifest

    manifest_file = os.path.join(folder, "handler.json")
    with refusals(folder):
        manifest = parse_manifest(_text(manifest_file, manifest_file))
    said = {"type": manifest.type, "version": manifest.version, "runtime": manifest.runtime}
    return json.dumps({"handler": {**said, "entrypoint": manifest.entrypoint}}).encode()


def _label(config: Mapping[str, Any], label: str) -> str:
    """A condition as it reads rather than where it stands in the document."""
    if not label.startswith("conditions["):
        return label.removeprefix("cases.")
    condition = config["conditions"][int(label[len("conditions[") : label.index("]")])]
    words = [condition["path"], condition["op"]]
    if "value" in condition:
        words.append(json.dumps(condition["value"], ensure_ascii=False))
    return " ".join(words)


def _text(file: str, name: str) -> str:
    try:
        if file == "-":
            return sys.stdin.buffer.read().decode()
        with open(file, encoding="utf-8") as stream:
            return stream.read()
    except UnicodeDecodeError as exc:
        raise Rejected(f"cannot read {name}: it is not UTF-8 (byte {exc.start})") from exc
    except OSError as exc:
        raise Rejected(f"cannot read {name}: {(exc.strerror or str(exc)).lower()}") from exc


def files_of(
    folder: str, leave: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, bytes]]:
    """The files of a handler's folder: relative name and content. Raises Rejected for links.

    Without what version control, Python and npm leave there, and what `leave` says of a file's or a
    folder's own name.
    """
    size = 0
    for place, folders, names in os.walk(folder, onerror=_cannot_list):
        left_out = (
            _LEFT_OUT | {_NPM_LINKS} if os.path.basename(place) == "node_modules" else _LEFT_OUT
        )
        folders[:] = sorted(name for name in folders if name not in left_out and not leave(name))
        for name in [*folders, *sorted(names)]:
            if name in _LEFT_OUT or leave(name) or name.endswith((".pyc", ".pyo")):
                continue
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
                raise Rejected(f"cannot pack {path}: it is {kind}; put the file itself there")
            try:
                # a link put there since the look above must not be followed
                with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
                    data = stream.read(PACKAGE_MAX_BYTES - size + 1)
            except OSError as exc:
                raise Rejected(f"cannot read {path}: {(exc.strerror or '').lower()}") from exc
            size += len(data)
            if size > PACKAGE_MAX_BYTES:
                raise Rejected(f"cannot pack {folder}: it has more than {PACKAGE_MAX_BYTES} bytes")
            yield os.path.relpath(path, folder), data


def _cannot_list(exc: OSError) -> None:
    raise Rejected(f"cannot read {exc.filename}: {(exc.strerror or '').lower()}") from exc


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turn the documents' refusal, known by its `problems`, into ours: a line for each problem."""
    try:
        yield
    except Exception as exc:
        problems = getattr(exc, "problems", None)
        if problems is None:
            raise
        lines = tuple(f"{problem.path}: {problem.message}" for problem in problems)
        raise Rejected(f"{name}: {exc}", lines) from exc
