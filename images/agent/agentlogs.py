"""The handler's output as log lines: `ctx.log`, what Python prints, what its programs print.

Whole lines, in order, cut at 16 KiB, and within a limit of bytes a second that the daemon has too:
what is beyond is dropped and counted. Descriptors 1 and 2 are pipes that the line's thread reads,
so that a program started by the handler is heard; in a forked child everything goes there.
"""

from __future__ import annotations

import _thread
import io
import os
import sys
import time

from agentjson import cut, encode, plain_fields
from agentline import Line

TYPE_CHECKING = False  # typing itself would cost 0.6 MiB
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Logs"]

LINE_MAX_BYTES = 16 * 1024
LOG_BYTES_PER_S, LOG_BURST_BYTES, LINE_COST_BYTES = 16 * 1024, 1024 * 1024, 100
READ_BYTES = 64 * 1024


class Logs:
    """The log of the task. What is written before `begin` has nobody to belong to."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._left: float = LOG_BURST_BYTES
        self._at = time.monotonic()
        self._dropped = 0
        self._counting = _thread.allocate_lock()
        self._is_on = False
        self._pieces: list[_Lines] = []
        self._pipes: list[_Lines] = []

    def begin(self) -> None:
        """The task begins: from now on there is a log."""
        self._is_on = True

    def install(self) -> None:
        """Take what is printed; done ahead, because it takes a third of a short task's time."""
        self._line.console = os.dup(2)
        for fd, stream in ((1, "stdout"), (2, "stderr")):
            own = _Lines(self, stream, fd)
            file = io.TextIOWrapper(io.BufferedWriter(own), "utf-8", "backslashreplace")
            file.reconfigure(line_buffering=True)
            setattr(sys, stream, file)
            self._pieces.append(own)
            self._open_pipe(fd, stream)
        os.register_at_fork(after_in_child=self._leave)

    def call(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """`ctx.log`"""
        self.add("log", level, message, fields)

    def add(
        self,
        stream: str,
        level: str | None,
        message: str,
        fields: dict[str, Any] | None = None,
        say: Callable[[bytes], None] | None = None,
    ) -> None:
        """Log a line while the limit lasts."""
        if not self._is_on:
            return
        said: dict[str, Any] = {"type": "log", "atMs": time.time_ns() // 1_000_000}
        said |= {"stream": stream, "level": level, "message": cut(message, LINE_MAX_BYTES)}
        said["fields"] = None
        size = len(said["message"]) + LINE_COST_BYTES
        if fields:
            said["fields"] = fields = plain_fields(fields)
            text = encode(fields)
            if len(text) > LINE_MAX_BYTES:
                said["fields"] = {"truncated": True}
            size += min(len(text), LINE_MAX_BYTES)
        say = say or self._line.log
        with self._counting:
            is_kept, dropped = self._take(size)
        if dropped:
            why = f"… {dropped} lines dropped: more than {LOG_BYTES_PER_S} bytes a second"
            note = {**said, "stream": "log", "level": "warning", "message": why, "fields": None}
            say(encode(note))
        if is_kept:
            say(encode(said))

    def finish(self) -> None:
        """Log what has no newline yet, and what is still in the pipes."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # the handler closed it, or put something else there
        for lines in self._pieces:
            lines.finish()
        for pipe in self._pipes:
            pipe.read()
            pipe.finish()

    def _take(self, size: int) -> tuple[bool, int]:
        """Whether a line of that size is within the limit, and how many were not before it."""
        now = time.monotonic()
        self._left = min(LOG_BURST_BYTES, self._left + (now - self._at) * LOG_BYTES_PER_S)
        self._at = now
        if size > self._left:
            self._dropped += 1
            return False, 0
        self._left -= size
        dropped, self._dropped = self._dropped, 0
        return True, dropped

    def _open_pipe(self, fd: int, stream: str) -> None:
        inner, outer = os.pipe()
        os.set_blocking(inner, False)
        os.dup2(outer, fd)
        os.close(outer)
        pipe = _Lines(self, stream, inner, self._line.log_later)
        self._pipes.append(pipe)
        self._line.inputs[inner] = pipe.read

    def _leave(self) -> None:
        """In a forked child: what it prints goes the way of any program."""
        self._is_on = False
        for fd, stream in ((1, "stdout"), (2, "stderr")):
            setattr(sys, stream, io.TextIOWrapper(io.FileIO(fd, "w", closefd=False)))


class _Lines(io.RawIOBase):
    """Bytes to log lines: the raw end of sys.stdout or sys.stderr, or of a pipe that is read."""

    def __init__(
        self, logs: Logs, stream: str, fd: int, say: Callable[[bytes], None] | None = None
    ) -> None:
        self._logs, self._stream, self._fd, self._say = logs, stream, fd, say
        self._partial = bytearray()
        self._reading = _thread.allocate_lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd  # for programs that are given it

    def write(self, data: Any) -> int:
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        for line in lines:
            self._send(self._without_pieces(line))
        self._partial = self._without_pieces(rest)
        return len(data)

    def read(self, size: int = -1) -> Any:
        """Take what is in the pipe by now."""
        with self._reading:
            try:
                while data := os.read(self._fd, READ_BYTES):
                    self.write(data)
            except OSError:
                pass  # there is no more, or the handler has closed it

    def finish(self) -> None:
        """Send what has no newline yet."""
        if self._partial:
            self._send(self._partial)
            self._partial = bytearray()

    def _without_pieces(self, line: bytearray) -> bytearray:
        """Send the beginning of a line that is too long for one, and return what is left."""
        while len(line) > LINE_MAX_BYTES:
            self._send(line[:LINE_MAX_BYTES])
            line = line[LINE_MAX_BYTES:]
        return line

    def _send(self, line: bytes | bytearray) -> None:
        self._logs.add(self._stream, None, line.decode("utf-8", "replace"), None, self._say)
