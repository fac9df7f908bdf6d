"""The fork server of one slot: a small, single-threaded interpreter that makes confined children.

Started by exec with an empty environment, never forked from the daemon, so nothing of the daemon's
memory can be in a child. It confines itself (`confine.SERVER_STEPS`), forks children ahead of
their calls, attaches packages, sets limits, reaps and reports. It never reads a request or a
result, and dies with its parent.

Protocol (SOCK_SEQPACKET, one message each; `wire` has the layouts). From the pool `S` spawn and
`T` take (a spawn may go on with a take): fixed binary, so that a package's path is never left in
memory that children inherit; `P` ping, answered alike; `R` the layers that are required from now
on, as JSON. To the pool `F` forked (with channel, stdout, stderr, pidfd), `E` ended, and JSON for
what is rare: {"started", "missing", "resident"}
(what a child has before its handler allocates anything, in bytes; with the gateway's sockets),
{"failed": layer, "reason"}, {"refused": n, "reason", "dead"}. A child says on its own channel that
it is ready, or why it could not be confined.
"""

from __future__ import annotations

import _random
import _socket
import functools
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import struct
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from sandbox import confine, linux, nodejs, wire
from sandbox.runner import Runner
from sandbox.wire import ENDED, FORKED, MESSAGE_MAX_BYTES, SPAWN, TAKE

__all__ = ["main"]

# What most handlers import anyway. Each costs every fork a little, and a handler that needs it and
# does not find it here much more.
_PRELOAD = (
    *("base64", "collections", "dataclasses", "datetime", "functools", "importlib.util"),
    *("itertools", "math", "re", "string", "threading", "time", "typing"),
)
_PAGE = resource.getpagesize()
_CHANNEL_FD = 3
_READY = wire.frame(wire.READY, bytes(wire.TOKEN_BYTES), b"")
# What `random.seed` does, without the Python on the way: each child copies the pages it is on.
_reseed = functools.partial(_random.Random.seed, random._inst)
_WARM_UPS = 20  # after 8 rounds the interpreter stops rewriting the code it runs


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    pidfd: int
    mounts: int  # its mount namespace, -1 if it has none of its own
    go: int  # the pipe on which it is told that its package is there
    node: bool


def main(control_fd: int) -> None:
    """Confine, then serve until the pool goes away. Never returns."""
    linux.parent_death_signal(signal.SIGKILL)
    control = _socket.socket(fileno=control_fd)
    os.set_inheritable(control_fd, False)
    while os.open("/dev/null", os.O_RDWR) <= _CHANNEL_FD:
        pass  # so that no descriptor of ours has the number of one of a child's
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
    runner = Runner(_CHANNEL_FD)
    runner.warm_up(start["warm"], _WARM_UPS)
    plan = confine.Plan(
        layers=frozenset(start["layers"]),
        required=frozenset(start["required"]),
        host_uid=start["host_uid"],
        cpu=start["cpu"],
        cpus=tuple(start["cpus"]),
        ports=tuple(start["ports"]),
        filters={name: bytes.fromhex(text) for name, text in start["filters"].items()},
        rehearsal=start["warm"],
    )
    if start["report_refused"]:
        from sandbox.listener import prepared

        plan.install = functools.partial(prepared, channel_fd=_CHANNEL_FD)
    if program := start["node"]:
        nodejs.open_program(program)
        plan.node_files = nodejs.needed_files(program)
        plan.node_bytes = start["node_bytes"]
    try:
        host_view, own_view = _confine_server(plan, control)
    except confine.LayerFailed as exc:
        _tell(control, {"failed": exc.layer, "reason": exc.reason})
        os._exit(1)
    gc.collect()
    linux.trim_malloc()
    linux.keep_code_mapped()
    server = _Server(control, plan, runner, host_view, own_view)
    # What is there by now no collection in a child looks at, which would copy its pages.
    gc.freeze()
    gc.disable()
    server.serve()


