"""One call at a time to come, which is mostly put off or dropped before that time is there.

A kept process runs thousands of executions a second. Each has a deadline, and after each it is soon
to be stopped: a timer of the loop's for every one of these would be started and cancelled unused.
An Alarm keeps the timer that it has if that fires early enough, and looks then what there is to do.
It calls when a timer of the loop's would, and never earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Alarm"]

_LOOP_TICK_S = 0.001  # uvloop's clock counts milliseconds


class Alarm:
    """Calls what was set last, once. Close it when done with it."""

    __slots__ = ("_call", "_due", "_fires", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._call: Callable[[], object] | None = None
        self._due = self._fires = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call this after so many seconds, and nothing that was set before."""
        self._call = call
        self._due = self._loop.time() + delay_s
        if self._timer is None:
            self._start(delay_s)
        elif self._due < self._fires:
            self._timer.cancel()
            self._start(delay_s)

    def off(self) -> None:
        """Call nothing."""
        self._call = None

    def close(self) -> None:
        """Call nothing, and let go of the timer."""
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, delay_s: float) -> None:
        self._fires = self._due
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._call is None:
            return
        left_s = self._due - self._loop.time()
        if left_s >= _LOOP_TICK_S / 2:
            self._start(left_s)
            return
        call, self._call = self._call, None
        call()
