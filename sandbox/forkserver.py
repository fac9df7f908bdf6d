"""The pool's side of one fork server: start it, command it, hear of deaths, start it again.

Owns the server's process, its control socket and the confined children that wait for a call. It
promises that every child handed out reports its end exactly once, whatever happens to the server,
and that a server that dies or hangs is replaced, with a growing pause while it keeps failing. It
never talks to a child. Everything runs in callbacks of one event loop.
"""

from __future__ import annotations

import array
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
from pathlib import Path
from typing import Any

from sandbox import wire
from sandbox.child import Child, Ended, Profile
from sandbox.demand import Demand
from sandbox.model import Limits, PoolSettings
from sandbox.wire import ENDED, FORKED, MESSAGE_MAX_BYTES, SPAWN, TAKE

__all__ = ["PYTHON_DEFAULT", "ForkServer", "ServerFailed"]

# A fork beside a short execution on two cores doubles its time; who waits is served at once.
_REFILL_AFTER_S = 0.005
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.05, 5.0
_FAILURES_MAX = 3  # deaths in a row without one child: callers are told, tries go on
_NODE_PAUSE_S = 1.0
_FDS_MAX = 128
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from sandbox.zygote import main; sys.path.pop(); "
    "main(int(sys.argv[2]))"
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
        self._spawning: dict[int, Profile] = {}
        self._ready: dict[Profile, collections.deque[Child]] = {}
        self._waiting: dict[Profile, collections.deque[asyncio.Future[Child]]] = {}
        self._demands = {Profile(): Demand(settings.spares, settings.spares)}
        self._alive: dict[int, Child] = {}
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

    async def child(self, profile: Profile) -> Child:
        """A child that is confined or about to be, to be given its package; raises
        ServerFailed."""
        demand = self._demands.get(profile)
        if demand is None:
            most = self._settings.spares_node if profile.is_node else self._settings.spares
            demand = self._demands[profile] = Demand(0, most)
        demand.called(self._loop.time())
        self.served += 1
        if ready := self._ready.get(profile):
            return ready.popleft()
        if self._failed is not None:
            raise self._failed
        future: asyncio.Future[Child] = self._loop.create_future()
        waiting = self._waiting.setdefault(profile, collections.deque())
        waiting.append(future)
        try:
            self._fill()
            await asyncio.wait([future], timeout=self._patience_s)
            if future.cancel():
                self._stop_process()  # hung: its end is heard as an ordinary death
                raise ServerFailed("", f"no process within {self._patience_s:g} s")
            return future.result()
        except asyncio.CancelledError:
            if not future.cancel() and future.exception() is None:
                self._put_back(future.result())  # it came in the same turn of the loop
            raise
        finally:
            if future in waiting:
                waiting.remove(future)

    def take(self, child: Child, package: str, limits: Limits, cpu_s: int, temp: bool) -> None:
        """Have a child given its package and its limits; raises ServerFailed. That it could not be
        done is told to `child.on_refused`."""
        message = TAKE.pack(
            b"T",
            child.number,
            limits.memory_bytes,
            cpu_s,
            limits.open_files,
            limits.threads,
            limits.temp_bytes if temp else 0,
        )
        self._send(message + os.fsencode(package) + b"\0")

    def check(self) -> None:
        """See that the server answers: one that hangs would let its executions hang too. It is
        killed if it does not."""
        if self._answer is None:
            self._answer = self._loop.call_later(self._patience_s, self._stop_process)
            with contextlib.suppress(ServerFailed):
                self._send(b"P")

    def refill_soon(self) -> None:
        """Replace the child that was taken, once the execution has had the machine to itself."""
        if self._refill is None:
            self._refill = self._loop.call_later(_REFILL_AFTER_S, self._fill)

    def trim(self, now: float) -> None:
        """Let go of the spares that demand no longer asks for."""
        for profile, demand in list(self._demands.items()):
            ready = self._ready.get(profile) or collections.deque()
            for _ in range(len(ready) - demand.spares(now)):
                ready.pop().close()
            if demand.is_idle(now) and not ready and not self._waiting.get(profile):
                self._ready.pop(profile, None)
                self._waiting.pop(profile, None)
                del self._demands[profile]

    def close(self) -> None:
        """Kill the server and with it all its children; does not wait for their end."""
        self._closed = True
        for timer in (self._relaunch, self._refill):
            if timer is not None:
                timer.cancel()
        self._lost()

    # --- inside ------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Have as many children waiting as demand says, and one for each who waits."""
        self._refill = None
        if self._control is None:
            return
        now = self._loop.time()
        expected = collections.Counter(self._spawning.values())
        for profile, demand in self._demands.items():
            target = demand.spares(now) + len(self._waiting.get(profile, ()))
            for _ in range(target - self.spares(profile) - expected[profile]):
                self._number += 1
                self._spawning[self._number] = profile
                index = wire.PROFILES.index(profile.name)
                try:
                    self._send(SPAWN.pack(b"S", self._number, index, profile.heap_mib))
                except ServerFailed:
                    return  # its end is heard soon, and the next one is asked again

    def _send(self, message: bytes) -> None:
        try:
            if self._control is None:
                raise BrokenPipeError
            self._control.send(message)
        except OSError as exc:
            # The queue of a socket pair holds hundreds of these: a full one means it hangs.
            self._stop_process()
            raise ServerFailed("", "the fork server is gone", child_died=True) from exc

    def _on_message(self) -> None:
        assert self._control is not None
        try:
            data, fds = _receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lost()
        elif data[0] == ord("F"):
            self._on_forked(FORKED.unpack(data)[1], fds)
        elif data[0] == ord("P"):
            self._answered()
        elif data[0] == ord("E"):
            _, number, status, cpu_us, peak_kib, over, taken = ENDED.unpack(data)
            ended = Ended(status, cpu_us // 1000, peak_kib * 1024, over, taken)
            self._on_ended(number, ended)
        else:
            self._on_words(json.loads(data), fds)

    def _answered(self) -> None:
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

    def _on_words(self, message: dict[str, Any], fds: list[int]) -> None:
        if "started" in message:
            self.missing = message["missing"]
            self._on_listeners(fds)
        elif "refused" in message:
            child = self._alive.get(message["refused"])
            if child is not None and child.on_refused is not None and not message["dead"]:
                child.on_refused(message["reason"])
        else:
            self._fail(ServerFailed(message["failed"], message["reason"]))

    def _on_forked(self, number: int, fds: list[int]) -> None:
        profile = self._spawning.pop(number)
        ended: asyncio.Future[Ended] = self._loop.create_future()
        child = self._alive[number] = Child(number, profile, fds, ended, self._expect_end)
        self._put_back(child)

    def _put_back(self, child: Child) -> None:
        waiting = self._waiting.get(child.profile)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(child)
                return
        self._ready.setdefault(child.profile, collections.deque()).append(child)

    def _on_ended(self, number: int, ended: Ended) -> None:
        child = self._alive.pop(number)
        if ended.taken:
            self._failures = 0
        child.ended.set_result(ended)
        ready = self._ready.get(child.profile)
        if ready and child in ready:
            ready.remove(child)
            was_ready, unconfined = _last_words(child)
            child.close()
            if unconfined is not None:
                self._fail(unconfined)
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
            for waiting in self._waiting.values():
                while waiting:
                    future = waiting.popleft()
                    if not future.done():
                        future.set_exception(gone)
        if not self._closed and self._relaunch is None:
            pause = min(_PAUSE_FIRST_S * 2**self._failures, _PAUSE_MAX_S)
            self._failures += 1
            self._relaunch = self._loop.call_later(pause, self.launch)

    def _expect_end(self, child: Child) -> None:
        """Its end must be reported soon: a hung server would keep the slot for ever."""
        if not child.ended.done():
            timer = self._loop.call_later(self._patience_s, self._stop_process)
            child.ended.add_done_callback(lambda _ended: timer.cancel())

    def _stop_process(self) -> None:
        if self._process is not None:
            self._process.kill()


def _last_words(child: Child) -> tuple[bool, ServerFailed | None]:
    """Whether a dead child that was given nothing had been ready; or why it could not be
    confined."""
    try:
        for frame in wire.FrameReader(4096).feed(child.channel.recv(8192)):
            if frame.kind == wire.UNCONFINED:
                return False, ServerFailed(*wire.unconfined(frame.payload))
            return frame.kind == wire.READY, None
    except (OSError, wire.ProtocolError):
        pass
    return False, None


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    fds: array.array[int] = array.array("i")
    space = socket.CMSG_SPACE(_FDS_MAX * fds.itemsize)
    data, ancillary, _flags, _address = control.recvmsg(
        MESSAGE_MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
