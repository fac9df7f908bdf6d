"""Inside the child: read one request, run one handler, send one result, and end.

Runs fully confined, with nothing but a socket to the pool. It imports neither asyncio (unless the
handler is async) nor ctypes: its imports are every child's start-up time. It keeps its own
references to what it needs, but promises nothing about a handler that attacks its own process:
such a handler can at most forge its own single result.
"""

from __future__ import annotations

import importlib.util
import io
import mmap
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from sandbox import wire
from sandbox.ctx import Context

__all__ = ["LOG_LINE_MAX_BYTES", "TRACEBACK_MAX_BYTES", "serve"]

LOG_LINE_MAX_BYTES = 16 * 1024  # a longer line is cut into several
TRACEBACK_MAX_BYTES = 16 * 1024
_REQUEST_MAX_BYTES = 256 * 1024 * 1024  # the pool is trusted; this catches a broken length
_BALLAST_BYTES = 1024 * 1024  # given back when memory is short, so that it can be said


def serve(channel_fd: int) -> None:
    """Serve one request on the channel and end the process. Never returns."""
    channel = _Channel(channel_fd)
    raw = _redirect_output(channel)
    ballast = mmap.mmap(-1, _BALLAST_BYTES)  # not touched: address space only
    request = channel.receive_request()
    try:
        problem = _execute(channel, request, raw)
    except MemoryError:
        problem = ("memory", "the handler ran out of memory")
        ballast.close()
    if problem is not None:
        channel.send(wire.PROBLEM, b'{"ending":"%s","message":%s}' % _quoted(*problem))
    # Wait to be killed: exiting now would take the CPU from the pool just as it reads the result.
    channel.wait_for_end()


def _quoted(ending: str, message: str) -> tuple[bytes, bytes]:
    return ending.encode(), wire.encode(message.encode("utf-8", "replace").decode()[:2000])


class _Channel:
    """The socket to the pool: whole frames out, in one piece each; frames in, when expected."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._token = bytes(wire.TOKEN_BYTES)
        self._lock = threading.Lock()
        self._reader = wire.FrameReader(_REQUEST_MAX_BYTES)
        self._read, self._write = os.read, os.write
        self._log_left = 0

    def receive_request(self) -> dict[str, Any]:
        """Wait for the request; ends the process if the pool goes away instead."""
        frame = self._receive()
        self._token = frame.token
        request: dict[str, Any] = wire.decode(frame.payload)
        self._log_left = request["log_bytes"]
        return request

    def fetch_context(self) -> dict[str, Any]:
        """Ask the pool for the execution's context."""
        self.send(wire.CONTEXT, b"")
        context: dict[str, Any] = wire.decode(self._receive().payload)
        return context

    def send(self, kind: bytes, payload: bytes) -> None:
        """Send one frame, however long that takes."""
        view = memoryview(wire.frame(kind, self._token, payload))
        with self._lock:
            while view:
                view = view[self._write(self._fd, view) :]

    def wait_for_end(self) -> None:
        """End the process once the pool closes the channel, or be killed before."""
        self._read(self._fd, 1)
        os._exit(0)

    def log(self, stream: str, level: str | None, message: str, fields: dict[str, Any]) -> None:
        """Send a log line while the log's limit lasts, counted as the pool counts, which cuts
        it off in any case."""
        if self._log_left < 0:
            return
        text = message.encode("utf-8", "replace")[:LOG_LINE_MAX_BYTES].decode("utf-8", "replace")
        line = {"stream": stream, "level": level, "message": text, "fields": fields}
        try:
            payload = wire.encode(line)
        except (TypeError, ValueError):
            payload = wire.encode({**line, "fields": {k: _plain(v) for k, v in fields.items()}})
        size = len(payload) if fields else len(text)
        self._log_left -= size + wire.LINE_COST_BYTES
        if len(payload) > 2 * LOG_LINE_MAX_BYTES + 1024:
            payload = wire.encode({**line, "fields": {"truncated": True}})
        self.send(wire.LOG, payload)

    def _receive(self) -> wire.Frame:
        while True:
            data = self._read(self._fd, 128 * 1024)
            if not data:
                os._exit(0)
            if frames := self._reader.feed(data):
                return frames[0]