def _be_first_to_go() -> None:
    """If memory runs out, the kernel takes a handler, then a fork server, not the daemon."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass  # a host without /proc has lost layers already


def _confine_server(plan: confine.Plan, control: _socket.socket) -> tuple[int, int]:
    """Returns descriptors of the two mount namespaces: the host's view and the private root."""
    confine.take_steps(confine.SERVER_STEPS, plan)
    if plan.has("pid-namespace"):
        pid = os.fork()  # the first process after unshare is process 1 of the new namespace
        if pid:
            control.close()
            _, status = os.waitpid(pid, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        linux.parent_death_signal(signal.SIGKILL)
    if not plan.has("mount-namespace"):
        return -1, -1
    host_view = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    confine.take_steps(confine.ROOT_STEPS, plan)
    return host_view, os.open("/proc/self/ns/mnt", os.O_RDONLY)


class _Server:
    def __init__(
        self,
        control: _socket.socket,
        plan: confine.Plan,
        runner: Runner,
        host_view: int,
        own_view: int,
    ) -> None:
        self._control = control
        self._plan = plan
        self._runner = runner
        self._host_view = host_view
        self._own_view = own_view
        self._own_pids = -1
        if plan.has("pid-namespace"):
            self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        # What each child is forked into and has for itself.
        self._own = linux.CLONE_NEWPID if self._own_pids >= 0 else 0
        self._own |= linux.CLONE_NEWNS if own_view >= 0 else 0
        self._children: dict[int, _Child] = {}
        self._by_fd: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._buffer = bytearray(MESSAGE_MAX_BYTES)
        self._steps = {
            name: confine.steps_for(plan, name) for name in (plan.filters or wire.PROFILES)
        }
        self._bare_size, resident = _size_of("self")
        started = {"started": True, "missing": plan.missing, "resident": resident}
        _tell(control, started, plan.listeners)
        for fd in plan.listeners:
            os.close(fd)
        linux.limit_malloc_arenas(2)
        if host_view >= 0:
            linux.setns(host_view, linux.CLONE_NEWNS)

    def serve(self) -> NoReturn:
        control = self._control.fileno()
        while True:
            for fd, _event in self._poll.poll():
                if fd == control:
                    self._command()
                else:
                    self._ended(self._by_fd[fd])

    def _command(self) -> None:
        try:
            size = self._control.recv_into(self._buffer)
        except ConnectionResetError:
            size = 0  # the pool closed with answers unread
        if size == 0:
            os._exit(0)  # the pool is gone; every child dies with this process
        kind = self._buffer[0]
        if kind == ord("S"):
            self._spawn(memoryview(self._buffer)[:size])
        elif kind == ord("T"):
            self._take(memoryview(self._buffer)[:size])
        elif kind == ord("P"):
            _send(self._control, b"P")
        elif kind == ord("R"):
            self._require(frozenset(json.loads(self._buffer[1:size])))
        linux.wipe(self._buffer, size)

    def _require(self, required: frozenset[str]) -> None:
        """What held when it was tried has to hold for good."""
        self._plan.required = required
        for layer in sorted(required & self._plan.missing.keys()):
            _tell(self._control, {"failed": layer, "reason": self._plan.missing[layer]})
            os._exit(1)

    def _spawn(self, message: memoryview) -> None:
        """Fork a child, with its package attached already if the message goes on to say which."""
        _, number, index, heap_mib = SPAWN.unpack_from(message)
        profile = wire.PROFILES[index]
        fitting = message[SPAWN.size :]
        pool_channel, channel = _socket.socketpair()
        go_read, go_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        mounts, refusal = -1, None
        if self._own_pids >= 0:
            # Only a process whose children go to its own namespace may ask for another one.
            linux.setns(self._own_pids, linux.CLONE_NEWPID)
        if self._own_view >= 0:
            try:
                package = self._pick_up(fitting)
            except OSError as exc:
                package, refusal = -1, exc
            linux.setns(self._own_view, linux.CLONE_NEWNS)
            linux.unshare(self._own)
            mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
            try:
                self._put_down(package, fitting)
            except OSError as exc:
                refusal = exc
        elif self._own:
            linux.unshare(self._own)
        limits = TAKE.unpack_from(fitting)[2:] if fitting else ()
        linux.wipe(self._buffer, len(message))  # no child inherits a package's path
        self._plan.profile = profile
        try:
            pid = linux.fork()
        except OSError as exc:  # a limit of processes or of memory: the pool starts us anew, later
            _tell(self._control, {"failed": "", "reason": f"cannot {exc.strerror}"})
            os._exit(1)
        if pid == 0:
            fds = (go_read, out_write, err_write, channel.detach())
            # Somebody waits for one that has its limits already: it has no time to rehearse.
            rehearsal = "" if limits else self._plan.rehearsal
            _child(self._plan, self._steps[profile], self._runner, fds, heap_mib, rehearsal)
        if mounts >= 0:
            linux.setns(self._host_view, linux.CLONE_NEWNS)
        channel.close()
        for fd in (go_read, out_write, err_write):
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        child = _Child(number, pid, pidfd, mounts, go_write, profile.startswith("node"))
        self._children[number] = self._by_fd[pidfd] = child
        self._poll.register(pidfd, select.POLLIN)
        ours = (pool_channel.detach(), out_read, err_read)
        _send(self._control, FORKED.pack(b"F", number), (*ours, pidfd))
        for fd in ours:
            os.close(fd)
        if refusal is not None:
            self._refuse(number, refusal)
        elif limits:
            self._let_go(child, *limits)

    def _take(self, message: memoryview) -> None:
        """Give a child that was forked without one its package."""
        _, number, *limits = TAKE.unpack_from(message)
        child = self._children.get(number)
        if child is None:
            return  # it has ended, and that was told
        try:
            if child.mounts >= 0:
                package = self._pick_up(message)
                linux.setns(child.mounts, linux.CLONE_NEWNS)
                self._put_down(package, message)
            self._let_go(child, *limits)
        except OSError as exc:
            self._refuse(number, exc)
        finally:
            if child.mounts >= 0:
                linux.setns(self._host_view, linux.CLONE_NEWNS)

    def _pick_up(self, fitting: memoryview) -> int:
        """The package, in the host's view; -1 if nothing is to be attached."""
        if not fitting or not self._plan.has("private-root"):
            return -1
        return confine.pick_up(fitting[TAKE.size :])

    def _put_down(self, package: int, fitting: memoryview) -> None:
        """The same, and a temp, in a child's view."""
        if package >= 0:
            *_, temp_bytes, _cores = TAKE.unpack_from(fitting)
            confine.put_down(package, temp_bytes)

    def _refuse(self, number: int, exc: OSError) -> None:
        dead = isinstance(exc, ProcessLookupError | BrokenPipeError)
        _tell(self._control, {"refused": number, "reason": exc.strerror, "dead": dead})

    def _let_go(
        self,
        child: _Child,
        memory: int,
        cpu_s: int,
        files: int,
        threads: int,
        temp: int,
        cores: int,
    ) -> None:
        """Limit it, and tell it that its package is there."""
        try:
            if cores > 1 and self._plan.has("one-core"):
                os.sched_setaffinity(child.pid, self._plan.cpus_for(cores))
            if self._plan.has("rlimits"):
                self._limit(child, memory, cpu_s, files, threads, temp)
            os.write(child.go, b"!")
        except OSError as exc:
            self._refuse(child.number, exc)

    def _limit(
        self, child: _Child, memory: int, cpu_s: int, files: int, threads: int, temp: int
    ) -> None:
        if child.node:  # V8 reserves address space by the gigabyte
            space = (resource.RLIMIT_DATA, nodejs.data_limit(memory, self._plan.node_bytes))
            threads += nodejs.THREADS
            files = min(files, nodejs.OPEN_FILES_MAX)
        else:
            space = (resource.RLIMIT_AS, self._bare_size + memory)
        for kind, value in (
            space,
            (resource.RLIMIT_CPU, cpu_s),  # process 1 ignores SIGXCPU; the hard limit kills
            (resource.RLIMIT_NOFILE, files),
            (resource.RLIMIT_NPROC, threads + 1),
            (resource.RLIMIT_FSIZE, temp),
        ):
            resource.prlimit(child.pid, kind, (value, value))

    def _ended(self, child: _Child) -> None:
        _, status, usage = os.wait4(child.pid, 0)
        self._poll.unregister(child.pidfd)
        del self._by_fd[child.pidfd], self._children[child.number]
        cpu_us = round((usage.ru_utime + usage.ru_stime) * 1e6)
        _send(self._control, ENDED.pack(b"E", child.number, status, cpu_us, usage.ru_maxrss))
        # Told first: the end of a mount namespace takes a while.
        for fd in (child.pidfd, child.mounts, child.go):
            if fd >= 0:
                os.close(fd)


def _child(
    plan: confine.Plan,
    steps: confine.Steps,
    runner: Runner,
    fds: tuple[int, int, int, int],
    heap_mib: int,
    rehearsal: str,
) -> NoReturn:
    """Whatever happens ends this process."""
    try:
        gc.enable()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        try:
            confine.take_prepared(steps, plan)
        except confine.LayerFailed as exc:
            said = json.dumps({"layer": exc.layer, "reason": exc.reason}).encode()
            os.write(_CHANNEL_FD, wire.frame(wire.UNCONFINED, bytes(wire.TOKEN_BYTES), said))
            os._exit(1)
        if plan.profile.startswith("node"):
            linux.close_range(_CHANNEL_FD + 1, nodejs.PROGRAM_FD - 1)
            nodejs.start(heap_mib, nodejs.INSIDE if plan.has("private-root") else nodejs.SHIM)
        linux.close_range(_CHANNEL_FD + 1)
        os.write(_CHANNEL_FD, _READY)  # before any handler could say something else first
        _reseed()  # every child was born with the same state
        runner.serve(rehearsal)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _size_of(pid: str) -> tuple[int, int]:
    """Bytes of address space and of resident memory (proc(5), statm)."""
    fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    try:
        size, resident = os.read(fd, 200).split()[:2]
    finally:
        os.close(fd)
    return int(size) * _PAGE, int(resident) * _PAGE


def _tell(control: _socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    _send(control, json.dumps(message).encode(), tuple(fds or ()))


def _send(control: _socket.socket, message: bytes, fds: tuple[int, ...] = ()) -> None:
    ancillary = []
    if fds:
        packed = struct.pack(f"{len(fds)}i", *fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
    try:
        control.sendmsg([message], ancillary)
    except OSError:
        os._exit(0)  # the pool is gone
