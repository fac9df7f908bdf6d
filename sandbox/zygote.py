"""The fork server: a small, single-threaded interpreter that makes confined children.

Started by exec with an empty environment, never forked from the daemon, so nothing of the daemon's
memory can be in a child. It confines itself (`confine.SERVER_STEPS`), forks children ahead of
their calls, attaches the package once a call comes, sets the call's limits, watches resident
memory, reaps and reports. It never reads a request or a result, and dies with its parent.

Protocol (SOCK_SEQPACKET; the pool commands in fixed binary, so that a package's path is never
left in memory that later children inherit; the answers are JSON with descriptors):
`S` spawn -> {"ready": n} + channel, stdout, stderr, pidfd | {"failed": layer, "reason"};
`T` take n with limits and package -> {"taken": n} | {"refused": n, "reason"};
and, unasked, {"ended": n, "status", "cpu_us", "peak_kib", "memory"}.
"""

from __future__ import annotations

import _socket
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
import traceback
from dataclasses import dataclass
from typing import Any

from sandbox import confine, linux, runner
from sandbox.wire import MESSAGE_MAX_BYTES, SPAWN, TAKE

__all__ = ["main"]

# What most handlers import anyway. Each costs every fork a little, and a handler that needs it and
# does not find it here much more.
_PRELOAD = (
    *("base64", "collections", "dataclasses", "datetime", "functools", "importlib.util"),
    *("itertools", "math", "random", "re", "string", "time", "typing"),
)
_PAGE = resource.getpagesize()
_WATCH_MS = 100  # resident memory is looked at this often
_CHANNEL_FD, _STATUS_FD = 3, 4


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    pidfd: int
    mounts: int  # its mount namespace, -1 if it has none of its own
    status: int  # the pipe on which it says that it is confined
    pool_fds: list[int]
    memory_max: int = 0  # resident bytes; 0 until taken
    over_memory: bool = False


def main(control_fd: int) -> None:
    """Confine, then serve until the pool goes away. Never returns."""
    linux.parent_death_signal(signal.SIGKILL)
    control = _socket.socket(fileno=control_fd)
    message = control.recv(MESSAGE_MAX_BYTES)
    if not message:
        os._exit(0)  # the parent died before it said anything
    start = json.loads(message)
    if os.getppid() != start["parent"]:
        os._exit(0)  # the parent died before the death signal was set
    _be_first_to_go()
    for name in _PRELOAD:
        importlib.import_module(name)
    os.environ.clear()
    os.environ.update(HOME="/", LANG="C.UTF-8", PATH="", TMPDIR=confine.TEMP)
    plan = confine.Plan(
        layers=frozenset(start["layers"]),
        required=frozenset(start["required"]),
        host_uid=start["host_uid"],
        seccomp_program=bytes.fromhex(start["seccomp"]),
    )
    try:
        host_view, own_view = _confine_server(plan, control)
    except confine.LayerFailed as exc:
        _answer(control, {"failed": exc.layer, "reason": exc.reason})
        os._exit(1)
    _answer(control, {"started": True, "missing": plan.missing})
    gc.collect()
    gc.freeze()
    gc.disable()
    _Server(control, plan, host_view, own_view).serve()


