"""The daemon's log: stdlib logging to one stream, human on a terminal, JSON lines elsewhere.

Messages are constant; what varies travels in `extra` (execution, step, task, handler, layer, …) and
is shown in both forms, tracebacks too. A record is always one line in JSON and cannot forge another
one in the human form. Nothing here knows of inputs, outputs or secrets: callers never pass them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, TextIO

__all__ = ["Format", "configure"]

Format = Literal["auto", "human", "json"]

# What logging itself puts on every record: all else came from `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FIELD_CHARS_MAX = 1000  # a field is a name or a number; a longer one is a mistake or an attack
_COLOURS = {"WARNING": "33", "ERROR": "31", "CRITICAL": "31"}


def configure(format: Format, level: str, stream: TextIO | None = None) -> None:
    """Send every log record to `stream` (stderr), replacing what an earlier call set up.

    "auto" is human lines on a terminal and JSON lines otherwise; `level` is a name in any case.
    """
    target = sys.stderr if stream is None else stream
    is_terminal = target.isatty()
    is_human = is_terminal if format == "auto" else format == "human"
    handler = logging.StreamHandler(target)
    if is_human:
        handler.setFormatter(_Human(is_coloured=is_terminal and not os.environ.get("NO_COLOR")))
    else:
        handler.setFormatter(_Json())
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one.formatter, _Human | _Json)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # At DEBUG asyncio tells of its selector: not our mechanism.
    logging.getLogger("asyncio").setLevel(max(root.level, logging.INFO))


class _Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record).items():
            # A field never hides what the line itself says.
            entry[f"{name}_" if name in entry or name == "traceback" else name] = value
        if trace := _traceback(self, record):
            entry["traceback"] = trace
        # Escaped to ASCII: a lone surrogate in a stranger's text must not break the stream.
        return json.dumps(entry, separators=(",", ":"))


class _Human(logging.Formatter):
    """`time LEVEL logger: message  name=value …`, then the traceback, indented."""

    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        colour = _COLOURS.get(record.levelname)
        if self._is_coloured and colour:
            level = f"\x1b[{colour}m{level}\x1b[0m"
        line = f"{_time(record)} {level} {record.name}: {_plain(record.getMessage())}"
        for name, value in _fields(record).items():
            line += f" {name}={_shown(value)}"
        if trace := _traceback(self, record):
            # Split on newlines only: other separators are escaped with the rest.
            line += "".join("\n    " + _plain(part) for part in trace.split("\n"))
        return line


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return {
        name: _cut(value)
        for name, value in vars(record).items()
        if name not in _OWN and not name.startswith("_")
    }


def _cut(value: Any) -> Any:
    """Numbers and booleans as they are, all else as text of a bounded length."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value - value == 0:  # not infinite, not NaN: JSON has neither
        return value
    text = str(value)
    return text if len(text) <= _FIELD_CHARS_MAX else text[:_FIELD_CHARS_MAX] + "…"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_bare = isinstance(value, str) and value and not set(value) & set(' "=\\')
    return _plain(value if is_bare else text)


def _plain(text: str) -> str:
    """Without control characters: a stranger's text must not move the cursor or forge a line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _time(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.created * 1000) % 1000:03d}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
