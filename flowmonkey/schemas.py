"""JSON Schemas (2020-12) of what a class handler takes and gives.

Owns the way from declarations and annotations to schemas. An output's annotation that says nothing
a schema could say (Any, an answer of `ctx`) becomes the schema that allows everything, never a
wrong one. Used when a package is made, not when it runs.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["DIALECT", "input_schema", "output_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEPTH_MAX = 20  # a TypedDict may contain itself

_PLAIN: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
}
_PLAIN |= {list: "array", type(None): "null", None: "null"}


def input_schema(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of an object with the declarations whose source is `input`."""
    own = [one for one in inputs if one.get("source", "input") == "input"]
    schema: dict[str, Any] = {
        "$schema": DIALECT,
        "type": "object",
        "properties": {one["property"]: _declared(one) for one in own},
    }
    if required := [one["property"] for one in own if one.get("required")]:
        schema["required"] = required
    return schema


def output_schema(
    execute: Callable[..., Any], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The given schema, or that of a function's return annotation."""
    if given is not None:
        return {"$schema": DIALECT, **given}
    annotation = getattr(execute, "__annotations__", {}).get("return", Any)
    names = getattr(execute, "__globals__", {})
    return {"$schema": DIALECT, **_annotated(annotation, names, 0)}


def _declared(declaration: Mapping[str, Any]) -> dict[str, Any]:
    type_ = declaration.get("type", "any")
    schema: dict[str, Any] = {}
    if type_ != "any":
        schema["type"] = (
            [type_, "null"] if declaration.get("nullable") and type_ != "null" else type_
        )
    unit = "Items" if type_ == "array" else "Length"
    names = {"min": "minimum", "max": "maximum", "pattern": "pattern"}
    names |= {"minLength": f"min{unit}", "maxLength": f"max{unit}"}
    names |= {"description": "description", "default": "default"}
    for ours, theirs in names.items():
        if ours in declaration:
            schema[theirs] = declaration[ours]
    if "items" in declaration:
        schema["items"] = _declared(declaration["items"])
    if "enum" in declaration:
        schema["enum"] = list(declaration["enum"]) + [None] * bool(declaration.get("nullable"))
    for rule, form in (("email", "email"), ("url", "uri")):
        if declaration.get(rule):
            schema["format"] = form
    return schema


def _annotated(annotation: Any, names: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The schema of an annotation; {} for what is unknown or nested too deeply."""
    if isinstance(annotation, str | typing.ForwardRef):
        text = annotation if isinstance(annotation, str) else annotation.__forward_arg__
        try:
            annotation = eval(text, dict(names))
        except Exception:
            return {}  # a name that only type checkers see
    if depth > _DEPTH_MAX:
        return {}
    if isinstance(annotation, type | types.NoneType) and annotation in _PLAIN:
        return {"type": _PLAIN[annotation]}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)

    def inner(one: Any) -> dict[str, Any]:
        return _annotated(one, names, depth + 1)

    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        parts = [inner(one) for one in arguments if not _is_answer(one)]
        return {} if {} in parts else parts[0] if len(parts) == 1 else {"anyOf": parts}
    if origin in (list, Sequence):
        items = inner(arguments[0])
        return {"type": "array", **({"items": items} if items else {})}
    if origin in (typing.Required, typing.NotRequired, typing.Annotated):
        return inner(arguments[0])
    if origin in (dict, Mapping):
        values = inner(arguments[1])
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation, depth)
    return {}


def _typed_dict(annotation: Any, depth: int) -> dict[str, Any]:
    names = vars(sys.modules.get(annotation.__module__, typing))
    fields = annotation.__annotations__
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _annotated(field, names, depth + 1) for name, field in fields.items()},
    }
    required = [
        name
        for name, field in fields.items()
        if name in annotation.__required_keys__ and not _is_optional(field)
    ]
    if required:
        schema["required"] = required
    return schema


def _is_optional(field: Any) -> bool:
    """NotRequired within a text, which Python 3.11 does not look into."""
    text = getattr(field, "__forward_arg__", "")
    return text.partition("[")[0].rpartition(".")[2] == "NotRequired"


def _is_answer(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "Answer"
