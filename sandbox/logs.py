"""What is kept of an execution's output: ordered, bounded in bytes and in lines a second.

Takes log frames and raw output, both bytes from a stranger, and makes `LogLine`s of them. It marks
where something was dropped, and says when a child sends so much that it must be ended.
"""

from __future__ import annotations

import time
from typing import Literal

from sandbox import wire
from sandbox.model import LogLine, OnLog

__all__ = ["Logs"]

# What may come in log frames per byte that could be kept: in JSON a character can take six, and a
# line its names. Whoever sends more does not use our shim.
_FLOOD_RATIO = 8
_FRAME_MAX_BYTES = 64 * 1024  # the shim stays below 34 KiB
_LINE_MAX_BYTES = 64 * 1024
_LEVELS = ("debug", "info", "warning", "error")
_STREAMS = ("stdout", "stderr", "log")
_TRUNCATED = "… truncated"


class Logs:
    """The log of one execution. `log_rate` lines a second are kept, in bursts of as many."""

    def __init__(self, log_bytes: int, log_rate: int, on_log: OnLog | None) -> None:
        self._log_bytes = self._left = log_bytes
        self._rate = self._allowance = float(log_rate)
        self._refilled = time.monotonic()
        self._on_log = on_log
        self._lines: list[LogLine] = []
        self._come_bytes = 0
        self._dropped_lines = 0
        self._partial: dict[str, bytes] = {}

    def on_frame(self, payload: bytes) -> None:
        """One line from the shim; raises ProtocolError for what is none, or too much of it."""
        self._come_bytes += len(payload) + wire.LINE_COST_BYTES
        if self._come_bytes > _FLOOD_RATIO * self._log_bytes + 1024 * 1024:
            raise wire.ProtocolError("a flood of log lines")
        if len(payload) > _FRAME_MAX_BYTES:
            raise wire.ProtocolError("a log line of too many bytes")
        if self._left < 0:
            return
        line = wire.decode(payload)
        if not isinstance(line, dict):
            raise wire.ProtocolError("a log line must be an object")
        stream, level = line.get("stream"), line.get("level")
        message, fields = line.get("message"), line.get("fields", {})
        if (
            stream not in _STREAMS
            or (level not in _LEVELS if stream == "log" else level is not None)
            or not isinstance(message, str)
            or not isinstance(fields, dict)
        ):
            raise wire.ProtocolError("not a log line")
        size = len(message) if not fields else len(payload)
        self._keep(LogLine(_now_ms(), stream, message, level, fields), size)

    def on_output(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Bytes written to a descriptor; empty at its end, or when there is nothing new."""
        if not data or self._left < 0:
            return
        *lines, rest = (self._partial.get(stream, b"") + data).split(b"\n")
        if len(rest) > _LINE_MAX_BYTES:
            lines.append(rest)
            rest = b""
        self._partial[stream] = rest
        for text in lines:
            line = LogLine(_now_ms(), stream, text.decode("utf-8", "replace"))
            self._keep(line, len(text))

    def finished(self) -> tuple[LogLine, ...]:
        """Everything that was kept, unfinished lines too."""
        self.on_output("stdout", b"\n" if self._partial.get("stdout") else b"")
        self.on_output("stderr", b"\n" if self._partial.get("stderr") else b"")
        self._tell_dropped()
        return tuple(self._lines)

    def _keep(self, line: LogLine, size: int) -> None:
        if self._left < 0:
            return
        if not self._allowed():
            self._dropped_lines += 1
            self._left -= wire.LINE_COST_BYTES  # a flood ends here too
            return
        self._tell_dropped()
        self._left -= size + wire.LINE_COST_BYTES
        if self._left < 0:
            line = LogLine(line.at_ms, line.stream, _TRUNCATED, line.level)
        self._append(line)

    def _allowed(self) -> bool:
        if self._allowance < 1:
            now = time.monotonic()
            earned = (now - self._refilled) * self._rate
            self._allowance = min(self._rate, self._allowance + earned)
            self._refilled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _tell_dropped(self) -> None:
        if self._dropped_lines:
            count, self._dropped_lines = self._dropped_lines, 0
            text = f"… {count} lines dropped: more than {self._rate:.0f} a second"
            self._append(LogLine(_now_ms(), "log", text, "warning"))

    def _append(self, line: LogLine) -> None:
        self._lines.append(line)
        if self._on_log is not None:
            self._on_log(line)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
