"""What a command prints: data on stdout as table, JSON or YAML, messages on stderr.

JSON is the API's own text, to the byte, with one newline at its end. Tables are for people and may
change; everything in them that came from elsewhere has its control characters shown, not sent,
since a handler's text must never steer the reader's terminal. Colour only on a terminal, and never
with NO_COLOR.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flowctl.client import Answer, Listing

__all__ = ["Column", "Output", "cell", "duration", "has_colour", "neutral", "pretty"]

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], Any]]

# C0 but tab, DEL, C1, line separators, and marks that turn the direction of writing
# (CVE-2021-42574)
_STEERING = (
    *range(0x09),
    *range(0x0A, 0x20),
    *range(0x7F, 0xA0),
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
)
_SHOWN = {
    code: {0x0A: "\\n", 0x0D: "\\r", 0x1B: "\\e"}.get(
        code, f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )
    for code in _STEERING
}
_KEEP_LINES = {code: shown for code, shown in _SHOWN.items() if code != 0x0A}
# In JSON text only these can be raw, and escaping them leaves its meaning as it is.
_IN_JSON = {code: f"\\u{code:04x}" for code in _STEERING if code >= 0x7F}

_COLOURS = {
    "completed": "32",
    "success": "32",
    "ok": "32",
    "running": "36",
    "waiting": "33",
    "paused": "33",
    "wait": "33",
    "cancelling": "33",
    "degraded": "33",
    "cancelled": "31",
    "failed": "31",
    "failure": "31",
    "error": "31",
}


class Output:
    """The two streams and how to use them; `form` is table, json or yaml."""

    def __init__(self, form: str = "table", headers: bool = True) -> None:
        self.form = form
        self.headers = headers
        self.out: Any = sys.stdout
        self.err: Any = sys.stderr

    def answer(self, answer: Answer, table: Callable[[dict[str, Any]], None]) -> None:
        """One resource: the API's JSON, the same as YAML, or what `table` makes of it."""
        if self.form == "json":
            self._json(answer.body)
        elif self.form == "yaml":
            self._yaml(answer.value())
        else:
            table(answer.fields())

    def listing(self, listing: Listing, columns: Sequence[Column]) -> None:
        """A list: the API's JSON, the same as YAML, or a table with these columns."""
        if self.form == "json":
            self._json(listing.body)
        elif self.form == "yaml":
            self._yaml({"items": listing.items, "nextCursor": listing.next_cursor})
        else:
            self.table(listing.items, columns)

    def value(self, value: Any, table: Callable[[], None]) -> None:
        """What flowctl itself knows: as JSON, as YAML, or as `table` prints it."""
        if self.form == "json":
            self._json(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        elif self.form == "yaml":
            self._yaml(value)
        else:
            table()

    def stream(self, line: bytes, item: Row, text: Callable[[Row], str]) -> None:
        """One line of a stream, at once: NDJSON as it came, a YAML document, or `text`."""
        if self.form == "json":
            self._json(line)
        elif self.form == "yaml":
            self.out.write("---\n")
            self._yaml(item)
        else:
            self.line(text(item))
        self.out.flush()

    def table(self, rows: Iterable[Row], columns: Sequence[Column]) -> None:
        """Columns as wide as their widest cell, two spaces apart."""
        lines = [[cell(take(row)) for _, take in columns] for row in rows]
        if self.headers:
            lines.insert(0, [title for title, _ in columns])
        widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(columns))]
        for line in lines:
            cells = [self._tinted(text, width) for text, width in zip(line, widths, strict=True)]
            self.out.write("  ".join(cells).rstrip() + "\n")

    def pairs(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Name and value, one a line; values that are None are left out."""
        kept = [(name, cell(value)) for name, value in pairs if value is not None]
        width = max((len(name) for name, _ in kept), default=0)
        for name, text in kept:
            self.out.write(f"{name:<{width}}  {self._tinted(text, 0)}\n")

    def line(self, text: str) -> None:
        """One line of text on stdout, whatever it holds."""
        self.out.write(neutral(text) + "\n")

    def lines(self, text: str) -> None:
        """Several lines of text on stdout; only their line ends steer the terminal."""
        self.out.write(text.translate(_KEEP_LINES) + "\n")

    def note(self, text: str) -> None:
        """A message for the person, on stderr."""
        self.out.flush()
        self.err.write(text.translate(_KEEP_LINES) + "\n")
        self.err.flush()

    def _json(self, body: bytes) -> None:
        if self.out.isatty():
            body = body.decode(errors="replace").translate(_IN_JSON).encode()
        self.out.flush()
        # as bytes: the API's JSON is UTF-8 whatever the locale says
        self.out.buffer.write(body if body.endswith(b"\n") else body + b"\n")
        self.out.buffer.flush()

    def _yaml(self, value: Any) -> None:
        from flowctl import yamltext

        text = yamltext.dump(value)
        self.out.write(text.translate(_IN_JSON) if self.out.isatty() else text)

    def _tinted(self, text: str, width: int) -> str:
        colour = _COLOURS.get(text) if has_colour(self.out) else None
        padded = text.ljust(width)
        return f"\x1b[{colour}m{padded}\x1b[0m" if colour else padded


def has_colour(stream: Any) -> bool:
    """Whether escape sequences may be sent to `stream` (no-color.org, and terminals without)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(stream.isatty())


def neutral(text: str) -> str:
    """The text with everything that could steer a terminal shown as an escape."""
    return text.translate(_SHOWN)


def cell(value: Any) -> str:
    """A value as one line for a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    return neutral(str(value))


def pretty(value: Any) -> str:
    """JSON for people: indented, in the order it came."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def duration(ms: Any) -> str | None:
    """Milliseconds for people: `12 ms`, `3.4 s`, `2 m 5 s`, `26 h 3 m`; None stays None."""
    if not isinstance(ms, int | float):
        return None
    if ms < 1000:
        return f"{ms:g} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    seconds = int(ms // 1000)
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} m"
