"""One confined process as the pool holds it: its channel, its output, its death.

Owns the four descriptors that came with it and closes them once. It promises that `kill` reaches
the process and everything it started (it is process 1 of its PID namespace, pid_namespaces(7)),
and that `ended` is resolved exactly once, by whoever hears of the death. It reads no frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sandbox import wire
from sandbox.alarm import Alarm
from sandbox.descriptors import receive

__all__ = ["Child", "Ended", "Fitting", "Profile"]

_PAGE = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Profile:
    """What a child is made for, before its call is known. `name` is one of `wire.PROFILES`."""

    name: str = "python"
    heap_mib: int = 0

    @property
    def is_node(self) -> bool:
        """Whether it is started by an exec, which takes 30 ms instead of 3."""
        return self.name.startswith("node")

    def __str__(self) -> str:
        return f"{self.name}:{self.heap_mib}" if self.heap_mib else self.name


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child died; `wait_status` None if its server died with it."""

    wait_status: int | None
    cpu_ms: int = 0
    peak_memory_bytes: int = 0


class Fitting(NamedTuple):
    """What a child is given before a call: its package and its limits. One that waits also makes
    itself ready for `entrypoint`, and with `preload` imports it."""

    package: str
    memory_bytes: int
    cpu_s: int
    open_files: int
    threads: int
    temp_bytes: int
    cores: int
    entrypoint: str
    preload: bool
    reuse: bool


