"""The sandbox host: a process that has the pool and nothing else of the daemon's.

Started by `hosted` with a descriptor of the link, no environment but PATH and no other file. It
reads what handlers send, TLS greetings and DNS questions. It ends when the link does, and is killed
when its parent dies; with it end its fork servers, and with them every handler.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

import uvloop

from sandbox import linux
from sandbox.host import messages
from sandbox.host.link import Link
from sandbox.host.messages import Message
from sandbox.model import Call, LogLine
from sandbox.pool import Pool

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(descriptor: int, parent: int) -> None:
    """Serve the link on this descriptor until it ends or the parent does."""
    linux.parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before that
    # A Ctrl-C or a stop that reaches the whole group is the parent's to judge. A handler and not
    # SIG_IGN, which what is started from here would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    uvloop.run(_Host(socket.socket(fileno=descriptor)).serve())


class _Host:
    """Calls that come over the link, run by a pool that the first message describes."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pool: Pool | None = None
        self._terms: dict[int, Call] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._contexts: dict[int, Callable[[bytes], None]] = {}  # asked for, not come yet
        self._lines: dict[int, list[LogLine]] = {}  # of this turn of the loop
        self._ended = asyncio.Event()

    async def serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = Link(
            self._socket, messages.TO_HOST_MAX_BYTES, self._on_message, lambda _: self._ended.set()
        )
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._ended.wait()
                for task in self._running.values():
                    task.cancel()
        finally:
            if self._pool is not None:
                await self._pool.close()
                await asyncio.sleep(0)  # who waits for a death to close descriptors hears of it

    def _on_message(self, one: Message) -> None:
        kind, number, payload = one
        if kind == messages.CALL:
            ask = partial(self._ask_context, number)
            call = messages.call_of(payload, self._terms, ask)
            task = self._tasks.create_task(self._run(number, call))
            self._running[number] = task
            # Not at its end: a task that is cancelled before its first step never gets there.
            task.add_done_callback(partial(self._forget, number))
        elif kind == messages.CONTEXT:
            if (answer := self._contexts.pop(number, None)) is not None:
                answer(payload)
        elif kind == messages.TERMS:
            self._terms[number] = messages.terms_of(payload)
        elif kind == messages.CANCEL:
            if (running := self._running.get(number)) is not None:
                running.cancel()
        elif kind == messages.STATISTICS:
            if self._pool is not None:
                text = messages.statistics_text(self._pool.statistics())
                self._link.send(messages.STATISTICS, number, text)
        elif kind == messages.SETTINGS:
            self._pool = Pool(messages.settings_of(payload))
            self._running[number] = self._tasks.create_task(self._start(self._pool))

    async def _start(self, pool: Pool) -> None:
        try:
            await pool.start()
        except OSError as exc:
            self._link.send(messages.FAILED, 0, messages.failure_text(str(exc)))
            return
        # What the imports made lives as long as this process: see flowmonkeyd.main.
        gc.freeze()
        self._link.send(messages.READY, 0, messages.layers_text(pool.layers()))

    async def _run(self, number: int, call: Call) -> None:
        assert self._pool is not None, "the settings come first"
        try:
            reply = await self._pool.run(call, partial(self._on_line, number))
            parts = messages.reply_parts(reply)
        except Exception:  # a bug of ours: this call's caller is told, the others go on
            log.exception("the sandbox host failed at a call")
            self._link.send(messages.FAILED, number)
            return
        if number in self._lines:
            self._send_lines(number)
        self._link.send(messages.REPLY, number, *parts)

    def _forget(self, number: int, _: asyncio.Task[None]) -> None:
        self._running.pop(number, None)
        self._contexts.pop(number, None)
        self._lines.pop(number, None)

    def _ask_context(self, number: int, answer: Callable[[bytes], None]) -> None:
        self._contexts[number] = answer
        self._link.send(messages.CONTEXT, number)

    def _on_line(self, number: int, line: LogLine) -> None:
        if not self._lines:
            self._loop.call_soon(self._send_all_lines)
        self._lines.setdefault(number, []).append(line)

    def _send_all_lines(self) -> None:
        for number in list(self._lines):
            self._send_lines(number)

    def _send_lines(self, number: int) -> None:
        text = messages.lines_text(self._lines.pop(number))
        self._link.send(messages.LOGS, number, text)
