"""Pydantic's findings as our problems: JSON paths, and words that name the fix.

The words say what was expected and what was found. A value is never quoted, for it may be a secret
that stands in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from flowmonkeyd.errors import Problem

__all__ = ["json_path", "kind_of", "problems_of"]

# What pydantic expected, by its type of finding: https://docs.pydantic.dev/latest/errors/
_EXPECTED = {
    "string_type": "text",
    "string_sub_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_WORDS = {
    "extra_forbidden": "unknown field; remove it or check its spelling",
    "missing": "is required",
    "invalid_key": "has a key that is not text",
    "literal_error": "should be {expected}",
    "greater_than_equal": "should be at least {ge}",
    "greater_than": "should be more than {gt}",
    "less_than_equal": "should be at most {le}",
    "less_than": "should be less than {lt}",
    "string_too_short": "should not be empty",
    "string_too_long": "should have at most {max_length} characters",
    "too_short": "should not be empty",
    "too_long": "should have at most {max_length} members",
    "string_pattern_mismatch": "has a form that is not allowed: it should match {pattern}",
    "union_tag_not_found": "needs a type: key, keys, path, template, full or static",
    "union_tag_invalid": "has a type that is none of {expected_tags}",
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")


def problems_of(error: ValidationError, root: str = "$") -> tuple[Problem, ...]:
    """Every finding as a problem below `root`, in the document's order."""
    found = error.errors(include_url=False)
    return tuple(Problem(root + json_path(_real(one["loc"]))[1:], _words(one)) for one in found)


def json_path(parts: Sequence[str | int]) -> str:
    """`$.steps.a`, `$.items[0]`, `$.steps["odd name"]`."""
    path = "$"
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            path += f".{part}"
        else:
            path += f'["{part}"]'
    return path


def kind_of(value: Any) -> str:
    """What a JSON value is, for people: `null`, `a number`, `an object`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _real(parts: tuple[str | int, ...]) -> list[str | int]:
    """Pydantic puts the choice of a union into the path: the selector's type after
    steps.ID.input, the kind of time or network in a manifest. They are not parts of the
    document."""
    kept: list[str | int] = []
    for number, part in enumerate(parts):
        before = parts[:number]
        choice = (
            number == 3 and before[0] == "steps" and before[2] == "input" and part in _TAGS
        ) or (before in _CHOICES and part in ("number", "boolean", "object"))
        if not choice and part != "[key]":
            kept.append(part)
    return kept


_CHOICES = (("execution", "ttl"), ("execution", "sandbox", "network"))
_TAGS = frozenset({"key", "keys", "path", "template", "full", "static"})


def _words(found: Mapping[str, Any]) -> str:
    kind, message = found["type"], found["msg"]
    if kind in _EXPECTED:
        return f"should be {_EXPECTED[kind]}, not {kind_of(found['input'])}"
    if kind in _WORDS:
        return _WORDS[kind].format_map(found.get("ctx") or {}).replace("'", "")
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return message if kind == "value_error" else f"should be {message[:1].lower()}{message[1:]}"
