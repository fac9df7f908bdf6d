"""The pool's side of one fork server: start it, command it, hear of deaths, start it again.

Owns the server's process, its control socket and the confined children that wait for a call. It
promises that every child handed out reports its end exactly once, whatever happens to the server,
and that a server that dies or hangs is replaced, with a growing pause while it keeps failing. It
never talks to a child. Everything runs in callbacks of one event loop.

Children are made ahead of their calls, and one of them is given its package ahead too, if it is
clear which: a call of that package then waits for nothing but its process.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import nodejs, wire
from sandbox.child import Child, Ended, Fitting, Profile
from sandbox.confine import PACKAGE
from sandbox.demand import Demand
from sandbox.descriptors import receive
from sandbox.model import PoolSettings
from sandbox.wire import ENDED, FORKED, MESSAGE_MAX_BYTES, SPAWN, TAKE

__all__ = ["PYTHON_DEFAULT", "ForkServer", "ServerFailed"]

# A fork beside a short execution on two cores doubles its time; who waits is served at once.
_REFILL_AFTER_S = 0.005
_GIVE_AFTER_S = 0.02  # one that has just been made rehearses first
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.05, 5.0
_FAILURES_MAX = 3  # deaths in a row without one child: callers are told, tries go on
_NODE_PAUSE_S = 1.0
_FDS_MAX, _CHILD_FDS = 128, 4
_BOOT = "import sys; sys.path.append(sys.argv[1]); from sandbox.zygote import main; " + (
    "sys.path.pop(); main(int(sys.argv[2]))"
)
# The interpreter itself, not a virtual environment's link to it.
PYTHON_DEFAULT: str = getattr(sys, "_base_executable", "") or sys.executable


class ServerFailed(Exception):
    """No child can be had; `layer` is the layer that could not be set up, or empty.

    `child_died`: only this child is gone, with nothing run; another one may do.
    """

    def __init__(self, layer: str, reason: str, *, child_died: bool = False) -> None:
        super().__init__(f"{layer}: {reason}" if layer else reason)
        self.layer = layer
        self.reason = reason
        self.child_died = child_died


@dataclass(slots=True)
class _Spawn:
    """A child that has been asked for; `caller` waits for it, None: it is a spare."""

    profile: Profile
    fitting: Fitting | None
    caller: asyncio.Future[Child] | None = None

    @property
    def is_wanted(self) -> bool:
        return self.caller is not None and not self.caller.done()


class ForkServer:
    """One fork server and its waiting children. `join` puts its process into a control group;
    `on_listeners` is given the sockets of its gateway each time it has started."""

    def __init__(
        self,
        start: dict[str, Any],
        settings: PoolSettings,
        join: Callable[[int], None],
        on_listeners: Callable[[list[int]], None],
    ) -> None:
        self._start = start
        self._settings = settings
        self._join = join
        self._on_listeners = on_listeners
        self._patience_s = settings.patience_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._relaunch: asyncio.TimerHandle | None = None
        self._refill: asyncio.TimerHandle | None = None
        self._answer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False
        self._number = 0
        self._failed: ServerFailed | None = None
        self._spawning: dict[int, _Spawn] = {}
        self._unsent: collections.deque[_Spawn] = collections.deque()  # there was no server
        self._ready: dict[Profile, list[Child]] = {}
        self._demands = {Profile(): Demand(settings.spares, settings.spares)}
        self._alive: dict[int, Child] = {}
        self._bare_bytes = 0
        self.missing: dict[str, str] = {}
        self.launched_at = 0.0
        self.served = 0

    @property
    def pid(self) -> int | None:
        """The server's process id on the host, if it runs."""
        return self._process.pid if self._process else None

    def spares(self, profile: Profile) -> int:
        """How many children of this kind wait for a call."""
        return len(self._ready.get(profile, ()))

    @property
    def profiles(self) -> list[Profile]:
        """The kinds of children that wait or are expected."""
        return list(self._demands)

    @property
    def imports(self) -> set[Fitting]:
        """What children that wait import ahead of their calls, or are about to."""
        now = self._loop.time()
        given = [child.fitting for ready in self._ready.values() for child in ready]
        given += [demand.expected(now) for demand in self._demands.values()]
        return {fitting for fitting in given if fitting is not None and fitting.preload}

    def launch(self) -> None:
        """Start the process and ask for its first children. Does not wait."""
        self._relaunch = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            folder = str(Path(__file__).resolve().parent.parent)
            fd = theirs.fileno()
            python = self._settings.python or PYTHON_DEFAULT
            try:
                self._process = subprocess.Popen(
                    [python, "-I", "-S", "-B", "-c", _BOOT, folder, str(fd)],
                    env={},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[fd],
                    start_new_session=True,  # a Ctrl-C at the terminal is the daemon's to judge
                    cwd="/",
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self._control = ours
        self._failed = None
        self.launched_at, self.served = time.monotonic(), 0
        self._loop.add_reader(ours.fileno(), self._on_message)
        try:
            self._join(self._process.pid)  # before it has any child
        except OSError as exc:
            self._fail(ServerFailed("cgroup", f"cannot join the control group: {exc.strerror}"))
            return
        with contextlib.suppress(ServerFailed):  # it died at once: heard like any other death
            self._send(json.dumps({**self._start, "parent": os.getpid()}).encode())
            self._fill()

    async def child(self, profile: Profile, fitting: Fitting) -> Child:
        """A child that is confined and has its package and its limits, or is about to; raises
        ServerFailed. That they could not be given is told to `child.on_refused`."""
        demand = self._demands.get(profile)
        if demand is None:
            most = self._settings.spares_node if profile.is_node else self._settings.spares
            demand = self._demands[profile] = Demand(0, most)
        demand.called(self._loop.time(), fitting)
        self.served += 1
        if self._refill is None:
            self._refill = self._loop.call_later(_REFILL_AFTER_S, self._fill)
        if (child := self._pick(profile, fitting)) is not None:
            return child
        if self._failed is not None:
            raise self._failed
        future: asyncio.Future[Child] = self._loop.create_future()
        try:
            with contextlib.suppress(ServerFailed):  # the next server is asked
                self._claim(_Spawn(profile, fitting, future))
            await asyncio.wait([future], timeout=self._patience_s)
            self._insist(future.done)
            if future.cancel():
                raise ServerFailed("", f"no process within {self._patience_s:g} s")
            return future.result()
        except asyncio.CancelledError:
            if not future.cancel() and future.exception() is None:
                self._put_back(future.result())  # it came in the same turn of the loop
            raise

    def require(self, layers: list[str]) -> None:
        """From now on nothing runs without these layers, whatever was required before."""
        self._start = {**self._start, "required": layers}
        with contextlib.suppress(ServerFailed):  # the next one is told when it starts
            self._send(b"R" + json.dumps(layers).encode())

    def check(self) -> None:
        """See that the server answers: one that hangs would let its executions hang too. It is
        killed if it does not."""
        if self._answer is None:
            self._answer = self._loop.call_later(
                self._patience_s, self._insist, lambda: self._answer is None
            )
            with contextlib.suppress(ServerFailed):
                self._send(b"P")

    def trim(self, now: float) -> None:
        """Let go of the spares that demand no longer asks for."""
        for profile, demand in list(self._demands.items()):
            ready = self._ready.get(profile, [])
            for _ in range(len(ready) - demand.spares(now)):
                ready.pop().close()
            if demand.is_idle(now) and not ready:
                self._ready.pop(profile, None)
                del self._demands[profile]
        self._fill()

    def close(self) -> None:
        """Kill the server and with it all its children; does not wait for their end."""
        self._closed = True
        for timer in (self._relaunch, self._refill):
            if timer is not None:
                timer.cancel()
        self._lost()

    # --- inside ------------------------------------------------------------------------------

    def _pick(self, profile: Profile, fitting: Fitting) -> Child | None:
        """Of those that wait, one that has been given this, or one that can be."""
        ready = self._ready.get(profile, [])
        for wanted in (fitting, None):
            for child in ready:
                if child.fitting == wanted:
                    if wanted is None:
                        self._fit(child, fitting)
                    ready.remove(child)
                    return child
        return None

    def _claim(self, wanted: _Spawn) -> None:
        """Have this child made, or take over one that was to be a spare."""
        for number, spawn in self._spawning.items():
            if spawn.profile == wanted.profile and not spawn.is_wanted:
                if spawn.fitting is None:
                    self._send(_take(number, wanted.fitting))
                elif spawn.fitting != wanted.fitting:
                    continue
                self._spawning[number] = wanted
                return
        self._spawn(wanted)

    def _spawn(self, spawn: _Spawn) -> None:
        if self._control is None:
            self._unsent.append(spawn)
            return
        self._number += 1
        self._spawning[self._number] = spawn
        index = wire.PROFILES.index(spawn.profile.name)
        message = SPAWN.pack(b"S", self._number, index, spawn.profile.heap_mib)
        self._send(message + _take(self._number, spawn.fitting))

    def _fit(self, child: Child, fitting: Fitting) -> None:
        child.fitting = fitting
        self._send(_take(child.number, fitting))

    def _fill(self) -> None:
        """Have as many children made as wait for one, and as demand says."""
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None
        if self._control is None:
            return
        now = self._loop.time()
        with contextlib.suppress(ServerFailed):  # its end is heard soon; the next one is asked
            while self._unsent:
                self._spawn(self._unsent.popleft())
            for profile, demand in self._demands.items():
                self._stock(profile, demand.spares(now), demand.expected(now))

    def _stock(self, profile: Profile, wanted: int, expected: Fitting | None) -> None:
        """Have so many spares, one of them with what is expected: the others take any call."""
        ready = self._ready.setdefault(profile, [])
        for child in [child for child in ready if child.fitting not in (None, expected)]:
            ready.remove(child)
            child.close()
        coming = sum(
            spawn.profile == profile and not spawn.is_wanted for spawn in self._spawning.values()
        )
        for _ in range(wanted - len(ready) - coming):
            self._spawn(_Spawn(profile, None))
        # The one that has waited longest: it has rehearsed by now.
        fit = any(child.fitting is not None for child in ready)
        if expected is not None and wanted > 1 and ready and not fit:
            self._fit(ready[0], expected)
            self._prepare(ready[0], expected)

    def _prepare(self, child: Child, fitting: Fitting) -> None:
        inside = "private-root" in self._start["layers"] and "private-root" not in self.missing
        child.prepare(PACKAGE if inside else fitting.package, fitting)

    def _send(self, message: bytes) -> None:
        try:
            if self._control is None:
                raise BrokenPipeError
            self._control.send(message)
        except OSError as exc:
            # The queue of a socket pair holds hundreds of these: a full one means it hangs.
            self._stop_process()
            raise ServerFailed("", "the fork server is gone", child_died=True) from exc

    def _on_message(self) -> bool:
        """Whether there was one."""
        if self._control is None:
            return False
        try:
            data, fds = receive(self._control, MESSAGE_MAX_BYTES, _FDS_MAX)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        if not data:
            self._lost()
        elif data[0] == ord("F") and len(fds) != _CHILD_FDS:
            for fd in fds:  # this process may open no more
                os.close(fd)
            self._stop_process()
        elif data[0] == ord("F"):
            self._on_forked(FORKED.unpack(data)[1], fds)
        elif data[0] == ord("P"):
            self._answered()
        elif data[0] == ord("E"):
            _, number, status, cpu_us, peak_kib = ENDED.unpack(data)
            self._on_ended(number, Ended(status, cpu_us // 1000, peak_kib * 1024))
        else:
            self._on_words(json.loads(data), fds)
        return True

    def _answered(self) -> None:
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

    def _on_words(self, message: dict[str, Any], fds: list[int]) -> None:
        if "started" in message:
            self.missing = message["missing"]
            if lacking := sorted(self.missing.keys() & set(self._start["required"])):
                for fd in fds:
                    os.close(fd)
                self._fail(ServerFailed(lacking[0], self.missing[lacking[0]]))
                return
            if "memory-watchdog" in self._start["layers"]:
                self._bare_bytes = message["resident"]
            self._on_listeners(fds)
        elif "refused" in message:
            child = self._alive.get(message["refused"])
            if child is not None and not message["dead"]:
                self._on_refused(child, message["reason"])
        else:
            self._fail(ServerFailed(message["failed"], message["reason"]))

    def _on_forked(self, number: int, fds: list[int]) -> None:
        spawn = self._spawning.pop(number)
        ended: asyncio.Future[Ended] = self._loop.create_future()
        bare = self._bare_bytes
        if bare and spawn.profile.is_node:
            bare = nodejs.RESIDENT_BYTES
        child = Child(number, spawn.profile, fds, ended, self._expect_end, bare)
        child.fitting = spawn.fitting
        self._alive[number] = child
        if spawn.caller is not None and not spawn.caller.done():
            spawn.caller.set_result(child)
        else:
            self._put_back(child)

    def _put_back(self, child: Child) -> None:
        with contextlib.suppress(OSError):  # its end is heard soon
            child.look_up()
        self._ready.setdefault(child.profile, []).append(child)
        demand = self._demands.get(child.profile)
        if self._refill is None and demand is not None and demand.expected(self._loop.time()):
            # Perhaps none of those that waited could be given what is expected.
            self._refill = self._loop.call_later(_GIVE_AFTER_S, self._fill)

    def _on_refused(self, child: Child, reason: str) -> None:
        child.refuse(reason)
        ready = self._ready.get(child.profile, [])
        if child in ready:
            ready.remove(child)
            child.close()

    def _on_ended(self, number: int, ended: Ended) -> None:
        child = self._alive.pop(number)
        child.ended.set_result(ended)
        ready = self._ready.get(child.profile, [])
        if child not in ready:
            if child.is_ready:
                self._failures = 0
        else:
            ready.remove(child)
            if child.fitting is not None and child.profile in self._demands:
                self._demands[child.profile].disappoint()
            was_ready, unconfined = child.last_words()
            child.close()
            if unconfined is not None:
                self._fail(ServerFailed(*unconfined))
            else:
                self._on_killed_waiting(child, was_ready)

    def _on_killed_waiting(self, child: Child, was_ready: bool) -> None:
        """A child was killed while it waited, by no layer's fault: make another one. If that
        goes on, the server is at fault, and who waits is told as for its own deaths. But a Node
        that does not start is a matter of Node's."""
        if child.profile.is_node and not was_ready:
            if self._refill is None:
                self._refill = self._loop.call_later(_NODE_PAUSE_S, self._fill)
            return
        if not was_ready:
            self._failures += 1
        if self._failures < _FAILURES_MAX:
            self._fill()
        else:
            self._stop_process()

    def _fail(self, failure: ServerFailed) -> None:
        """A layer could not be set up: nobody gets a child until the next try."""
        self._failed = failure
        self._stop_process()

    def _lost(self) -> None:
        """The server has ended: so have all its children; try again after a pause."""
        self._stop_process()
        self._answered()
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.wait()  # it was killed: this is the time of a process's exit
            self._process = None
        self._unsent.extend(spawn for spawn in self._spawning.values() if spawn.is_wanted)
        self._spawning.clear()
        for ready in self._ready.values():
            for child in ready:
                child.close()
            ready.clear()
        gone = self._failed or ServerFailed("", "the fork server ended", child_died=True)
        for child in self._alive.values():
            child.ended.set_result(Ended(None))
        self._alive.clear()
        if self._failed or self._closed or self._failures >= _FAILURES_MAX:
            for spawn in self._unsent:
                if spawn.caller is not None and not spawn.caller.done():
                    spawn.caller.set_exception(gone)
            self._unsent.clear()
        if not self._closed and self._relaunch is None:
            pause = min(_PAUSE_FIRST_S * 2**self._failures, _PAUSE_MAX_S)
            self._failures += 1
            self._relaunch = self._loop.call_later(pause, self.launch)

    def _expect_end(self, child: Child) -> None:
        """Its end must be reported soon: a hung server would keep the slot for ever."""
        if not child.ended.done():
            timer = self._loop.call_later(self._patience_s, self._insist, child.ended.done)
            child.ended.add_done_callback(lambda _ended: timer.cancel())

    def _insist(self, came: Callable[[], bool]) -> None:
        """Patience has run out: the server is killed, and its end is heard as any other, unless
        what it owed is here already. It is if this loop, and not the server, stood still."""
        while not came() and self._on_message():
            pass
        if not came():
            self._stop_process()

    def _stop_process(self) -> None:
        if self._process is not None:
            self._process.kill()


def _take(number: int, fitting: Fitting | None) -> bytes:
    if fitting is None:
        return b""
    return TAKE.pack(b"T", number, *fitting[1:7]) + os.fsencode(fitting.package) + b"\0"
