"""The log lines of a running attempt on their way to the tables: masked, in batches, in order.

They are handed over a few times a second, each batch after the one before it, so that
`flowctl execution logs -f` follows the handler and a flood costs few writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from flowmonkeyd.dispatcher import Log, OnLogs
from flowmonkeyd.masking import LogMask, Masks
from flowmonkeyd.model import TaskResult
from flowmonkeyd.replies import denial_text
from sandbox import Traffic

__all__ = ["LOGS_EVERY_S", "Lines", "last_lines"]

LOGS_EVERY_S = 0.25
# Our own tracebacks have 16 KiB at most; what is longer is a handler's imitation.
TRACEBACK_CHARS_MAX, TRACEBACK_LINES_MAX = 16 * 1024, 500


class Lines:
    """A task's log lines. What is not handed over when it ends is in `waiting`."""

    def __init__(self, group: asyncio.TaskGroup, on_logs: OnLogs, masks: Masks | None) -> None:
        self.waiting: list[Log] = []
        self._mask = LogMask(masks) if masks is not None else None
        self._group = group
        self._on_logs = on_logs
        self._timer: asyncio.TimerHandle | None = None
        self._handing_over: asyncio.Task[None] | None = None

    def add(self, line: Log) -> None:
        """One more."""
        if self._mask is None:
            self.waiting.append(line)
        else:
            self._mask.add(line, self._append)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOGS_EVERY_S, self._hand_over)

    async def flush(self) -> None:
        """Hand over all there is now, as before a pause, which ends the lease it is kept under."""
        self.end()
        self._timer = None
        if self._handing_over is not None:
            await asyncio.shield(self._handing_over)
        batch, self.waiting = self.waiting, []
        if batch:
            await self._keep(batch)

    def end(self) -> None:
        """No more is handed over; the group waits for what is on its way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._mask is not None:
            self._mask.end(self._append)

    def _append(self, line: Log) -> None:
        self.waiting.append(line)

    def _hand_over(self) -> None:
        self._timer = None
        if self._handing_over is None or self._handing_over.done():
            batch: Sequence[Log] = self.waiting
            self.waiting = []
            self._handing_over = self._group.create_task(self._keep(batch))
        else:  # the writer is behind
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOGS_EVERY_S, self._hand_over)

    async def _keep(self, batch: Sequence[Log]) -> None:
        await self._on_logs(batch)


def last_lines(result: TaskResult, traffic: Traffic | None, at_ms: int) -> list[Log]:
    """What is said at an attempt's end: each target that was refused, as the handler's own library
    may hide it, and an exception that left the handler, as its interpreter would print it."""
    lines: list[Log] = []
    if traffic is not None:
        lines += [(at_ms, "log", "warning", denial_text(one), None) for one in traffic.denials]
    details = result.error.details if result.error is not None else None
    text = details.get("traceback") if isinstance(details, Mapping) else None
    if isinstance(text, str) and len(text) <= TRACEBACK_CHARS_MAX:
        shown = text.encode(errors="replace").decode().splitlines()[:TRACEBACK_LINES_MAX]
        lines += [(at_ms, "log", "error", line, None) for line in shown]
    return lines
