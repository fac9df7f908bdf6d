"""Pydantic's findings as our problems: JSON paths, and words that name the fix."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError

from flowmonkeyd.errors import Problem

__all__ = ["json_path", "problems_of"]

_WORDS = {
    "extra_forbidden": "unknown field; remove it or check its spelling",
    "missing": "is required",
    "union_tag_not_found": "needs a type: key, keys, path, template, full or static",
    "union_tag_invalid": "has a type that is none of key, keys, path, template, full, static",
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")


def problems_of(error: ValidationError, root: str = "$") -> tuple[Problem, ...]:
    """Every finding as a problem below `root`, in the document's order."""
    return tuple(
        Problem(
            root + json_path(_without_tags(found["loc"], found["type"]))[1:],
            _words(found["type"], found["msg"]),
        )
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    )


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


def _without_tags(parts: tuple[str | int, ...], kind: str) -> list[str | int]:
    """Pydantic puts the tag of a discriminated union into the path after the field `input`."""
    kept: list[str | int] = []
    for number, part in enumerate(parts):
        tag = number > 0 and parts[number - 1] == "input" and part in _TAGS
        if not tag and part != "[key]":
            kept.append(part)
    return kept


_TAGS = frozenset({"key", "keys", "path", "template", "full", "static"})


def _words(kind: str, message: str) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "string_pattern_mismatch":
        return "has a form that is not allowed: " + message[:1].lower() + message[1:]
    return message if kind == "value_error" else f"should be {message[:1].lower()}{message[1:]}"
