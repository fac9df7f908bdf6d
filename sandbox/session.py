"""One execution's conversation with its child: request out; logs, context, one result in.

Owns the reading of the channel and of the two output pipes, the limits on what is kept and the
deadline. Whatever the child sends is bytes from a stranger: the first breach of the protocol ends
the execution, the first result ends reading. It never opens a path and never outlives `run`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from typing import TYPE_CHECKING, Any, Protocol

from sandbox import nodejs, wire
from sandbox.child import Child, Ended
from sandbox.ending import FORBIDDEN_CALL, Facts, checked_result, classify
from sandbox.forkserver import ServerFailed
from sandbox.logs import Logs
from sandbox.model import Call, Ending, OnLog, Reply, Usage

if TYPE_CHECKING:
    from sandbox.refused import Watch

__all__ = ["Place", "Session"]

# Room for more than 128 KiB is mapped and unmapped each time (mallopt(3), M_MMAP_THRESHOLD).
_READ_MIN_BYTES, _READ_MAX_BYTES = 16 * 1024, 1024 * 1024
_FRAME_MAX_BYTES = 64 * 1024  # of a log line: the shim stays below 34 KiB
# How often output, CPU time and the deadline are looked at. What a shorter execution wrote past
# sys.stdout is read at its end, so most need no readers on their pipes.
_TICK_S = 0.1
_TICKS_TO_CHECK = 10
_PIPE_READ_BYTES = 64 * 1024
_DEATH_PATIENCE_S = 5.0


class Place(Protocol):
    """Where a session takes place: a slot."""

    def check(self) -> None:
        """See that the fork server answers."""

    def was_oom_killed(self) -> bool:
        """Whether the kernel has killed for memory since this was asked last."""


class Session:
    """Runs one call on one child that has been given its package, or soon will be."""

    def __init__(
        self,
        child: Child,
        call: Call,
        request: bytes,
        on_log: OnLog | None,
        slot: Place,
        watch: Watch | None = None,
    ) -> None:
        self._child = child
        self._watch = watch
        if watch is not None:
            child.expect_listener()
        self._slot = slot
        self._call = call
        self._is_node = call.runtime == "node"
        self._loop = child.loop
        self._done: asyncio.Future[tuple[Ending, Any]] = self._loop.create_future()
        self._token = os.urandom(wire.TOKEN_BYTES)
        limits = call.limits
        self._reader = wire.FrameReader(max(limits.output_bytes, _FRAME_MAX_BYTES))
        self._outgoing = bytearray(wire.frame(wire.REQUEST, self._token, request))
        self._writing = False
        self._context_sent = False
        self._result_text = b""
        self._logs = Logs(limits.log_bytes, limits.log_rate, on_log)
        self._started = self._loop.time()
        self._cpu_before_ns = 0
        self._ticks = 0
        self._channel = child.channel.fileno()
        self._unread = False  # it died before it had read the request
        base = child.bare_bytes
        self._memory_max = base + limits.memory_bytes if base else 0
        self._over_memory = False

    async def run(self) -> Reply:
        """Send the request and come back with how it ended.

        A child that brought a result goes on living; any other is killed by then. Raises
        ServerFailed if nothing of the handler has run, and another child may do.
        """
        child = self._child
        if child.refused:
            raise _refusal(child.refused)
        if child.uses > 1:
            self._cpu_before_ns = child.cpu_ns()
        self._write()
        child.listen(self._on_channel)
        child.on_refused = self._refused
        child.alarm.set(min(_TICK_S, self._left_s()), self._on_tick)
        try:
            ending, value = await self._done
            wall_ms = round((self._loop.time() - self._started) * 1000)
            if ending is Ending.RESULT and (usage := self._usage(wall_ms)) is not None:
                self._read_output()
                return self._brought(value, usage)
            child.kill()
            return await self._obituary(ending, value, wall_ms)
        except BaseException:
            child.kill()
            raise
        finally:
            child.on_refused = None
            child.leave()
            child.alarm.off()
            if self._writing:
                self._loop.remove_writer(self._channel)

    @property
    def is_clean(self) -> bool:
        """Whether nothing but the one result has come: the child may serve again."""
        return self._reader.is_empty and not self._outgoing

    # --- endings -----------------------------------------------------------------------------

    def _finish(self, ending: Ending, value: Any) -> None:
        if not self._done.done():
            self._done.set_result((ending, value))
            self._child.leave()

    def _on_forbidden(self) -> None:
        """A call that kills: who made it waits for that."""
        self._finish(Ending.CRASH, FORBIDDEN_CALL)

    def _refused(self, reason: str) -> None:
        if not self._done.done():
            self._done.set_exception(_refusal(reason))

    def _usage(self, wall_ms: int) -> Usage | None:
        """What a living process has used, as the kernel counts; None where that cannot be read."""
        cpu_ns = self._child.cpu_ns()
        peak = self._child.peak_memory_bytes()
        if not cpu_ns or peak is None:
            return None
        return Usage(wall_ms, round((cpu_ns - self._cpu_before_ns) / 1e6), peak)

    def _brought(self, result: dict[str, Any], usage: Usage) -> Reply:
        logs = self._logs.finished()
        return Reply(Ending.RESULT, result, "", logs, usage, text=self._result_text)

    async def _obituary(self, ending: Ending, value: Any, wall_ms: int) -> Reply:
        """What the kernel says about a child without a result, once it is dead."""
        try:
            async with asyncio.timeout(_DEATH_PATIENCE_S):
                ended: Ended = await asyncio.shield(self._child.ended)
        except TimeoutError:
            message = "the handler's process does not die"
            logs = self._logs.finished()
            return Reply(Ending.UNAVAILABLE, None, message, logs, Usage(wall_ms))
        closed = ending is Ending.CRASH and value is None
        if closed and self._unread and not self._context_sent:
            raise ServerFailed("", "the process died", child_died=True)
        self._read_output()
        limits = self._call.limits
        usage = Usage(wall_ms, ended.cpu_ms, ended.peak_memory_bytes)
        if ending is Ending.RESULT:  # its usage could not be read while it lived
            return self._brought(value, usage)
        final, message = classify(
            Facts(
                cause=None if closed else ending,
                message="" if closed else value,
                wait_status=ended.wait_status,
                over_memory=self._over_memory or self._slot.was_oom_killed(),
                cpu_ms=ended.cpu_ms,
                cpu_limit_ms=limits.cpu_time_ms,
                peak_memory_bytes=ended.peak_memory_bytes,
                memory_limit_bytes=limits.memory_bytes,
                full_bytes=nodejs.full_bytes(limits.memory_bytes) if self._is_node else 0,
                wall_limit_ms=limits.wall_ms,
            )
        )
        return Reply(final, None, message, self._logs.finished(), usage)

    # --- time --------------------------------------------------------------------------------

    def _left_s(self) -> float:
        return self._started + self._call.limits.wall_ms / 1000 - self._loop.time()

    def _on_tick(self) -> None:
        left_s = self._left_s()
        if left_s <= 0:
            self._finish(Ending.TIMEOUT, "ran too long")
            return
        cpu_ms = self._call.limits.cpu_ms
        if cpu_ms is not None and self._child.uses > 1:  # the kernel's limit counts its whole life
            used_ms = (self._child.cpu_ns() - self._cpu_before_ns) / 1e6
            if used_ms > cpu_ms:
                self._finish(Ending.CPU, f"used more than {cpu_ms} ms of CPU time")
                return
        if self._memory_max and self._child.resident_bytes() > self._memory_max:
            self._over_memory = True
            self._finish(Ending.MEMORY, "")
            return
        self._read_output()
        self._ticks += 1
        if self._ticks % _TICKS_TO_CHECK == 0:
            self._slot.check()
        self._child.alarm.set(min(_TICK_S, left_s), self._on_tick)

    # --- the channel -------------------------------------------------------------------------

    def _on_channel(self) -> None:
        try:
            wanted = min(max(self._reader.missing, _READ_MIN_BYTES), _READ_MAX_BYTES)
            data = self._child.receive(wanted)
        except BlockingIOError:
            return
        except OSError as exc:
            data = b""
            # Its queue was not empty when its end was closed (unix_release_sock in af_unix.c).
            self._unread = exc.errno == errno.ECONNRESET
        if not data:
            self._finish(Ending.CRASH, None)
            return
        try:
            for frame in self._reader.feed(data):
                if self._done.done():
                    raise wire.ProtocolError("more after the result")
                self._on_frame(frame)
        except wire.TooLarge as exc:
            self._breach(Ending.OUTPUT, f"sent more than it may: {exc}")
        except wire.ProtocolError as exc:
            self._breach(Ending.PROTOCOL, f"broke the protocol: {exc}")

    def _breach(self, ending: Ending, message: str) -> None:
        """A result that came in the same bytes counts: the first result ends reading."""
        self._reader.spoil()
        self._finish(ending, message)

    def _on_frame(self, frame: wire.Frame) -> None:
        if not self._child.is_ready:
            self._on_first_frame(frame)
            return
        if frame.token != self._token:
            raise wire.ProtocolError("a frame without this execution's token")
        if frame.kind == wire.LOG:
            self._logs.on_frame(frame.payload)
        elif frame.kind == wire.RESULT:
            if len(frame.payload) > self._call.limits.output_bytes:
                raise wire.TooLarge(f"a result of {len(frame.payload)} bytes")
            self._result_text = frame.payload
            self._finish(Ending.RESULT, checked_result(wire.decode(frame.payload)))
        elif frame.kind == wire.CONTEXT and not self._context_sent:
            self._context_sent = True
            context = self._call.context
            if callable(context):
                context(self._send_context)
            else:
                text = context if isinstance(context, bytes) else wire.encode(dict(context))
                self._send_context(text)
        elif frame.kind == wire.PROBLEM:
            problem = wire.decode(frame.payload)
            said = {"memory": Ending.MEMORY, "output": Ending.OUTPUT, "protocol": Ending.PROTOCOL}
            if not isinstance(problem, dict) or problem.get("ending") not in said:
                raise wire.ProtocolError("an unknown problem")
            message = str(problem.get("message", ""))[:2000]
            shown = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", message)  # one line, no escapes
            self._finish(said[problem["ending"]], shown)
        else:
            raise wire.ProtocolError(f"a frame of kind {frame.kind!r}")

    def _send_context(self, text: bytes) -> None:
        if self._done.done():
            return  # it was asked for elsewhere, and the child may be another call's by now
        self._outgoing += wire.frame(wire.CONTEXT, self._token, text)
        self._write()

    def _on_first_frame(self, frame: wire.Frame) -> None:
        """Before anything of the handler's: the child is ready, or why it is not confined."""
        if frame.kind == wire.READY:
            self._child.is_ready = True
            if self._watch is not None:
                self._watch.forget()
        elif frame.kind == wire.LISTENER and self._watch is not None:
            if (fd := self._child.take_listener()) >= 0:
                self._watch.begin(fd, self._on_forbidden)
        elif frame.kind == wire.UNCONFINED:
            self._done.set_exception(ServerFailed(*wire.unconfined(frame.payload)))
        else:
            raise wire.ProtocolError("a frame before it was ready")

    def _write(self) -> None:
        try:
            sent = self._child.channel.send(self._outgoing)
            del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()  # it is dead: the reading side hears of it
            self._unread = True
        if bool(self._outgoing) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._channel, self._write)
            else:
                self._loop.remove_writer(self._channel)

    # --- output past sys.stdout --------------------------------------------------------------

    def _read_output(self) -> None:
        """What C code or a crashing interpreter wrote to descriptors 1 and 2, a buffer at most
        each time: who writes more waits."""
        child = self._child
        for fd in child.readable():
            if fd == child.stdout:
                self._logs.on_output("stdout", _read(fd))
            elif fd == child.stderr:
                self._logs.on_output("stderr", _read(fd))


def _refusal(reason: str) -> ServerFailed:
    return ServerFailed("", f"cannot attach the package: {reason}")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _PIPE_READ_BYTES)
    except BlockingIOError:
        return b""
