"""An execution's context as it is kept, and what a change to it costs: pure.

Small values live together in one JSON object (`inline`); a value whose text is longer than
`SPILL_BYTES` lives in a row of its own and is here only by its size until somebody asks for it, so
a change to one key never rewrites a large other one (measured in benchmarks/context.py). Every
path that writes to a context goes through `Context.change`, which is where the limits of contract
section 2 are held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.model import Limits, StepError

__all__ = ["SPILL_BYTES", "Change", "Context", "depth"]

# A row of its own costs a page more when it is written, inline text past a page costs three more
# at every change (docs/decisions/0012).
SPILL_BYTES = 512


@dataclass(frozen=True, slots=True)
class Change:
    """The context after a change, and the rows to write: `rows` holds new texts by key."""

    context: Context
    rows: Mapping[str, str]
    dropped_rows: frozenset[str]


@dataclass(frozen=True, slots=True)
class Context:
    """`spilled` maps the keys kept elsewhere to their sizes; `loaded` holds those read so far.

    `total_bytes` is the length of the whole context's compact JSON, give or take one comma.
    """

    inline: Mapping[str, Any] = field(default_factory=dict)
    spilled: Mapping[str, int] = field(default_factory=dict)
    loaded: Mapping[str, Any] = field(default_factory=dict)
    total_bytes: int = 2

    @property
    def values(self) -> Mapping[str, Any]:
        """Everything that is in memory, by key."""
        return {**self.inline, **self.loaded} if self.spilled else self.inline

    @property
    def is_complete(self) -> bool:
        return len(self.loaded) == len(self.spilled)

    def has(self, key: str) -> bool:
        return key in self.inline or key in self.spilled

    def change(
        self, sets: Mapping[str, Any], limits: Limits, drops: frozenset[str] = frozenset()
    ) -> Change | StepError:
        """The context with `sets` written and `drops` removed, or the limit that forbids it."""
        inline, spilled, loaded = dict(self.inline), dict(self.spilled), dict(self.loaded)
        total, rows, dropped = self.total_bytes, dict[str, str](), set[str]()
        for key in (*drops, *sets):
            total -= self._weight(key, inline, spilled)
            inline.pop(key, None)
            loaded.pop(key, None)
            if spilled.pop(key, None) is not None:
                dropped.add(key)
        for key, value in sets.items():
            try:
                text = jsontext.dumps(value)
                size = len(text.encode())
                total += size + _key_bytes(key)
            except ValueError as exc:
                return StepError(
                    "INVALID_RESULT", f"context key {key!r:.200}: {exc}", retryable=False
                )
            problem = _over(key, value, size, limits)
            if problem is not None:
                return problem
            if size > SPILL_BYTES:
                spilled[key], loaded[key], rows[key] = size, value, text
                dropped.discard(key)
            else:
                inline[key] = value
        if (keys := len(inline) + len(spilled)) > limits.keys_max and sets:
            return _limit("CONTEXT_KEY_LIMIT", "keys in the context", limits.keys_max, keys)
        if total > limits.context_bytes_max and sets:
            return _limit("CONTEXT_SIZE_LIMIT", "bytes of context", limits.context_bytes_max, total)
        return Change(Context(inline, spilled, loaded, total), rows, frozenset(dropped))

    @staticmethod
    def _weight(key: str, inline: Mapping[str, Any], spilled: Mapping[str, int]) -> int:
        if key in inline:
            return jsontext.size_bytes(inline[key]) + _key_bytes(key)
        if key in spilled:
            return spilled[key] + _key_bytes(key)
        return 0


def depth(value: Any) -> int:
    """Nesting: a scalar is 0, each object or list adds 1 (upstream section 1.8)."""
    level, deepest = [value], 0
    while True:
        below: list[Any] = []
        containers = False
        for item in level:
            if isinstance(item, dict):
                containers = True
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                containers = True
                below.extend(item)
        if not containers:
            return deepest
        deepest += 1
        level = below


def _key_bytes(key: str) -> int:
    if key.isascii() and key.isidentifier():  # nothing to escape: quotes, colon, comma
        return len(key) + 4
    return jsontext.size_bytes(key) + 2


def _over(key: str, value: Any, size: int, limits: Limits) -> StepError | None:
    if size > limits.value_bytes_max:
        return _limit(
            "CONTEXT_VALUE_TOO_LARGE",
            f"bytes in context key {key!r:.200}",
            limits.value_bytes_max,
            size,
        )
    if isinstance(value, dict | list | tuple) and (levels := depth(value)) > limits.depth_max:
        return _limit(
            "CONTEXT_NESTING", f"levels in context key {key!r:.200}", limits.depth_max, levels
        )
    return None


def _limit(code: str, what: str, limit: int, actual: int) -> StepError:
    return StepError(
        code,
        f"{what}: {actual} is over the limit of {limit}",
        retryable=False,
        details={"limit": limit, "actual": actual},
    )
