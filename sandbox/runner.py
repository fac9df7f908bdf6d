"""Inside the child: read a request, run the handler, send one result; then be killed, or read on.

Runs fully confined, with nothing but a socket to the pool. It imports neither asyncio (unless the
handler is async) nor ctypes: its imports are every child's start-up time, and what can be built
before the fork is built there (`Runner`, `warm_up`). It keeps its own references to what it needs,
but promises nothing about a handler that attacks its own process: such a handler can at most forge
its own single result.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import marshal
import mmap
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from sandbox import wire
from sandbox.ctx import Context

__all__ = ["LOG_LINE_MAX_BYTES", "TRACEBACK_MAX_BYTES", "Runner"]

LOG_LINE_MAX_BYTES = 16 * 1024  # a longer line is cut into several
TRACEBACK_MAX_BYTES = 16 * 1024
_TRACEBACK_FRAMES_MAX = 100  # the last ones: formatting a million takes seconds
_REQUEST_MAX_BYTES = 256 * 1024 * 1024  # the pool is trusted; this catches a broken length
_BALLAST_BYTES = 1024 * 1024  # given back when memory is short, so that it can be said
_GO_FD = 0
_REHEARSE_AFTER_MS = 8
_READ_BYTES = 64 * 1024
_PYC_HEADER_BYTES = 16  # PEP 552
# The header of a file that the daemon compiled: the magic number and "unchecked hash".
_PYC_START = importlib.util.MAGIC_NUMBER + b"\x01\0\0\0"

_BIND = socket.socket.bind
_Handler = Callable[[Any, Context], Any]
_Identity = tuple[str, int, int, int]


class Runner:
    """Serves one handler's executions on one channel. Made before the fork."""

    def __init__(self, channel_fd: int) -> None:
        socket.socket.bind = _bind  # type: ignore[method-assign, assignment]
        self._channel = _Channel(channel_fd)
        self._raw = [_Lines(self._channel, "stdout"), _Lines(self._channel, "stderr")]
        self._streams = [
            io.TextIOWrapper(
                io.BufferedWriter(lines), "utf-8", "backslashreplace", line_buffering=True
            )
            for lines in self._raw
        ]
        self._ballast = mmap.mmap(-1, _BALLAST_BYTES)  # not touched: address space only
        self._handler: _Handler | None = None
        self._code_ahead: tuple[_Identity, CodeType] | None = None

    def serve(self, rehearsal: str) -> None:
        """Serve requests until the pool goes away, or until one is the last.

        The first one waits until the package is there. Before it, if there is time, the package
        in the folder `rehearsal` is run, if one is named.
        """
        channel = self._channel
        sys.stdout, sys.stderr = self._streams
        if rehearsal and not channel.is_spoken_to(_REHEARSE_AFTER_MS):
            self.warm_up(rehearsal, 1)  # now its pages are its own, before anybody waits for it
        is_given = False
        if ahead := channel.receive_preparation():
            if not os.read(_GO_FD, 1):
                return
            is_given = True
            if ahead["import"]:
                self._import_ahead(ahead["root"], ahead["entrypoint"])
            else:
                self._read_ahead(ahead["root"], ahead["entrypoint"])
        request = channel.receive_request()
        if request is None or not (is_given or os.read(_GO_FD, 1)):
            return
        while request is not None:
            try:
                problem = self._execute(request)
            except MemoryError:
                problem = ("memory", "the handler ran out of memory")
                self._ballast.close()
            if problem is not None:
                channel.send(wire.PROBLEM, b'{"ending":"%s","message":%s}' % _quoted(*problem))
            if problem is not None or not request["reuse"]:
                # Wait to be killed: exiting now would take the CPU from the pool just as it reads
                # the result.
                channel.wait_for_end()
                return
            request = channel.receive_request()

    def _read_ahead(self, root: str, entrypoint: str) -> None:
        """Read the handler's code before there is a call, and run none of it."""
        path = f"{root}/{entrypoint.rpartition(':')[0]}"
        with contextlib.suppress(OSError, ValueError, SyntaxError, EOFError, TypeError):
            self._code_ahead = (_identity(path), _code(path))

    def _import_ahead(self, root: str, entrypoint: str) -> None:
        """Load the handler before there is a call. If that fails it is tried again with the call,
        which then is told; what it prints has no execution to belong to."""
        loaded, path = set(sys.modules), list(sys.path)
        try:
            self._handler = _load(root, entrypoint)
        except BaseException:
            sys.path[:] = path
            for name in set(sys.modules) - loaded:
                del sys.modules[name]

    def warm_up(self, package: str, rounds: int) -> None:
        """Run a handler of ours in this very process, before there is anybody else's.

        So that the interpreter has specialised the code on the way (PEP 659) and filled its
        caches, which every child would do again and thereby copy the pages they are on.
        """
        ours, theirs = socket.socketpair()
        fd, self._channel.fd = self._channel.fd, theirs.fileno()
        modules, path = set(sys.modules), list(sys.path)
        request = {
            "root": package,
            "entrypoint": "warm.py:handle",
            "input": [1, 2.5, "three", None, {"four": True}],
            "config": {},
            "secrets": {},
            "output_bytes": 10_000,
            "log_bytes": 10_000,
            "has_input": True,
            "attempt": 0,
            "reuse": False,
        }
        for name in ("execution_id", "flow_id", "step_id", "tenant_id", "task_id"):
            request[name] = name
        with ours, theirs:
            for _ in range(rounds):
                ours.sendall(
                    wire.frame(wire.REQUEST, bytes(wire.TOKEN_BYTES), wire.encode(request))
                )
                received = self._channel.receive_request()
                assert received is not None
                if problem := self._execute(received):
                    raise RuntimeError(f"the warm-up failed: {problem[1]}")
                answer = ours.recv(100_000)
                assert b'"success"' in answer, answer
                self._handler = None
                sys.path[:] = path
                for name in set(sys.modules) - modules:
                    del sys.modules[name]
        self._channel.fd = fd

    def _execute(self, request: dict[str, Any]) -> tuple[str, str] | None:
        """Run the handler and send its result; or say which ending it came to instead."""
        channel = self._channel
        context = Context(request, channel.log_call, channel.fetch_context)
        try:
            if self._handler is None:
                self._handler = _load(request["root"], request["entrypoint"], self._code_ahead)
            result = context.finished(_await(self._handler(request["input"], context)))
        except MemoryError:
            raise
        except BaseException as exc:
            result = context.collected({"outcome": "failure", "error": _describe(exc)})
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # the handler closed it, or put something else there
        for lines in self._raw:
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


