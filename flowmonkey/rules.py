"""What a declaration asks of a value, and what a declaration itself must be. Pure.

Owns the verdicts and their words. `node/rules.js` is the same in JavaScript: both are held to one
table of cases, so that a handler says the same in either language. A declaration is one entry of
`inputs` in handler.json. A message never quotes the value it is about: it may be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

__all__ = ["MISSING", "described", "faults", "kind", "violations"]

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()

_TYPES = {
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "a boolean",
    "object": "an object",
    "array": "an array",
    "null": "null",
    "any": "anything",
}
_SOURCES = ("input", "config", "context", "vault", "static")
_RULES = {
    "min": ("number", "integer"),
    "max": ("number", "integer"),
    "minLength": ("string", "array"),
    "maxLength": ("string", "array"),
    "pattern": ("string",),
    "email": ("string",),
    "url": ("string",),
    "items": ("array",),
    "enum": ("string", "number", "integer", "boolean", "any"),
}
_ITEM_FIELDS = {"type", "nullable", *_RULES}
_WRONG_ITEMS_MAX = 10  # more of the same helps nobody

# Compiled when first used: importing the library takes 0.5 ms instead of 1.1.
# https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address; RFC 5321, 4.5.3.1.3
_EMAIL_MAX = 254
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_EMAIL = rf"[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*"
# RFC 3986 with an authority: ASCII only, others are percent-encoded or in Punycode.
_URL = (
    r"(?i:https?://(?:[\w.~!$&'()*+,;=:%-]*@)?(?:[\w.~-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?"
    r"(?:[/?#][\w.~!$&'()*+,;=:@%/?#\[\]-]*)?)"
)
_PORT_MAX = 65535


def violations(declaration: Mapping[str, Any], value: Any) -> Iterator[tuple[str, str, str]]:
    """(where, rule, message) for each rule that a value breaks; `where` is "" or an item's "[2]".

    The declaration has no `faults`. MISSING breaks `required` or nothing: a default is not for
    this function to apply, and null is a value like any other.
    """
    if value is MISSING:
        if declaration.get("required"):
            yield "", "required", "is required"
        return
    type_, found = declaration.get("type", "any"), kind(value)
    if found == "null" and (declaration.get("nullable") or type_ == "null"):
        return
    if type_ not in (found, "any") and not (type_ == "number" and found == "integer"):
        words = _TYPES[type_] + (" or null" if declaration.get("nullable") else "")
        yield "", "type", f"must be {words}, not {_found(type_, value)}"
        return
    if found in ("number", "integer"):
        yield from _sizes(declaration, value)
    elif found == "string":
        yield from _lengths(declaration, len(value), "character")
        yield from _texts(declaration, value)
    elif found == "array":
        yield from _lengths(declaration, len(value), "item")
        yield from _items(declaration, value)
    if "enum" in declaration and not any(_same(value, one) for one in declaration["enum"]):
        allowed = ", ".join(map(_shown, declaration["enum"]))
        if declaration.get("secret") or declaration.get("source") == "vault":
            allowed = "the declared values"
        yield "", "enum", f"must be one of {allowed}"


def kind(value: Any) -> str:
    """The narrowest type of a JSON value; 3.0 is an integer, as in JSON Schema."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list | tuple) else "object"


def described(value: Any) -> str:
    """What kind of value it is, in words that quote nothing of it."""
    found = kind(value)
    return _TYPES["number" if found == "integer" else found]


def faults(declaration: Mapping[str, Any]) -> list[str]:
    """What is wrong with a declaration, each in words; an empty list if it can be used."""
    found = list(_shape_faults(declaration))
    if found:
        return found
    source = declaration.get("source", "input")
    if source not in _SOURCES:
        return [f"source must be one of {', '.join(_SOURCES)}"]
    if source == "static":
        if "value" not in declaration:
            found.append("value is required for the source static")
    elif "value" in declaration:
        found.append("value is for the source static only; did you mean default")
    if "default" in declaration and source in ("vault", "static"):
        found.append(f"default is not for the source {source}")
    if "default" in declaration and declaration.get("required"):
        found.append("required and default exclude each other")
    if source == "vault" and declaration.get("type", "string") != "string":
        found.append("type must be string for the source vault")
    for name in ("default", "value"):
        if name in declaration and not found:
            broken = violations(declaration, declaration[name])
            found += [f"{name}{where} {message}" for where, _, message in broken]
    return found


def _shape_faults(declaration: Mapping[str, Any]) -> Iterator[str]:
    type_ = declaration.get("type", "any")
    if type_ not in _TYPES:
        yield f"type must be one of {', '.join(_TYPES)}"
        return
    for rule, types in _RULES.items():
        if rule not in declaration:
            continue
        wrong = _rule_fault(rule, declaration[rule])
        if type_ not in types:
            yield f"{rule} is for {', '.join(types)}, not for {type_}"
        elif wrong is not None:
            yield wrong
    for low, high in (("min", "max"), ("minLength", "maxLength")):
        least, most = declaration.get(low), declaration.get(high)
        if _is_number(least) and _is_number(most) and not least <= most:
            yield f"{low} must not be more than {high}"


