"""YAML text of a JSON value, for `-o yaml`: one way out, no reader.

Written here because it is forty lines, keeps the command line on click and the standard library,
and costs nothing at start. Every value reads back the same with any YAML 1.1 or 1.2 reader:
strings that could mean something else are double-quoted as in JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["dump"]

KEY_MAX = 1000  # a key on its value's line has at most 1 024 characters (YAML 1.2, 7.4)

# Plain only where no YAML version sees a number, a date, a boolean or syntax.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]*(?: [A-Za-z0-9_./@-]+)*\Z")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
# JSON leaves these as they are; YAML does not count them as printable (YAML 1.2, 5.1).
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def dump(value: Any) -> str:
    """The value as block YAML, ending with a newline."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            text = _scalar(key)
            if len(text) > KEY_MAX:
                yield f"? {text}"
                text = ""
            yield from _entry(f"{text}:", item)
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(head: str, item: Any) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        yield head
        yield from (f"  {line}" for line in _lines(item))
    else:
        yield f"{head} {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.match(value) and value.lower() not in _WORDS:
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", quoted)
    if isinstance(value, float) and math.isfinite(value):
        text = repr(value)
        # YAML 1.1 takes 1e+16 for a string: its floats have a point
        return text if "." in text else text.replace("e", ".0e")
    return json.dumps(value)