def _quoted(ending: str, message: str) -> tuple[bytes, bytes]:
    return ending.encode(), wire.encode(message.encode("utf-8", "replace").decode()[:2000])


class _Channel:
    """The socket to the pool: whole frames out, in one piece each; frames in, when expected."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._token = bytes(wire.TOKEN_BYTES)
        self._lock = threading.Lock()
        self._reader = wire.FrameReader(_REQUEST_MAX_BYTES)
        self._read, self._write = os.read, os.write
        # The pool is trusted: what it sends has been checked. What every child is sent has no
        # blanks around it, so it needs less of `json`.
        self._decode, self._loads = json.JSONDecoder().raw_decode, json.loads
        self._log_left = 0
        self._frames: list[wire.Frame] = []

    def receive_preparation(self) -> dict[str, Any] | None:
        """What will be called, if that is the first frame; the frame stays if it is another."""
        frame = self._receive()
        if frame is None or frame.kind != wire.PREPARE:
            self._frames[:0] = [frame] if frame is not None else []
            return None
        ahead: dict[str, Any] = self._decode(frame.payload.decode())[0]
        self._log_left = -1  # there is nobody to log to yet
        return ahead

    def receive_request(self) -> dict[str, Any] | None:
        """Wait for a request; None if the pool goes away instead."""
        frame = self._receive()
        if frame is None:
            return None
        self._token = frame.token
        request: dict[str, Any] = self._decode(frame.payload.decode())[0]
        self._log_left = request["log_bytes"]
        return request

    def fetch_context(self) -> dict[str, Any]:
        """Ask the pool for the execution's context."""
        self.send(wire.CONTEXT, b"")
        frame = self._receive()
        if frame is None:
            os._exit(0)
        context: dict[str, Any] = self._loads(frame.payload)
        return context

    def send(self, kind: bytes, payload: bytes) -> None:
        """Send one frame, however long that takes."""
        view = wire.frame(kind, self._token, payload)
        with self._lock:
            sent = self._write(self.fd, view)
            while sent < len(view):
                view = view[sent:]
                sent = self._write(self.fd, view)

    def is_spoken_to(self, patience_ms: int) -> bool:
        """Whether a request comes within that time."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(patience_ms))

    def wait_for_end(self) -> None:
        """Return once the pool closes the channel; it usually kills before."""
        self._read(self.fd, 1)

    def log_call(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """`ctx.log`"""
        self.log("log", level, message, fields)

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

    def _receive(self) -> wire.Frame | None:
        while not self._frames:
            data = self._read(self.fd, _READ_BYTES)
            if not data:
                return None
            self._frames = self._reader.feed(data)
        return self._frames.pop(0)


def _bind(one: socket.socket, address: Any, /) -> None:
    """bind(2) is refused, by which urllib3 concludes that there is no IPv6: it binds this very
    address and does nothing with it. Nothing is bound here either; who goes on to listen is refused
    then."""
    if one.family != socket.AF_INET6 or address != ("::1", 0):
        _BIND(one, address)


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


def _load(root: str, entrypoint: str, ahead: tuple[_Identity, CodeType] | None = None) -> _Handler:
    file, _, name = entrypoint.rpartition(":")
    sys.path.insert(0, root)
    sys.dont_write_bytecode = True  # there is nowhere to write it
    module_name = file.removesuffix(".py").replace("/", ".")
    if module_name in sys.modules:
        module_name = f"handler_{module_name}"  # its file may be named like a loaded module
    path = f"{root}/{file}"
    # As importlib would, without its 0.4 ms of Python on pages that are shared until then.
    loader = importlib.machinery.SourceFileLoader(module_name, path)
    module = sys.modules[module_name] = ModuleType(module_name)
    spec = importlib.machinery.ModuleSpec(module_name, loader, origin=path)
    spec.has_location = True
    module.__file__, module.__spec__, module.__loader__ = path, spec, loader
    module.__package__ = spec.parent
    known = ahead is not None and ahead[0] == _identity(path)
    exec(ahead[1] if ahead is not None and known else _code(path), module.__dict__)
    target: Any = getattr(module, name, None)
    if isinstance(target, type):
        instance = target()
        target = getattr(instance, "handle", None) or getattr(instance, "execute", None)
    if not callable(target):
        raise ImportError(f"cannot find {name} in {file}: a function, or a class with handle()")
    handler: _Handler = target
    return handler


def _identity(path: str) -> _Identity:
    """What differs if the file is another one by now."""
    found = os.stat(path)
    return path, found.st_ino, found.st_mtime_ns, found.st_size


def _code(path: str) -> CodeType:
    """The file's code: compiled when it was published, or now."""
    folder, _, file = path.rpartition("/")
    stem = file.removesuffix(".py")
    try:
        compiled = _content(f"{folder}/__pycache__/{stem}.{sys.implementation.cache_tag}.pyc")
    except OSError:
        compiled = b""
    if compiled.startswith(_PYC_START):
        code: CodeType = marshal.loads(memoryview(compiled)[_PYC_HEADER_BYTES:])
        return code
    return compile(_content(path), path, "exec", dont_inherit=True)


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return os.read(fd, size)
    finally:
        os.close(fd)


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
        limit = -_TRACEBACK_FRAMES_MAX
        trace = "".join(traceback.format_exception(type(exc), exc, _without_ours(exc), limit=limit))
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
