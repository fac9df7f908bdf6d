"""JSON text of what leaves a handler: refused, in words, where it would quietly change.

The same rules as the sandbox has: keys are text, no NaN, no lone surrogates, at most 200 deep.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # typing itself would cost 0.6 MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["cut", "decode", "encode", "plain_fields"]

DEPTH_MAX = 200
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
decode = json.loads  # the daemon is trusted: what it sends has been checked


def encode(value: Any) -> bytes:
    """JSON text of a value; ValueError or TypeError, in words, for what JSON has no text for."""
    _check(value)
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise ValueError("a text with a lone surrogate has no UTF-8 form") from None


def cut(text: str, size_bytes: int) -> str:
    """Text that can be sent, of at most that many bytes of UTF-8, of the beginning."""
    return text.encode("utf-8", "replace")[:size_bytes].decode("utf-8", "ignore")


def plain_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with a text in the place of what is not JSON."""
    return {cut(name, 200): _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    try:
        encode(value)
    except (TypeError, ValueError):
        return cut(repr(value), 16 * 1024)
    return value


def _check(value: Any) -> None:
    """Refuse what json.dumps would quietly change (keys that are not text) or cannot end."""
    level = [value]
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise ValueError(f"it is nested deeper than {DEPTH_MAX} or contains itself")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    if not isinstance(key, str):
                        raise TypeError(f"keys must be text, not {type(key).__name__}")
                inner.extend(item.values())
            elif isinstance(item, (list, tuple)):
                inner.extend(item)
        level = [item for item in inner if isinstance(item, (dict, list, tuple))]