class Child:
    """A confined process that waits for a call, or runs one. Close it when done with it."""

    def __init__(
        self,
        number: int,
        profile: Profile,
        fds: list[int],
        ended: asyncio.Future[Ended],
        on_closed: Callable[[Child], None],
        bare_bytes: int = 0,
    ) -> None:
        """`bare_bytes`: resident memory before a handler allocates any; 0: it is not watched."""
        self.number = number
        self.bare_bytes = bare_bytes
        self.profile = profile
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fds[0])
        self.channel.setblocking(False)
        self.stdout, self.stderr, self._pidfd = fds[1:]
        os.set_blocking(self.stdout, False)
        os.set_blocking(self.stderr, False)
        self._poll = select.poll()
        for fd in fds[:3]:
            self._poll.register(fd, select.POLLIN)
        self.loop = asyncio.get_running_loop()
        self.alarm = Alarm(self.loop)  # for whoever has it at the moment
        self.ended = ended
        self.made_at = time.monotonic()
        self.uses = 0
        self.is_ready = False  # it has said so
        self.fitting: Fitting | None = None  # what it has been given
        self.refused = ""  # why it could not be given that
        self.last_peak_bytes = 0
        self.idle_since = self.idle_s = 0.0  # while it is kept for another execution
        # Told why its package could not be attached; nothing has run then.
        self.on_refused: Callable[[str], None] | None = None
        self._on_closed = on_closed
        self._on_data: Callable[[], None] = self._unasked
        self._is_heard = self._is_killed = False
        self._status = self._statm = -1
        self._host_pid = 0
        self._expects_listener = False
        self._listener = -1

    @property
    def host_pid(self) -> int:
        """Its process id as this process sees it; -1 once it is dead, if nobody asked before."""
        if not self._host_pid:
            self._host_pid = _pid_of(self._pidfd)
        return self._host_pid

    def listen(self, on_data: Callable[[], None]) -> None:
        """Call this whenever the channel can be read, until `leave`."""
        self._on_data = on_data
        if not self._is_heard:
            self._is_heard = True
            self.loop.add_reader(self.channel.fileno(), self._readable)

    def leave(self) -> None:
        """Nobody listens any more: whatever comes now was not asked for, and it is killed."""
        self._on_data = self._unasked

    def expect_listener(self) -> None:
        """Its first frame may come with a descriptor, which `take_listener` returns then."""
        self._expects_listener = True

    def take_listener(self) -> int:
        """The descriptor that came, which is the caller's from now on; -1 if none did."""
        fd, self._listener = self._listener, -1
        return fd

    def receive(self, size: int) -> bytes:
        """recv(2) on the channel; what a handler passes along is dropped by the kernel."""
        if not self._expects_listener:
            return self.channel.recv(size)
        data, fds = receive(self.channel, size, 1)
        self._expects_listener = False
        self._listener = fds[0] if fds else -1
        return data

    def readable(self) -> list[int]:
        """Of its channel, its standard output and its error output: which have something to be
        read, or have ended. One look at all takes less than one that finds nothing to read."""
        return [fd for fd, _events in self._poll.poll(0)]

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come on the channel that was not received."""
        return self.channel.fileno() not in self.readable()

    def prepare(self, root: str, fitting: Fitting) -> None:
        """Have it read the package at `root` ahead of its call, and import it if so told."""
        said = {"root": root, "entrypoint": fitting.entrypoint, "import": fitting.preload}
        text = wire.encode({**said, "reuse": fitting.reuse})
        with contextlib.suppress(OSError):  # it is dead, which is heard
            self.channel.send(wire.frame(wire.PREPARE, bytes(wire.TOKEN_BYTES), text))

    def refuse(self, reason: str) -> None:
        """Its package could not be attached: tell whoever waits, now or later."""
        self.refused = reason
        if self.on_refused is not None:
            self.on_refused(reason)

    def kill(self) -> None:
        """Kill it and everything it started; nothing happens if it is dead already."""
        if not self._is_killed:
            self._is_killed = True
            self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Let nothing of it run until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def last_words(self) -> tuple[bool, tuple[str, str] | None]:
        """Of one that has died while it waited: whether it had been ready; or which layer could
        not be had, and why."""
        try:
            for frame in wire.FrameReader(4096).feed(self.channel.recv(8192)):
                if frame.kind == wire.UNCONFINED:
                    return False, wire.unconfined(frame.payload)
                if frame.kind != wire.LISTENER:
                    return frame.kind == wire.READY, None
        except (OSError, wire.ProtocolError):
            pass
        return False, None

    def close_after_death(self) -> None:
        """Kill it, and let go of its descriptors once it is dead: not while somebody waits."""
        self.kill()
        if self.ended.done():
            self.close()
        else:
            self._on_closed(self)
            self.ended.add_done_callback(lambda _ended: self.close())

    def close(self) -> None:
        """Kill it and let go of its descriptors."""
        self.kill()
        if self._pidfd >= 0:
            self._stop_hearing()
            self.alarm.close()
            self.channel.close()
            fds = (self.stdout, self.stderr, self._pidfd, self._status, self._statm)
            for fd in (*fds, self.take_listener()):
                if fd >= 0:
                    os.close(fd)
            self._pidfd = -1
            if not self.ended.done():
                self._on_closed(self)

    def look_up(self) -> None:
        """Open what is read of it at the end of each call: the time to do so is while it waits.
        Raises OSError if it is dead."""
        if self._status < 0:
            self._status = os.open(f"/proc/{self.host_pid}/status", os.O_RDONLY)

    def cpu_ns(self) -> int:
        """CPU time so far (clock_getcpuclockid(3)); 0 once it is dead."""
        if self.host_pid <= 0:
            return 0
        try:
            return time.clock_gettime_ns(~self.host_pid << 3 | 2)
        except OSError:
            return 0

    def peak_memory_bytes(self) -> int | None:
        """Its highest resident memory (VmHWM of proc(5)); None once it is dead."""
        try:
            self.look_up()
            status = os.pread(self._status, 2048, 0)
            at = status.index(b"VmHWM:") + 6
            self.last_peak_bytes = int(status[at : status.index(b"kB", at)]) * 1024
            return self.last_peak_bytes
        except (OSError, ValueError):
            return None

    def resident_bytes(self) -> int:
        """Its resident memory (statm of proc(5)); 0 once it is dead."""
        try:
            if self._statm < 0:
                self._statm = os.open(f"/proc/{self.host_pid}/statm", os.O_RDONLY)
            return int(os.pread(self._statm, 200, 0).split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def _readable(self) -> None:
        self._on_data()

    def _unasked(self) -> None:
        self._stop_hearing()
        self.kill()

    def _stop_hearing(self) -> None:
        if self._is_heard:
            self._is_heard = False
            self.loop.remove_reader(self.channel.fileno())

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass


def _pid_of(pidfd: int) -> int:
    """The process id as this process's /proc shows it (pidfd_open(2), fdinfo)."""
    try:
        fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY)
    except OSError:  # this process may open no more
        return -1
    try:
        return int(os.read(fd, 1024).split(b"\nPid:", 1)[1].split(None, 1)[0])
    except IndexError:
        return -1
    finally:
        os.close(fd)
