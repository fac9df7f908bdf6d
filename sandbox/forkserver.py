"""The pool's side of one fork server: start it, command it, hear of deaths, start it again.

Owns the server's process, its control socket and the queue of confined children that wait for a
call. It promises that every child handed out reports its end exactly once, whatever happens to
the server, and that a server that dies or hangs is replaced, with a growing pause while it keeps
failing. It never talks to a child. Everything runs in callbacks of one event loop.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.model import Limits, PoolSettings
from sandbox.wire import MESSAGE_MAX_BYTES, SPAWN, TAKE

__all__ = ["PYTHON_DEFAULT", "Child", "Ended", "ForkServer", "ServerFailed"]

# A fork beside a short execution on two cores doubles its time; who waits is served at once.
_REFILL_AFTER_S = 0.005
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.05, 5.0
_FAILURES_MAX = 3  # deaths in a row without one child: callers are told, tries go on
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


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child died; `wait_status` None if its server died with it."""

    wait_status: int | None
    cpu_ms: int = 0
    peak_memory_bytes: int = 0
    over_memory: bool = False


class Child:
    """One confined process that waits for a call, or runs it. Close it when done with it."""

    def __init__(
        self,
        number: int,
        fds: list[int],
        ended: asyncio.Future[Ended],
        on_closed: Callable[[Child], None],
    ) -> None:
        self.number = number
        self.channel = socket.socket(fileno=fds[0])
        self.channel.setblocking(False)
        self.stdout, self.stderr, self._pidfd = fds[1:]
        os.set_blocking(self.stdout, False)
        os.set_blocking(self.stderr, False)
        self.ended = ended
        self._on_closed = on_closed
        self.host_pid = _pid_of(self._pidfd)

    def kill(self) -> None:
        """Kill it and everything it started; nothing happens if it is dead already."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Kill it and let go of its descriptors."""
        self.kill()
        if self._pidfd >= 0:
            self.channel.close()
            for fd in (self.stdout, self.stderr, self._pidfd):
                os.close(fd)
            self._pidfd = -1
            self._on_closed(self)


