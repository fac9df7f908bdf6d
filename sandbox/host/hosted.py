"""A pool whose work is done by another process, the sandbox host.

`HostedPool` is to its caller what `Pool` is. It owns the host's process: starts it, hears of its
end, replaces it after a growing pause. It promises that a call always comes back: those that were
with a host that was lost end as UNAVAILABLE, which is no fault of theirs. It keeps a call's context
until the handler reads it, and never logs or keeps what else a call holds.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sandbox import wire
from sandbox.host import messages
from sandbox.host.link import Link
from sandbox.host.messages import Message
from sandbox.model import Call, Ending, Layer, LogLine, OnLog, PoolSettings, Reply
from sandbox.wire import LINE_COST_BYTES, ProtocolError

__all__ = ["HostedPool"]

log = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.05, 5.0
_STEADY_S = 60.0  # who lived as long is no failure to start
_STATISTICS_S = 1.0  # so long somebody waits for numbers, which are then those of last time
_COUNTED = ("started", "reused", "crashed")
# What log lines may take on the link per byte that may be kept: in JSON a character can take six
# bytes, and each line its names.
_LOG_RATIO, _LOG_SLACK_BYTES = 8, 1024 * 1024
_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from sandbox.host.program import main; " + (
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)


@dataclass(slots=True)
class _Flight:
    """A call that is with the host."""

    call: Call
    on_log: OnLog | None
    reply: asyncio.Future[Reply]
    log_bytes: int  # that may still come
    lines: list[LogLine] = field(default_factory=list)


class _Terms:
    """Numbers of what is the same for many calls, known to one host."""

    def __init__(self) -> None:
        # Their identities, and the parts themselves, lest another gets the identity.
        self._known: dict[tuple[Any, ...], tuple[int, Call]] = {}

    def number(self, call: Call, link: Link) -> int:
        """The number of a call's terms, which the host is told when they are new."""
        key = (
            *(call.package_dir, call.entrypoint, call.runtime, call.tenant_id, call.preload),
            *(id(call.limits), id(call.policy), id(call.reuse)),
        )
        known = self._known.get(key)
        if known is not None:
            return known[0]
        number = len(self._known)
        if number >= messages.TERMS_MAX:
            oldest = next(iter(self._known))
            number = self._known.pop(oldest)[0]
        # Nothing of the call that is its own is kept.
        terms = Call(call.package_dir, limits=call.limits, policy=call.policy, reuse=call.reuse)
        self._known[key] = (number, terms)
        link.send(messages.TERMS, number, messages.terms_text(call))
        return number