def _be_first_to_go() -> None:
    """If the host runs out of memory, the kernel takes a handler, not the daemon (proc(5))."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass  # a host without /proc has lost layers already


def _confine_server(plan: confine.Plan, control: _socket.socket) -> tuple[int, int]:
    """Returns descriptors of the two mount namespaces: the host's view and the private root."""
    confine.take_steps(confine.SERVER_STEPS, plan)
    if "pid-namespace" in plan.layers and "pid-namespace" not in plan.missing:
        pid = os.fork()  # the first process after unshare is process 1 of the new namespace
        if pid:
            control.close()
            _, status = os.waitpid(pid, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        linux.parent_death_signal(signal.SIGKILL)
    if "mount-namespace" not in plan.layers or "mount-namespace" in plan.missing:
        return -1, -1
    host_view = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    confine.take_steps(confine.ROOT_STEPS, plan)
    return host_view, os.open("/proc/self/ns/mnt", os.O_RDONLY)


class _Server:
    def __init__(
        self, control: _socket.socket, plan: confine.Plan, host_view: int, own_view: int
    ) -> None:
        self._control = control
        self._plan = plan
        self._host_view = host_view
        self._own_view = own_view
        self._own_pids = -1
        if "pid-namespace" in plan.layers:
            self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self._children: dict[int, _Child] = {}
        self._by_fd: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._buffer = bytearray(MESSAGE_MAX_BYTES)
        with open("/proc/self/statm", encoding="ascii") as file:
            size, resident = file.read().split()[:2]
        # What every child has before its handler allocates anything.
        self._bare_size, self._bare_resident = int(size) * _PAGE, int(resident) * _PAGE
        linux.limit_malloc_arenas(2)

    def serve(self) -> None:
        while True:
            taken = any(child.memory_max for child in self._children.values())
            for fd, _event in self._poll.poll(_WATCH_MS if taken else None):
                if fd == self._control.fileno():
                    self._command()
                elif (child := self._by_fd.get(fd)) is None:
                    continue
                elif fd == child.status:
                    self._confined(child)
                else:
                    self._ended(child)
            if taken:
                self._watch_memory()

    def _command(self) -> None:
        try:
            size = self._control.recv_into(self._buffer)
        except ConnectionResetError:
            size = 0  # the pool closed with answers unread
        if size == 0:
            os._exit(0)  # the pool is gone; every child dies with this process
        kind = self._buffer[0]
        if kind == ord("S"):
            _, number, cpu = SPAWN.unpack_from(self._buffer)
            self._spawn(number, cpu)
        elif kind == ord("T"):
            self._take(memoryview(self._buffer)[:size])
        linux.wipe(self._buffer, size)

    def _spawn(self, number: int, cpu: int) -> None:
        channel, pool_channel = _socket.socketpair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        status_read, status_write = os.pipe()
        mounts = -1
        if self._own_view >= 0:
            linux.unshare(linux.CLONE_NEWNS)  # the child's: it is forked into it
            mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        if self._own_pids >= 0:
            # Only a process whose children go to its own namespace may ask for another one.
            linux.setns(self._own_pids, linux.CLONE_NEWPID)
            linux.unshare(linux.CLONE_NEWPID)
        self._plan.cpu = cpu
        pid = os.fork()
        if pid == 0:
            _child(self._plan, channel.fileno(), out_write, err_write, status_write)
        if mounts >= 0:
            linux.setns(self._own_view, linux.CLONE_NEWNS)
        for fd in (channel.fileno(), out_write, err_write, status_write):
            if fd == channel.fileno():
                channel.detach()
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        fds = [pool_channel.detach(), out_read, err_read]
        child = _Child(number, pid, pidfd, mounts, status_read, fds)
        self._children[number] = self._by_fd[pidfd] = self._by_fd[status_read] = child
        self._poll.register(pidfd, select.POLLIN)
        self._poll.register(status_read, select.POLLIN)

    def _confined(self, child: _Child) -> None:
        said = os.read(child.status, 4096)
        self._forget_fd(child.status)
        child.status = -1
        if said == b"+":
            _answer(self._control, {"ready": child.number}, [*child.pool_fds, child.pidfd])
        else:
            failed = json.loads(said) if said else {"failed": "", "reason": "the child died"}
            _answer(self._control, {**failed, "child": child.number})
        for fd in child.pool_fds:
            os.close(fd)
        child.pool_fds = []

    def _take(self, message: memoryview) -> None:
        _, number, memory, cpu_s, files, threads, temp = TAKE.unpack_from(message)
        child = self._children.get(number)
        try:
            if child is None or _is_dead(child.pidfd):
                raise ProcessLookupError(3, "the process has ended")
            if child.mounts >= 0 and self._has("private-root"):
                confine.attach(
                    message[TAKE.size :], self._host_view, child.mounts, self._own_view, temp
                )
            if self._has("rlimits"):
                self._limit(child.pid, memory, cpu_s, files, threads, temp)
            child.memory_max = self._bare_resident + memory
            _answer(self._control, {"taken": number})
        except OSError as exc:
            dead = isinstance(exc, ProcessLookupError)
            _answer(self._control, {"refused": number, "reason": exc.strerror, "dead": dead})

    def _limit(
        self, pid: int, memory: int, cpu_s: int, files: int, threads: int, temp: int
    ) -> None:
        for kind, value in (
            (resource.RLIMIT_AS, self._bare_size + memory),
            (resource.RLIMIT_CPU, cpu_s),  # process 1 ignores SIGXCPU; the hard limit kills
            (resource.RLIMIT_NOFILE, files),
            (resource.RLIMIT_NPROC, threads + 1),
            (resource.RLIMIT_FSIZE, temp),
        ):
            resource.prlimit(pid, kind, (value, value))

    def _watch_memory(self) -> None:
        """A backstop to RLIMIT_AS, and the only limit where that layer is missing."""
        if not self._has("memory-watchdog"):
            return
        for child in self._children.values():
            if child.memory_max and not child.over_memory:
                try:
                    with open(f"/proc/{child.pid}/statm", encoding="ascii") as file:
                        resident = int(file.read().split()[1]) * _PAGE
                except (OSError, ValueError):
                    continue  # it has just ended
                if resident > child.memory_max:
                    child.over_memory = True
                    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def _ended(self, child: _Child) -> None:
        if child.status >= 0:
            self._confined(child)
        _, status, usage = os.wait4(child.pid, 0)
        self._forget_fd(child.pidfd)
        if child.mounts >= 0:
            os.close(child.mounts)
        del self._children[child.number]
        _answer(
            self._control,
            {
                "ended": child.number,
                "status": status,
                "cpu_us": round((usage.ru_utime + usage.ru_stime) * 1e6),
                "peak_kib": usage.ru_maxrss,
                "memory": child.over_memory,
            },
        )

    def _has(self, layer: str) -> bool:
        return layer in self._plan.layers and layer not in self._plan.missing

    def _forget_fd(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._by_fd[fd]
        os.close(fd)


def _child(plan: confine.Plan, channel: int, out: int, err: int, status: int) -> None:
    """Never returns: whatever happens ends this process."""
    try:
        gc.enable()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (out, err, channel, status)]
        for number, fd in enumerate(high, start=1):
            os.dup2(fd, number)
        # Its own: flags of an open file (F_SETFL) are shared by all who inherited it, so one
        # execution could leave a word there for the next.
        os.close(0)
        os.open("/dev/null", os.O_RDONLY)
        linux.close_range(_STATUS_FD + 1)
        try:
            confine.take_steps(confine.CHILD_STEPS, plan)
        except confine.LayerFailed as exc:
            said = {"failed": exc.layer, "reason": exc.reason}
            os.write(_STATUS_FD, json.dumps(said).encode())
            os._exit(1)
        os.write(_STATUS_FD, b"+")
        os.close(_STATUS_FD)
        runner.serve(_CHANNEL_FD)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _is_dead(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _answer(control: _socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    ancillary = []
    if fds:
        packed = struct.pack(f"{len(fds)}i", *fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
    try:
        control.sendmsg([json.dumps(message).encode()], ancillary)
    except OSError:
        os._exit(0)  # the pool is gone
