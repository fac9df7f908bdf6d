"""One execution's conversation with its child: request out; logs, context, one result in.

Owns the reading of the channel and of the two output pipes, the limits on what is kept and the
deadline. Whatever the child sends is bytes from a stranger: the first breach of the protocol ends
the execution, the first result ends reading. It never opens a path and never outlives `run`.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from sandbox import wire
from sandbox.ending import Facts, checked_result, classify
from sandbox.forkserver import Child
from sandbox.model import Call, Ending, LogLine, OnLog, Reply, Usage

__all__ = ["Session"]

_READ_BYTES = 256 * 1024
_PIPE_READ_BYTES = 64 * 1024
_LOG_FRAME_MAX_BYTES = 64 * 1024  # the shim stays below 34 KiB
# What may come in log frames that are dropped, per byte that could be kept: in JSON a character
# can take six, and a line its names. Whoever sends more does not use our shim.
_FLOOD_RATIO = 8
_PIPE_PAUSE_S = 0.02  # between reads of output that is dropped: at most 3 MiB/s of our time
_DEATH_PATIENCE_S = 5.0
_LEVELS = ("debug", "info", "warning", "error")
_TRUNCATED = "… truncated"


class Session:
    """Runs one call on one child that has been given its package."""

    def __init__(self, child: Child, call: Call, request: bytes, on_log: OnLog | None) -> None:
        self._child = child
        self._call = call
        self._on_log = on_log
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[tuple[Ending, Any]] = self._loop.create_future()
        self._token = os.urandom(wire.TOKEN_BYTES)
        self._reader = wire.FrameReader(max(call.limits.output_bytes, _LOG_FRAME_MAX_BYTES))
        self._outgoing = bytearray(wire.frame(wire.REQUEST, self._token, request))
        self._writing = False
        self._context_sent = False
        self._logs: list[LogLine] = []
        self._log_left = call.limits.log_bytes
        self._dropped = 0
        self._partial: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._pipes = {"stdout": child.stdout, "stderr": child.stderr}
        self._paused: dict[str, asyncio.TimerHandle] = {}

    async def run(self) -> Reply:
        """Send the request and come back with how it ended; the child is killed by then."""
        limits = self._call.limits
        started = time.monotonic()
        cpu_before_ns = _cpu_ns(self._child.host_pid)
        channel = self._child.channel.fileno()
        self._loop.add_reader(channel, self._on_channel)
        for stream, fd in self._pipes.items():
            self._loop.add_reader(fd, self._on_output, stream)
        deadline = self._loop.call_later(
            limits.wall_ms / 1000, self._finish, Ending.TIMEOUT, "ran too long"
        )
        try:
            self._write()
            ending, value = await self._done
            wall_ms = round((time.monotonic() - started) * 1000)
            usage = None
            if ending is Ending.RESULT:
                usage = _usage_now(self._child.host_pid, wall_ms, cpu_before_ns)
            self._child.kill()
            if usage is not None:
                self._drain_output()
                return Reply(ending, value, "", tuple(self._logs), usage)
            return await self._obituary(ending, value, wall_ms)
        finally:
            deadline.cancel()
            self._child.kill()
            self._stop_listening()

    # --- endings -----------------------------------------------------------------------------

    def _finish(self, ending: Ending, value: Any) -> None:
        if not self._done.done():
            self._done.set_result((ending, value))
            self._loop.remove_reader(self._child.channel.fileno())

    async def _obituary(self, ending: Ending, value: Any, wall_ms: int) -> Reply:
        """What the kernel says about a child without a result, once it is dead."""
        try:
            async with asyncio.timeout(_DEATH_PATIENCE_S):
                ended = await asyncio.shield(self._child.ended)
        except TimeoutError:
            message = "the handler's process does not die"
            return Reply(Ending.UNAVAILABLE, None, message, tuple(self._logs), Usage(wall_ms))
        self._drain_output()
        limits = self._call.limits
        usage = Usage(wall_ms, ended.cpu_ms, ended.peak_memory_bytes)
        if ending is Ending.RESULT:  # its usage could not be read while it lived
            return Reply(ending, value, "", tuple(self._logs), usage)
        closed = ending is Ending.CRASH and value is None
        final, message = classify(
            Facts(
                cause=None if closed else ending,
                message="" if closed else value,
                wait_status=ended.wait_status,
                over_memory=ended.over_memory,
                cpu_ms=ended.cpu_ms,
                cpu_limit_ms=limits.cpu_ms or limits.wall_ms + 1000,
                peak_memory_bytes=ended.peak_memory_bytes,
                memory_limit_bytes=limits.memory_bytes,
                wall_limit_ms=limits.wall_ms,
            )
        )
        return Reply(final, None, message, tuple(self._logs), usage)

    # --- the channel -------------------------------------------------------------------------

    def _on_channel(self) -> None:
        try:
            data = self._child.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._finish(Ending.CRASH, None)
            return
        try:
            for frame in self._reader.feed(data):
                self._on_frame(frame)
                if self._done.done():
                    return
        except wire.TooLarge as exc:
            self._finish(Ending.OUTPUT, f"sent more than it may: {exc}")
        except wire.ProtocolError as exc:
            self._finish(Ending.PROTOCOL, f"broke the protocol: {exc}")

    def _on_frame(self, frame: wire.Frame) -> None:
        if frame.token != self._token:
            raise wire.ProtocolError("a frame without this execution's token")
        if frame.kind == wire.LOG:
            self._on_log_frame(frame.payload)
        elif frame.kind == wire.RESULT:
            if len(frame.payload) > self._call.limits.output_bytes:
                raise wire.TooLarge(f"a result of {len(frame.payload)} bytes")
            self._finish(Ending.RESULT, checked_result(wire.decode(frame.payload)))
        elif frame.kind == wire.CONTEXT and not self._context_sent:
            self._context_sent = True
            context = self._call.context
            text = context if isinstance(context, bytes) else wire.encode(dict(context))
            self._outgoing += wire.frame(wire.CONTEXT, self._token, text)
            self._write()
        elif frame.kind == wire.PROBLEM:
            problem = wire.decode(frame.payload)
            said = {"memory": Ending.MEMORY, "output": Ending.OUTPUT, "protocol": Ending.PROTOCOL}
            if not isinstance(problem, dict) or problem.get("ending") not in said:
                raise wire.ProtocolError("an unknown problem")
            self._finish(said[problem["ending"]], str(problem.get("message", ""))[:2000])
        else:
            raise wire.ProtocolError(f"a frame of kind {frame.kind!r}")

    def _write(self) -> None:
        try:
            sent = self._child.channel.send(self._outgoing)
            del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()  # it is dead: the reading side hears of it
        if bool(self._outgoing) != self._writing:
            self._writing = not self._writing
            channel = self._child.channel.fileno()
            if self._writing:
                self._loop.add_writer(channel, self._write)
            else:
                self._loop.remove_writer(channel)

    # --- logs --------------------------------------------------------------------------------

    def _on_log_frame(self, payload: bytes) -> None:
        if self._log_left < 0:
            self._dropped += len(payload) + wire.LINE_COST_BYTES
            if self._dropped > _FLOOD_RATIO * self._call.limits.log_bytes + 1024 * 1024:
                raise wire.ProtocolError("a flood of log lines")
            return
        line = wire.decode(payload)
        if not isinstance(line, dict):
            raise wire.ProtocolError("a log line must be an object")
        stream, level = line.get("stream"), line.get("level")
        message, fields = line.get("message"), line.get("fields", {})
        if (
            stream not in ("stdout", "stderr", "log")
            or (level not in _LEVELS if stream == "log" else level is not None)
            or not isinstance(message, str)
            or not isinstance(fields, dict)
        ):
            raise wire.ProtocolError("not a log line")
        size = len(message) if not fields else len(payload)
        self._keep(LogLine(_now_ms(), stream, message, level, fields), size)

    def _on_output(self, stream: str) -> None:
        """Bytes written to descriptor 1 or 2 past sys.stdout: C code, a crashing interpreter."""
        fd = self._pipes[stream]
        try:
            data = os.read(fd, _PIPE_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(fd)
            return
        self._keep_output(stream, data)
        if self._log_left < 0:
            self._loop.remove_reader(fd)
            self._paused[stream] = self._loop.call_later(
                _PIPE_PAUSE_S, self._loop.add_reader, fd, self._on_output, stream
            )

    def _keep_output(self, stream: str, data: bytes) -> None:
        if self._log_left < 0:
            return
        *lines, rest = (bytes(self._partial[stream]) + data).split(b"\n")
        if len(rest) > _PIPE_READ_BYTES:
            lines.append(rest)
            rest = b""
        self._partial[stream] = bytearray(rest)
        for text in lines:
            if self._log_left < 0:
                return
            name: Any = stream
            self._keep(LogLine(_now_ms(), name, text.decode("utf-8", "replace")), len(text))

    def _drain_output(self) -> None:
        """What is still in the pipes of a child that has ended, with unfinished lines."""
        for stream, fd in self._pipes.items():
            while self._log_left >= 0:
                try:
                    data = os.read(fd, _PIPE_READ_BYTES)
                except BlockingIOError:
                    break
                if not data:
                    break
                self._keep_output(stream, data)
            if self._partial[stream]:
                self._keep_output(stream, b"\n")

    def _keep(self, line: LogLine, size: int) -> None:
        if self._log_left < 0:
            return
        self._log_left -= size + wire.LINE_COST_BYTES
        if self._log_left < 0:
            line = LogLine(line.at_ms, line.stream, _TRUNCATED, line.level)
        self._logs.append(line)
        if self._on_log is not None:
            self._on_log(line)

    def _stop_listening(self) -> None:
        for timer in self._paused.values():
            timer.cancel()
        channel = self._child.channel.fileno()
        if not self._done.done() or self._done.cancelled():
            self._loop.remove_reader(channel)
        if self._writing:
            self._loop.remove_writer(channel)
        for fd in self._pipes.values():
            self._loop.remove_reader(fd)


def _cpu_ns(host_pid: int) -> int:
    """CPU time of a process that lives (clock_getcpuclockid(3)); 0 if it does not."""
    try:
        return time.clock_gettime_ns(~host_pid << 3 | 2)
    except OSError:
        return 0


def _usage_now(host_pid: int, wall_ms: int, cpu_before_ns: int) -> Usage | None:
    """What a living process has used, as the kernel counts; None where that cannot be read."""
    cpu_ns = _cpu_ns(host_pid) - cpu_before_ns
    try:
        with open(f"/proc/{host_pid}/status", "rb") as file:
            status = file.read()
        peak_kib = int(status.split(b"VmHWM:", 1)[1].split(None, 1)[0])
    except (OSError, IndexError, ValueError):
        return None
    return Usage(wall_ms, round(cpu_ns / 1e6), peak_kib * 1024)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