class HostedPool:
    """Runs calls in confined processes, `settings.slots` at a time, all of them another's."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        """`settings.report_refused` is for who has its pool at home."""
        self.settings = dataclasses.replace(settings or PoolSettings(), family=os.getpid())
        if self.settings.report_refused:
            raise ValueError("cannot report refused system calls from another process")
        self._patience_s = self.settings.patience_ms / 1000
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._terms = _Terms()
        self._flights: dict[int, _Flight] = {}
        self._numbers = _numbers()
        self._is_ready = False
        self._settled = asyncio.Event()  # there is a host that is ready, or there will be none
        self._starting: asyncio.Future[None] | None = None
        self._layers: list[Layer] = []
        self._problem = "the pool is not started"
        self._relaunch: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._is_silent = False
        self._failures = 0
        self._launched_at = 0.0
        self._given_up = True  # nobody starts a host
        self._closed: asyncio.Event | None = None
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._statistics = dict(messages.NO_STATISTICS)
        self._before = collections.Counter[str]()  # by hosts that are gone

    @property
    def slots(self) -> int:
        """How many executions run at a time."""
        return self.settings.slots

    @property
    def host_pid(self) -> int | None:
        """The host's process id, if there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def problem(self) -> str | None:
        """Why there is no host now, in words; None if there is one that is ready."""
        return None if self._is_ready else self._problem

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the host, which starts its pool; as `Pool.start`."""
        self._loop = asyncio.get_running_loop()
        self._starting = self._loop.create_future()
        self._given_up = False
        self._launch()
        self._watch = self._loop.call_later(self._patience_s, self._on_watch)
        await self._starting

    async def run(self, call: Call, on_log: OnLog | None = None) -> Reply:
        """Run one call to its end; as `Pool.run`. Waits for the next host if there is none."""
        if not self._is_ready and not await self._comes_back():
            return _unavailable(self._problem)
        link = self._link
        assert link is not None, "ready"
        try:
            parts = messages.call_parts(call, self._terms.number(call, link))
        except (TypeError, ValueError) as exc:
            return Reply(Ending.PROTOCOL, None, f"cannot send the input: {exc}")
        number = next(self._numbers)
        log_bytes = _LOG_RATIO * call.limits.log_bytes + _LOG_SLACK_BYTES
        flight = _Flight(call, on_log, self._loop.create_future(), log_bytes)
        self._flights[number] = flight
        link.send(messages.CALL, number, *parts)
        try:
            return await flight.reply
        except asyncio.CancelledError:
            link.send(messages.CANCEL, number)
            raise
        finally:
            self._flights.pop(number, None)

    async def close(self) -> None:
        """Have the host kill everything, and wait until it is gone."""
        self._given_up = True
        self._is_ready = False
        self._problem = "the pool is closed"
        self._settled.set()
        for timer in (self._relaunch, self._watch):
            if timer is not None:
                timer.cancel()
        if self._link is not None:
            self._closed = asyncio.Event()
            self._link.end_writing()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await self._closed.wait()
        self._end_host()

    def layers(self) -> list[Layer]:
        """Every layer with what this host gives, as tried by the last host that was ready."""
        return self._layers

    async def statistics(self) -> dict[str, Any]:
        """As `Pool.statistics`; counts go on from one host to the next."""
        if self._link is not None and self._is_ready:
            number = next(self._numbers)
            answer = self._asked[number] = self._loop.create_future()
            self._link.send(messages.STATISTICS, number)
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STATISTICS_S):
                        await answer
            finally:
                self._asked.pop(number, None)
        counts = {name: self._statistics[name] + self._before[name] for name in _COUNTED}
        return {**self._statistics, **counts, "slots": self.slots}

    # --- the host's process ------------------------------------------------------------------

    def _launch(self) -> None:
        """Start a host. Raises OSError if it cannot be executed."""
        self._relaunch = None
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            ids = (str(fd), str(os.getpid()))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _BOOT, *ids, *_places()],
                    env={name: os.environ[name] for name in ("PATH",) if name in os.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[fd],
                    start_new_session=True,  # a Ctrl-C at the terminal is ours to judge
                    cwd="/",
                )
            except OSError:
                ours.close()
                raise
        self._launched_at = self._loop.time()
        self._is_silent = False
        self._terms = _Terms()
        self._link = Link(ours, messages.FROM_HOST_MAX_BYTES, self._on_message, self._lost)
        self._link.send(messages.SETTINGS, 0, messages.settings_text(self.settings))

    def _launch_again(self) -> None:
        try:
            self._launch()
        except OSError as exc:
            self._lost(f"it cannot be executed: {exc.strerror}")

    def _lost(self, reason: str) -> None:
        """The host has ended, or has to: so have its calls; there will be another one."""
        if self._closed is not None:
            self._closed.set()
            return
        self._end_host()
        if self._given_up:
            return
        if self._loop.time() - self._launched_at > _STEADY_S:
            self._failures = 0
        pause_s = min(_PAUSE_FIRST_S * 2**self._failures, _PAUSE_MAX_S)
        self._failures += 1
        self._problem = f"the sandbox host was lost ({reason}); another one is started"
        log.error("the sandbox host was lost", extra={"reason": reason, "pause_s": pause_s})
        self._relaunch = self._loop.call_later(pause_s, self._launch_again)
        if self._starting is not None and not self._starting.done():
            self._starting.set_exception(OSError(self._problem))

    def _end_host(self) -> None:
        """Kill the host if it lives, and tell who waits for it."""
        self._is_ready = False
        if not self._given_up:
            self._settled.clear()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # the time of a process's exit
            self._process = None
        for name in _COUNTED:
            self._before[name] += self._statistics[name]
        self._statistics = dict(messages.NO_STATISTICS)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(self._statistics)
        for flight in self._flights.values():
            if not flight.reply.done():
                flight.reply.set_result(_unavailable("the sandbox host was lost"))

    async def _comes_back(self) -> bool:
        """Whether there is a host within the time that one has to start."""
        if not self._given_up:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await self._settled.wait()
        return self._is_ready

    def _on_watch(self) -> None:
        """See that the host answers: it is who ends calls that take too long."""
        while self._is_silent and self._link is not None and self._link.read():
            pass  # it answered, and this loop stood still
        if self._link is not None:
            if self._is_silent:
                self._lost(f"no word from it within {self._patience_s:g} s")
            else:
                self._is_silent = True
                self._link.send(messages.STATISTICS, next(self._numbers))
        self._watch = self._loop.call_later(self._patience_s, self._on_watch)

    # --- what it says ------------------------------------------------------------------------

    def _on_message(self, one: Message) -> None:
        """Raises ProtocolError. A number that is not known is a call that was cancelled."""
        self._is_silent = False
        kind, number, payload = one
        flight = self._flights.get(number)
        if kind == messages.REPLY:
            if flight is not None and not flight.reply.done():
                reply = messages.reply_of(payload, flight.call.limits, flight.lines)
                flight.reply.set_result(reply)
        elif kind == messages.LOGS:
            if flight is not None:
                self._on_lines(flight, payload)
        elif kind == messages.CONTEXT:
            if flight is not None:
                self._send_context(number, flight)
        elif kind == messages.STATISTICS:
            self._statistics = messages.statistics_of(payload)
            if (answer := self._asked.get(number)) is not None and not answer.done():
                answer.set_result(self._statistics)
        elif kind == messages.READY:
            self._layers = messages.layers_of(payload)
            self._is_ready = True
            self._settled.set()
            if self._starting is not None and not self._starting.done():
                self._starting.set_result(None)
            if self._failures:
                log.info("a new sandbox host is ready", extra={"pid": self.host_pid})
        elif kind == messages.FAILED:
            self._on_failed(number, flight, messages.failure_of(payload))
        else:
            raise ProtocolError(f"a message of kind {kind!r}")

    def _on_lines(self, flight: _Flight, payload: bytes) -> None:
        flight.log_bytes -= len(payload)
        if flight.log_bytes < 0:
            raise ProtocolError("a flood of log lines")
        lines = messages.lines_of(payload)
        flight.log_bytes -= LINE_COST_BYTES * len(lines)
        flight.lines += lines
        if flight.on_log is not None:
            for line in lines:
                flight.on_log(line)

    def _send_context(self, number: int, flight: _Flight) -> None:
        context = flight.call.context
        if callable(context):
            context(lambda text: self._answer_context(number, flight, text))
            return
        try:
            text = context if isinstance(context, bytes) else wire.encode(dict(context))
        except (TypeError, ValueError) as exc:
            if not flight.reply.done():
                reply = Reply(Ending.PROTOCOL, None, f"cannot send the context: {exc}")
                flight.reply.set_result(reply)
            if self._link is not None:
                self._link.send(messages.CANCEL, number)
            return
        self._answer_context(number, flight, text)

    def _answer_context(self, number: int, flight: _Flight, text: bytes) -> None:
        if self._link is not None and self._flights.get(number) is flight:
            self._link.send(messages.CONTEXT, number, text)

    def _on_failed(self, number: int, flight: _Flight | None, reason: str) -> None:
        if number == 0:
            # Another one would not do better, as when the handlers' interpreter is not there.
            self._problem, self._given_up = reason, True
            self._end_host()
            self._settled.set()
            if self._starting is not None and not self._starting.done():
                self._starting.set_exception(OSError(reason))
        elif flight is not None and not flight.reply.done():
            flight.reply.set_exception(RuntimeError("the sandbox host failed; its log says why"))


def _numbers() -> Iterator[int]:
    """Of calls and questions; 0 is nobody's, and after four thousand million the first is free."""
    return itertools.cycle(range(1, 2**32))


def _places() -> list[str]:
    """Where the host finds our modules and those they need: here first, then where we do."""
    here = str(Path(__file__).resolve().parents[2])
    return [here, *(os.path.abspath(one) for one in sys.path if one and one != here)]


def _unavailable(message: str) -> Reply:
    return Reply(Ending.UNAVAILABLE, None, message)
