"""JSON and YAML text to plain JSON values, with line and column where it cannot be read.

YAML is read as events, which cannot exhaust the stack, and cut down to JSON: no dates, no tags, no
anchors (an alias can make a small text enormous), no duplicate keys. JSON may not have duplicate
keys either: which of them counts would be a guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flowmonkeyd import jsontext
from flowmonkeyd.errors import Invalid, Problem

if TYPE_CHECKING:
    import yaml

__all__ = ["DEPTH_MAX", "not_json", "parse_documents", "parse_json", "parse_text"]

# Deeper than any flow or manifest; everything that walks a document may recurse this far.
DEPTH_MAX = 64
TEXT_BYTES_MAX = 4 * 1024 * 1024
DOCUMENTS_MAX = 1000
# `{a: 1}` is YAML; what begins as JSON must be JSON to its end.
_LIKE_JSON = re.compile(r"\s*(\{\s*[\"}]|\{\s*$|\[)")


def parse_text(text: str | bytes) -> Mapping[str, Any]:
    """The one object in a JSON or YAML text. Raises Invalid with line and column."""
    documents = parse_documents(text)
    if len(documents) != 1:
        raise _unreadable(f"expected one document and found {len(documents)}")
    return documents[0]


def parse_json(text: str | bytes) -> Mapping[str, Any]:
    """The one object in a JSON text; YAML is refused. Raises Invalid with line and column."""
    return _object(_json(_decoded(text)))


def parse_documents(text: str | bytes) -> list[Mapping[str, Any]]:
    """Every document in a JSON or YAML text; each must be an object."""
    text = _decoded(text)
    values = [_json(text)] if _LIKE_JSON.match(text) else _yaml(text)
    return [_object(value) for value in values]


def _decoded(text: str | bytes) -> str:
    if len(text) > TEXT_BYTES_MAX:
        raise _unreadable(f"the text is longer than {TEXT_BYTES_MAX} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as exc:
            raise _unreadable(f"byte {exc.start} is not UTF-8") from None
    return text.removeprefix("\ufeff")


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _unreadable(f"expected an object and found {_kind(value)}")
    problem = not_json(value)
    if problem is not None:
        raise Invalid(f"cannot read the document: {problem.message}", problems=(problem,))
    return value


def not_json(value: Any, path: str = "$", depth: int = 0) -> Problem | None:
    """The first thing in a value that JSON text between programs cannot hold, None for none."""
    if depth > DEPTH_MAX:
        return Problem(path, f"nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                return Problem(path, f"the key {key!r} is not text")
            found = _bad_text(key, path) or not_json(member, f"{path}.{key}", depth + 1)
            if found is not None:
                return found
    elif isinstance(value, list):
        for number, item in enumerate(value):
            found = not_json(item, f"{path}[{number}]", depth + 1)
            if found is not None:
                return found
    elif isinstance(value, str):
        return _bad_text(value, path)
    elif isinstance(value, float):
        return None if math.isfinite(value) else Problem(path, f"{value} is not a JSON number")
    elif value is not None and not isinstance(value, int):
        return Problem(path, f"a {type(value).__name__} is not a JSON value")
    return None


def _bad_text(text: str, path: str) -> Problem | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return Problem(path, "the text has half of a surrogate pair")
    return None


def _json(text: str) -> Any:
    try:
        jsontext.loads(text)
    except ValueError as exc:
        raise _unreadable(f"not JSON: {exc}") from None
    try:
        # jsontext is strict and tells line and column; only this parser shows duplicate keys.
        return json.loads(text, object_pairs_hook=_members)
    except ValueError as exc:
        raise _unreadable(str(exc)) from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return members


def _yaml(text: str) -> Iterator[Any]:
    import yaml

    try:
        loader = yaml.CSafeLoader(text)
        try:
            yield from _Events(loader).documents()
        finally:
            loader.dispose()
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        what = getattr(exc, "problem", None) or str(exc).partition("\n")[0]
        raise _unreadable(f"not YAML: {what}{where}") from None


class _Events:
    """PyYAML's events to JSON values. Its own composer recurses in C without a limit."""

    def __init__(self, loader: yaml.CSafeLoader) -> None:
        self._loader = loader

    def _next(self) -> Any:
        return self._loader.get_event()

    def documents(self) -> Iterator[Any]:
        import yaml

        count = 0
        while True:
            event = self._next()
            if event is None or isinstance(event, yaml.StreamEndEvent):
                return
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > DOCUMENTS_MAX:
                    raise _bad(event, f"more than {DOCUMENTS_MAX} documents")
                first = self._next()
                empty = isinstance(first, yaml.ScalarEvent) and not first.value
                if not (empty and first.start_mark.index == first.end_mark.index):
                    yield self._value(first, 0)

    def _value(self, event: Any, depth: int) -> Any:
        import yaml

        if depth > DEPTH_MAX:
            raise _bad(event, f"nested deeper than {DEPTH_MAX} levels")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _bad(event, "anchors and aliases are not supported; write the value out")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if event.tag not in (None, "!"):
            raise _bad(event, f"the tag {event.tag} is not supported")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := self._next(), yaml.SequenceEndEvent):
                items.append(self._value(event, depth + 1))
            return items
        return self._mapping(depth)

    def _mapping(self, depth: int) -> dict[str, Any]:
        import yaml

        members: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None:
                raise _bad(event, "a key must be text")
            if event.value in members:
                raise _bad(event, f"the key {event.value!r} stands twice")
            members[event.value] = self._value(self._next(), depth + 1)
        return members

    def _scalar(self, event: Any) -> Any:
        import yaml

        tag = event.tag
        if tag in (None, "!"):
            resolve: Any = self._loader.resolve
            tag = resolve(yaml.ScalarNode, event.value, event.implicit)
        tag, text = tag.removeprefix("tag:yaml.org,2002:"), event.value
        if tag in ("str", "timestamp", "merge", "value"):
            return text
        if tag == "null":
            return None
        if tag == "bool" and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if tag in ("int", "float"):
            return _number(event, text)
        raise _bad(event, f"the tag {event.tag} is not supported")


_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _number(event: Any, text: str) -> int | float:
    """A number that reads the same to everyone: `010` is 8 to some, `1:30` is 90."""
    plain = text.replace("_", "").removeprefix("+")
    try:
        if plain.lower().startswith("0x"):
            plain = str(int(plain, 16))  # ValueError beyond what Python writes in decimal
        if plain.startswith(".") and plain[1:2].isdigit():
            plain = "0" + plain
        value = jsontext.loads(plain.removesuffix(".") if plain[-2:-1].isdigit() else plain)
    except ValueError:
        value = None
    if not isinstance(value, int | float):
        raise _bad(event, f"{text[:40]!r} is not a plain number; put it in quotes if it is text")
    return value


def _bad(event: Any, problem: str) -> yaml.YAMLError:
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _unreadable(what: str) -> Invalid:
    return Invalid(f"cannot read the document: {what}", problems=(Problem("$", what),))
