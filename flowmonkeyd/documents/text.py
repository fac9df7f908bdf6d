"""JSON and YAML text to plain JSON values, with line and column where it cannot be read.

YAML is read with the safe loader of PyYAML cut down to JSON: no dates, no tags, no anchors (an
alias can make a small text enormous), no duplicate keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowmonkeyd import jsontext
from flowmonkeyd.errors import Invalid, Problem

if TYPE_CHECKING:
    import yaml

__all__ = ["parse_documents", "parse_text"]

# Deeper than any flow; a text of brackets ends here and not in the C stack.
DEPTH_MAX = 64
TEXT_BYTES_MAX = 4 * 1024 * 1024
_TAGS = frozenset(
    {"map", "seq", "str", "timestamp", "merge", "value", "null", "bool", "int", "float"}
)


def parse_text(text: str | bytes) -> Mapping[str, Any]:
    """The one object in a JSON or YAML text. Raises Invalid with line and column."""
    documents = parse_documents(text)
    if len(documents) != 1:
        raise _unreadable(f"expected one document and found {len(documents)}")
    return documents[0]


def parse_documents(text: str | bytes) -> list[Mapping[str, Any]]:
    """Every document in a JSON or YAML text; each must be an object."""
    if len(text) > TEXT_BYTES_MAX:
        raise _unreadable(f"the text is longer than {TEXT_BYTES_MAX} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as exc:
            raise _unreadable(f"byte {exc.start} is not UTF-8") from None
    if text.lstrip().startswith(("{", "[")):
        try:
            values = [jsontext.loads(text)]
        except ValueError as exc:
            values = _yaml(text, str(exc))
    else:
        values = _yaml(text, None)
    for value in values:
        if not isinstance(value, dict):
            raise _unreadable(f"expected an object and found {type(value).__name__}")
    return values


def _yaml(text: str, json_problem: str | None) -> list[Any]:
    """YAML's flow style is JSON and more; a text that is neither is told as what it looks like."""
    import yaml

    try:
        return [
            _Builder().value(node, 0)
            for node in yaml.compose_all(text, Loader=yaml.CSafeLoader)
            if node is not None
        ]
    except (yaml.YAMLError, RecursionError) as exc:
        if json_problem is not None:
            raise _unreadable(f"not JSON: {json_problem}") from None
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        what = getattr(exc, "problem", None) or str(exc) or "nested too deeply"
        raise _unreadable(f"not YAML: {what}{where}") from None


class _Builder:
    """Nodes of PyYAML to JSON values, refusing what JSON has not."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, depth: int) -> Any:
        import yaml

        if depth > DEPTH_MAX:
            raise self._bad(node, f"nested deeper than {DEPTH_MAX} levels")
        if id(node) in self._seen:
            raise self._bad(node, "anchors and aliases are not supported; write the value out")
        self._seen.add(id(node))
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise self._bad(node, f"the tag {node.tag} is not supported")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise self._bad(key_node, "a key must be text")
            if key in result:
                raise self._bad(key_node, f"the key {key!r} stands twice")
            result[key] = self.value(value_node, depth + 1)
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        tag, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        if tag in ("str", "timestamp", "merge", "value"):
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() in ("true", "yes", "on")
        if tag in ("int", "float"):
            try:
                return jsontext.loads(text.replace("_", ""))
            except ValueError:
                return self._number(node, tag, text)
        raise self._bad(node, f"{text!r} is not what its tag {node.tag} says")

    def _number(self, node: yaml.Node, tag: str, text: str) -> Any:
        try:
            value = int(text, 0) if tag == "int" else float(text)
        except ValueError:
            raise self._bad(node, f"{text!r} is not a number that JSON has") from None
        if value != value or value in (float("inf"), float("-inf")):
            raise self._bad(node, f"{text!r} is not a number that JSON has")
        return value

    @staticmethod
    def _bad(node: yaml.Node, problem: str) -> yaml.YAMLError:
        import yaml

        return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unreadable(what: str) -> Invalid:
    return Invalid(f"cannot read the document: {what}", problems=(Problem("$", what),))