class _Lines(io.RawIOBase):
    """The raw end of sys.stdout and sys.stderr: whole lines become log lines."""

    def __init__(self, channel: _Channel, stream: str) -> None:
        self._channel = channel
        self._stream = stream
        self._partial = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        while len(rest) > LOG_LINE_MAX_BYTES:
            lines.append(rest[:LOG_LINE_MAX_BYTES])
            rest = rest[LOG_LINE_MAX_BYTES:]
        self._partial = bytearray(rest)
        for line in lines:
            self._send(line)
        return len(data)

    def finish(self) -> None:
        """Send what has no newline yet."""
        if self._partial:
            self._send(self._partial)
            self._partial = bytearray()

    def _send(self, line: bytes | bytearray) -> None:
        self._channel.log(self._stream, None, line.decode("utf-8", "replace"), {})


def _execute(
    channel: _Channel, request: dict[str, Any], raw: list[_Lines]
) -> tuple[str, str] | None:
    """Run the handler and send its result; or say which ending it came to instead."""
    context = Context(
        request,
        lambda level, message, fields: channel.log("log", level, message, fields),
        channel.fetch_context,
    )
    try:
        handler = _load(request["root"], request["entrypoint"])
        result = context.finished(_await(handler(request["input"], context)))
    except MemoryError:
        raise
    except BaseException as exc:
        result = context.collected({"outcome": "failure", "error": _describe(exc)})
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (ValueError, OSError):
            pass  # the handler closed it
    for lines in raw:
        lines.finish()
    try:
        payload = wire.encode(result)
    except (TypeError, ValueError) as exc:
        return "protocol", f"the handler's result is not JSON: {exc}"
    if len(payload) > request["output_bytes"]:
        limit = request["output_bytes"]
        return "output", f"the result has {len(payload)} bytes, {limit} are allowed"
    channel.send(wire.RESULT, payload)
    return None


def _redirect_output(channel: _Channel) -> list[_Lines]:
    raw = [_Lines(channel, "stdout"), _Lines(channel, "stderr")]
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BufferedWriter(lines), "utf-8", "backslashreplace", line_buffering=True)
        for lines in raw
    )
    return raw


def _load(root: str, entrypoint: str) -> Callable[[Any, Context], Any]:
    file, _, name = entrypoint.rpartition(":")
    sys.path.insert(0, root)
    sys.dont_write_bytecode = True  # there is nowhere to write it
    module_name = file.removesuffix(".py").replace("/", ".")
    if module_name in sys.modules:
        module_name = f"handler_{module_name}"  # its file may be named like a loaded module
    spec = importlib.util.spec_from_file_location(module_name, f"{root}/{file}")
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {file}: it is not a Python file")
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target: Any = getattr(module, name, None)
    if isinstance(target, type):
        instance = target()
        target = getattr(instance, "handle", None) or getattr(instance, "execute", None)
    if not callable(target):
        raise ImportError(f"cannot find {name} in {file}: a function, or a class with handle()")
    handler: Callable[[Any, Context], Any] = target
    return handler


def _await(value: Any) -> Any:
    if not hasattr(value, "__await__"):
        return value
    import asyncio  # 35 ms: only for those who need it

    async def main() -> Any:
        return await value

    return asyncio.run(main())


def _describe(exc: BaseException) -> dict[str, Any]:
    """An exception as an error value; what the handler's own __str__ does stays its problem."""
    try:
        text = f"{type(exc).__name__}: {exc}"
        # The first frame is ours.
        trace = "".join(traceback.format_exception(type(exc), exc, _without_ours(exc)))
    except BaseException:
        text, trace = type(exc).__name__, ""
    return {
        "code": "HANDLER_ERROR",
        "message": _cut(text, 2000),
        "retryable": True,
        "details": {"traceback": _cut(trace, TRACEBACK_MAX_BYTES)},
    }


def _without_ours(exc: BaseException) -> Any:
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _plain(value: Any) -> Any:
    try:
        wire.encode(value)
    except (TypeError, ValueError):
        return repr(value).encode("utf-8", "replace").decode()
    return value


def _cut(text: str, size_bytes: int) -> str:
    """At most that many bytes of UTF-8; of a longer text the end, where a traceback's news is."""
    data = text.encode("utf-8", "replace")
    if len(data) <= size_bytes:
        return data.decode()
    return "…" + data[-size_bytes + 3 :].decode("utf-8", "ignore")