def _rule_fault(rule: str, wanted: Any) -> str | None:
    if rule in ("min", "max"):
        return None if _is_number(wanted) else f"{rule} must be a number"
    if rule in ("minLength", "maxLength"):
        is_count = _is_number(wanted) and kind(wanted) == "integer" and wanted >= 0
        return None if is_count else f"{rule} must be a whole number from 0"
    if rule in ("email", "url"):
        return None if isinstance(wanted, bool) else f"{rule} must be true or false"
    if rule == "enum":
        scalars = isinstance(wanted, list | tuple) and wanted
        if not scalars or any(kind(one) in ("array", "object") for one in wanted):
            return "enum must be a list of strings, numbers or booleans that is not empty"
        return None
    if rule == "items":
        if not isinstance(wanted, Mapping) or set(wanted) - _ITEM_FIELDS:
            return "items must be an object with a type and rules"
        inner = next(_shape_faults(wanted), None)
        return inner and f"items: {inner}"
    try:
        _pattern(wanted)
    except (TypeError, ValueError, re.error):
        return "pattern must be a regular expression of JSON Schema (ECMA-262)"
    return None


def _found(type_: str, value: Any) -> str:
    if type_ == "integer" and kind(value) == "number":
        return "a fraction"
    return described(value)


def _sizes(declaration: Mapping[str, Any], value: float) -> Iterator[tuple[str, str, str]]:
    if "min" in declaration and value < declaration["min"]:
        yield "", "min", f"must be at least {_shown(declaration['min'])}"
    if "max" in declaration and value > declaration["max"]:
        yield "", "max", f"must be at most {_shown(declaration['max'])}"


def _lengths(
    declaration: Mapping[str, Any], count: int, unit: str
) -> Iterator[tuple[str, str, str]]:
    for rule, word in (("minLength", "least"), ("maxLength", "most")):
        bound = declaration.get(rule)
        if bound is not None and (count < bound if rule == "minLength" else count > bound):
            yield "", rule, f"must have at {word} {_shown(bound)} {unit}{'' if bound == 1 else 's'}"


def _texts(declaration: Mapping[str, Any], value: str) -> Iterator[tuple[str, str, str]]:
    pattern = declaration.get("pattern")
    if pattern is not None and not _pattern(pattern).search(value):
        yield "", "pattern", f"must match the pattern {pattern}"
    if declaration.get("email") and not (
        len(value) <= _EMAIL_MAX and re.fullmatch(_EMAIL, value, re.ASCII)
    ):
        yield "", "email", "must be an e-mail address"
    if declaration.get("url"):
        match = re.fullmatch(_URL, value, re.ASCII)
        if match is None or int(match[1] or 0) > _PORT_MAX:
            yield "", "url", "must be an http or https URL"


def _items(declaration: Mapping[str, Any], value: Any) -> Iterator[tuple[str, str, str]]:
    wanted: Mapping[str, Any] = declaration.get("items", {})
    told = 0
    for index, item in enumerate(value if wanted else ()):
        for where, rule, message in violations(wanted, item):
            yield f"[{index}]{where}", rule, message
            told += 1
            if told == _WRONG_ITEMS_MAX:
                return


def _is_number(value: Any) -> TypeGuard[float]:
    is_finite = isinstance(value, int) or (isinstance(value, float) and abs(value) < float("inf"))
    return is_finite and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    return kind(one) == kind(other) and bool(one == other)


def _shown(value: Any) -> str:
    """A declared value as JSON, as JavaScript writes it."""
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """A number as JavaScript writes it (ECMA-262, Number::toString): other exponents."""
    from decimal import Decimal

    digits = Decimal(repr(value)).normalize()
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return f"{digits:f}" if value else "0"
    text = f"{digits:e}"
    return re.sub(r"e([+-])0*", r"e\1", text)


# What JavaScript and Python write differently: `$` and `.` know other line ends, names of groups.
_LINE_ENDS = r"\n\r\u2028\u2029"
_SPACES = r"\s\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_TOKEN = (
    r"\\(?:u\{([0-9a-fA-F]{1,6})\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[A-Za-z]|k<\w+>|.)"
    r"|\(\?(?:[:=!]|<[=!]|<[A-Za-z_$][\w$]*>)|\(\?|[\[\]$.]|[^\\\[\]$.]"
)
_ESCAPES = frozenset("^$\\.*+?()[]{}|/-dDwWsSbBnrtfv0123456789")
_compiled: dict[str, re.Pattern[str]] = {}


def _pattern(source: str) -> re.Pattern[str]:
    """A pattern of JSON Schema (ECMA-262 with the flag u) for Python. Raises for what is none."""
    if source not in _compiled:
        tokens = list(re.finditer(_TOKEN, source, re.DOTALL))
        parts, is_class = list[str](), False
        for match in tokens:
            token = match[0]
            if token == "[" and is_class:
                token = r"\["
            elif token in "[]":
                is_class = token == "["
            parts.append(_translated(token, match[1], is_class))
        if "".join(match[0] for match in tokens) != source:
            raise ValueError("ends in the middle")
        _compiled[source] = re.compile("".join(parts), re.ASCII)
    return _compiled[source]


def _translated(token: str, code_point: str | None, is_class: bool) -> str:
    if token == "(?":
        raise ValueError("such a group is not in ECMA-262")
    if token.startswith("(?<") and token[3] not in "=!":
        return "(?P" + token[2:]
    if code_point is not None:
        return re.escape(chr(int(code_point, 16)))
    if token.startswith("\\") and len(token) == 2 and token[1] not in _ESCAPES:
        raise ValueError("such an escape is not in ECMA-262")
    if not is_class:
        token = {"$": r"\Z", ".": f"[^{_LINE_ENDS}]", r"\s": f"[{_SPACES}]"}.get(token, token)
        token = f"[^{_SPACES}]" if token == r"\S" else token
        return f"(?P={token[3:-1]})" if token.startswith(r"\k<") else token
    return _SPACES if token == r"\s" else token