class ForkServer:
    """One fork server and its waiting children."""

    def __init__(
        self, python: str, start: dict[str, Any], settings: PoolSettings, cpus: list[int]
    ) -> None:
        self._python = python
        self._start = start
        self._spares = settings.spares
        self._patience_s = settings.patience_ms / 1000
        self._cpus = cpus
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._relaunch: asyncio.TimerHandle | None = None
        self._refill: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False
        self._number = 0
        self._failed: ServerFailed | None = None
        self._spawning: set[int] = set()
        self._ready: collections.deque[Child] = collections.deque()
        self._waiting: collections.deque[asyncio.Future[Child]] = collections.deque()
        self._alive: dict[int, asyncio.Future[Ended]] = {}
        self._takes: dict[int, asyncio.Future[None]] = {}
        self.missing: dict[str, str] = {}
        self.running = 0  # children handed out and not dead yet

    @property
    def pid(self) -> int | None:
        """The server's process id on the host, if it runs."""
        return self._process.pid if self._process else None

    def launch(self) -> None:
        """Start the process and ask for its first children. Does not wait."""
        self._relaunch = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            folder = str(Path(__file__).resolve().parent.parent)
            fd = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [self._python, "-I", "-S", "-B", "-c", _BOOT, folder, str(fd)],
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
        self._loop.add_reader(ours.fileno(), self._on_message)
        with contextlib.suppress(ServerFailed):  # it died at once: heard like any other death
            self._send(json.dumps({**self._start, "parent": os.getpid()}).encode())
            self._fill()

    async def child(self) -> Child:
        """A confined child that waits for its call; raises ServerFailed."""
        if self._ready:
            child = self._ready.popleft()
        elif self._failed is not None:
            raise self._failed
        else:
            future: asyncio.Future[Child] = self._loop.create_future()
            self._waiting.append(future)
            try:
                self._fill()
                await asyncio.wait([future], timeout=self._patience_s)
                if future.cancel():
                    self._stop_process()  # hung: its end is heard as an ordinary death
                    raise ServerFailed("", f"no process within {self._patience_s:g} s")
                child = future.result()
            except asyncio.CancelledError:
                if not future.cancel() and future.exception() is None:
                    self._ready.append(future.result())  # it came in the same turn of the loop
                raise
            finally:
                if future in self._waiting:
                    self._waiting.remove(future)
        self.running += 1
        child.ended.add_done_callback(self._one_less)
        return child

    async def take(self, child: Child, package: str, limits: Limits, temp: bool) -> None:
        """Give a child its package and its limits; raises ServerFailed if that cannot be."""
        cpu_ms = limits.cpu_ms or limits.wall_ms + 1000
        message = TAKE.pack(
            b"T",
            child.number,
            limits.memory_bytes,
            -(-cpu_ms // 1000),
            limits.open_files,
            limits.threads,
            limits.temp_bytes if temp else 0,
        )
        future = self._takes[child.number] = self._loop.create_future()
        try:
            self._send(message + os.fsencode(package) + b"\0")
            async with asyncio.timeout(self._patience_s):
                await future
        except TimeoutError:
            self._stop_process()
            raise ServerFailed("", f"no answer within {self._patience_s:g} s") from None
        finally:
            self._takes.pop(child.number, None)

    def refill_soon(self) -> None:
        """Replace the child that was taken, once the execution has had the machine to itself."""
        if self._refill is None:
            self._refill = self._loop.call_later(_REFILL_AFTER_S, self._fill)

    def close(self) -> None:
        """Kill the server and with it all its children; does not wait for their end."""
        self._closed = True
        for timer in (self._relaunch, self._refill):
            if timer is not None:
                timer.cancel()
        self._lost()

    # --- inside ------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Have as many children waiting as the settings say, and one for each who waits."""
        self._refill = None
        if self._control is None:
            return
        target = self._spares + len(self._waiting)
        while len(self._ready) + len(self._spawning) < target:
            self._number += 1
            self._spawning.add(self._number)
            cpu = self._cpus[self._number % len(self._cpus)]
            try:
                self._send(SPAWN.pack(b"S", self._number, cpu))
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
            return
        message = json.loads(data)
        if "ready" in message:
            self._on_ready(message["ready"], fds)
        elif "taken" in message:
            self._answer_take(message["taken"], None)
        elif "refused" in message:
            refusal = ServerFailed("", message["reason"], child_died=message["dead"])
            self._answer_take(message["refused"], refusal)
        elif "ended" in message:
            self._on_ended(message)
        elif "failed" in message:
            self._spawning.discard(message.get("child", 0))
            if message["failed"]:
                self._fail(ServerFailed(message["failed"], message["reason"]))
            else:
                self._on_killed_unborn()
        else:
            self.missing.update(message["missing"])

    def _on_ready(self, number: int, fds: list[int]) -> None:
        self._spawning.discard(number)
        self._failures = 0
        self._failed = None
        ended = self._alive[number] = self._loop.create_future()
        child = Child(number, fds, ended, self._expect_end)
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(child)
                return
        self._ready.append(child)

    def _on_ended(self, message: dict[str, Any]) -> None:
        number = message["ended"]
        self._answer_take(number, ServerFailed("", "the process died", child_died=True))
        future = self._alive.pop(number, None)
        if future is None:
            return  # it died before it was confined
        for child in list(self._ready):
            if child.number == number:
                self._ready.remove(child)
                child.close()
                self._fill()
        future.set_result(
            Ended(
                message["status"],
                message["cpu_us"] // 1000,
                message["peak_kib"] * 1024,
                message["memory"],
            )
        )

    def _on_killed_unborn(self) -> None:
        """A child was killed while it was made, by no layer's fault: make another one. If that
        goes on, the server is at fault, and who waits is told as for its own deaths."""
        self._failures += 1
        if self._failures < _FAILURES_MAX:
            self._fill()
        else:
            self._stop_process()

    def _answer_take(self, number: int, failure: ServerFailed | None) -> None:
        future = self._takes.get(number)
        if future is None or future.done():
            return
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)

    def _fail(self, failure: ServerFailed) -> None:
        """A layer could not be set up: nobody gets a child until the next try."""
        self._failed = failure
        self._stop_process()

    def _lost(self) -> None:
        """The server has ended: so have all its children; try again after a pause."""
        self._stop_process()
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.wait()  # it was killed: this is the time of a process's exit
            self._process = None
        self._spawning.clear()
        for child in self._ready:
            child.close()
        self._ready.clear()
        gone = self._failed or ServerFailed("", "the fork server ended", child_died=True)
        for take in list(self._takes):
            self._answer_take(take, gone)
        for future in self._alive.values():
            future.set_result(Ended(None))
        self._alive.clear()
        if self._failed or self._closed or self._failures >= _FAILURES_MAX:
            while self._waiting:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_exception(gone)
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

    def _one_less(self, _future: asyncio.Future[Ended]) -> None:
        self.running -= 1


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    fds: array.array[int] = array.array("i")
    space = socket.CMSG_SPACE(8 * fds.itemsize)
    data, ancillary, _flags, _address = control.recvmsg(
        MESSAGE_MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _pid_of(pidfd: int) -> int:
    """The process id as this process's /proc shows it (pidfd_open(2), fdinfo)."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return -1
