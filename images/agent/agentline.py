"""The line to the daemon: frames both ways, and again after it was lost.

Before there is a task the caller's thread reads it; from then on a thread of its own does, which
also sends the heartbeats, so that they come however long the handler computes. That thread never
waits for anybody: what it says goes through `_out`. Questions that have to last have a number; one
that was not answered is asked again of the daemon that is found next, before anything else.
"""

from __future__ import annotations

import _socket
import _thread
import os
import select
import time

from agentjson import decode, encode

TYPE_CHECKING = False  # typing itself would cost 0.6 MiB
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    _Message = dict[str, Any]

__all__ = ["Line"]

FENCED, NO_DAEMON = 4, 3  # exit codes
WITHOUT_DAEMON_S = 15 * 60
RETRY_S, RETRY_MAX_S = 0.1, 1.0
PART_BYTES = 1024 * 1024
READ_BYTES = 256 * 1024
TICK_S = 1.0  # so late at most is what nobody else hurries
KEPT_BYTES = 256 * 1024  # of log lines, while there is no daemon


class _Question:
    """Something that waits for its answer."""

    __slots__ = ("_lock", "answer", "blob", "frames")

    def __init__(self, frames: list[bytes | memoryview]) -> None:
        self.frames = frames
        self.answer: _Message = {}
        self.blob = b""
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def give(self, answer: _Message, blob: bytes) -> None:
        self.answer, self.blob = answer, blob
        self._lock.release()

    def wait(self) -> None:
        with self._lock:
            pass


class Line:
    """One agent's line. `prepare`, `on_ttl`, `on_resume` and `each_tick` are called when it is
    time; all but the first by the line's own thread, and none of them may wait for it."""

    def __init__(self, path: str, instance: str, runtime: str) -> None:
        self.prepare: Callable[[str, str], str | None] = lambda package, entrypoint: None
        self.on_ttl: Callable[[int], None] = lambda left_ms: None
        self.on_resume: Callable[[int], None] = lambda paused_ms: None
        self.each_tick: Callable[[], None] = lambda: None
        self.inputs: dict[int, Callable[[], None]] = {}  # other descriptors that its thread reads
        self.is_cancelled = False
        self.console = 2  # where a fault of ours is told
        self._is_left = False
        self._path, self._instance, self._runtime = path, instance, runtime
        self._attempt = 0
        self._task: _Message | None = None
        self._socket: _socket.socket | None = None
        self._is_up = False
        self._frames = _Frames()
        self._sending = _thread.allocate_lock()
        self._asking = _thread.allocate_lock()
        self._out = bytearray()  # goes first, without waiting
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._seq = self._answered = self._asks = 0
        self._open: dict[int, _Question] = {}  # by seq, in order
        self._asked: dict[int, _Question] = {}
        self._paused: _Question | None = None
        self._heartbeat_s = 0.0
        self._next_beat = 0.0
        self._parked = _thread.allocate_lock()

    def wait_for_task(self) -> _Message:
        """Serve the daemon until it gives a task."""
        self._parked.acquire()
        _thread.start_new_thread(self._serve, ())
        os.register_at_fork(after_in_child=self._leave)
        while self._task is None:
            self._step()
        return self._task

    def begin(self, task: _Message) -> None:
        """The task begins: from now on the line's own thread serves it."""
        self._heartbeat_s = task["heartbeatMs"] / 1000
        self._next_beat = time.monotonic() + self._heartbeat_s
        self.send({"type": "accepted", "attempt": task["attempt"]})
        self._parked.release()

    def send(self, message: _Message) -> None:
        """Say something that may be lost."""
        self._write([_frame(encode(message))])

    def log(self, message: bytes) -> None:
        """Say a log line, or keep it, within a limit, while there is no daemon."""
        if not self._write([_frame(message)]):
            self._keep(_frame(message))

    def log_later(self, message: bytes) -> None:
        """The same from the line's own thread."""
        if self._is_up:
            self._out.extend(_frame(message))
        else:
            self._keep(_frame(message))

    def ask(self, message: _Message, blob: bytes | None = None) -> _Message:
        """Ask what has to last, one at a time, and wait for its answer; after a pause that is the
        resumption."""
        self._refuse_children()
        with self._asking:
            with self._sending:
                message["seq"] = seq = self._seq + 1
                question = self._open[seq] = _Question(_with_blob(encode(message), blob))
                self._seq = seq
                self._write_all(question.frames)
            question.wait()
            return question.answer

    def fetch(self, message: _Message) -> tuple[_Message, bytes]:
        """Ask for something, and wait for it and its bytes."""
        self._refuse_children()
        with self._asking:
            with self._sending:
                self._asks = number = self._asks + 1
                message["ask"] = number
                question = self._asked[number] = _Question([_frame(encode(message))])
                self._write_all(question.frames)
            question.wait()
            return question.answer, question.blob

    def _refuse_children(self) -> None:
        if self._is_left:
            raise RuntimeError("cannot reach the daemon from a forked child: its parent can")

    # -- out -----------------------------------------------------------------------------------

    def _write(self, frames: list[bytes | memoryview]) -> bool:
        with self._sending:
            return self._write_all(frames)

    def _write_all(self, frames: list[bytes | memoryview]) -> bool:
        """Send whole frames, however long that takes; False if there is no daemon."""
        if not self._is_up or self._socket is None:
            return False
        try:
            if self._out:
                first, self._out = self._out, bytearray()
                self._socket.sendall(first)
            for frame in frames:
                self._socket.sendall(frame)
        except OSError:
            self._break()
            return False
        return True

    def _keep(self, frame: bytes) -> None:
        if self._kept_bytes < KEPT_BYTES:
            self._kept_bytes += len(frame)
            self._kept.append(frame)

    def _push(self) -> None:
        """Send what goes first, as far as that needs no waiting; for the line's own thread."""
        if not self._out or not self._sending.acquire(False):
            return  # who sends now sends that first, or the next tick does
        try:
            if self._is_up and self._socket is not None:
                sent = self._socket.send(self._out, _socket.MSG_DONTWAIT)
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._break()
        finally:
            self._sending.release()

    def _break(self) -> None:
        """The connection is of no use; its reader finds out and makes another one."""
        self._is_up = False
        if self._socket is not None:
            try:
                self._socket.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass

    # -- in ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._parked.acquire()
        try:
            while True:
                self._step()
        except BaseException:  # a fault of ours; the daemon sees the end and starts another one
            import traceback

            os.write(self.console, traceback.format_exc().encode("utf-8", "replace"))
            os._exit(1)

    def _step(self) -> None:
        """Wait for something to do, and do it."""
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self._out else 0))
        for fd in self.inputs:
            poll.register(fd, select.POLLIN)
        for fd, events in poll.poll(self._patience_ms()):
            if fd in self.inputs:
                self._hear(fd, events)
            elif events & ~select.POLLOUT:
                self._read()
        if self._heartbeat_s:
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + self._heartbeat_s
                self._out.extend(_frame(b'{"type":"heartbeat"}'))
            self.each_tick()
        self._push()

    def _patience_ms(self) -> int | None:
        if not self._heartbeat_s:
            return None
        left_s = self._next_beat - time.monotonic()
        return int(1000 * max(0.0, min(left_s, TICK_S))) + 1

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ_BYTES)
        except OSError:
            data = b""
        if data:
            for message, blob in self._frames.feed(data):
                self._take(message, blob)
            return
        with self._sending:
            self._is_up = False
            try:
                self._socket.close()
            except OSError:
                pass  # the handler did
            self._socket = None

    def _hear(self, fd: int, events: int) -> None:
        if events & select.POLLNVAL:
            del self.inputs[fd]  # the handler has closed it
        else:
            self.inputs[fd]()

    def _connect(self) -> None:
        """Connect, say who this is, and ask again what was not answered."""
        delay_s, waited_s = RETRY_S, 0.0
        while True:
            socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                socket.connect(self._path)
                break
            except OSError:
                socket.close()
            # Added up, not looked at on a clock: that runs on while the container is frozen.
            waited_s += delay_s
            if waited_s > WITHOUT_DAEMON_S:
                os._exit(NO_DAEMON)
            self._nap(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)
        self._frames = _Frames()
        with self._sending:
            self._socket, self._is_up = socket, True
            self._out.clear()
            again: list[bytes | memoryview] = [_frame(encode(self._hello()))]
            for question in [*self._open.values(), *self._asked.values()]:
                if question is not self._paused:
                    again += question.frames
            again += self._kept
            self._kept, self._kept_bytes = [], 0
            self._write_all(again)

    def _nap(self, for_s: float) -> None:
        """Let that time go by, in which what the handler's programs print is read."""
        poll = select.poll()
        for fd in self.inputs:
            poll.register(fd, select.POLLIN)
        end = time.monotonic() + for_s
        while (left_s := end - time.monotonic()) > 0:
            for fd, events in poll.poll(1000 * left_s):
                self._hear(fd, events)

    def _hello(self) -> _Message:
        state = "paused" if self._paused else "running" if self._attempt else "idle"
        return {
            "type": "hello",
            "protocol": 1,
            "instance": self._instance,
            "attempt": self._attempt,
            "runtime": self._runtime,
            "state": state,
            "answered": self._answered,
        }

    def _take(self, message: _Message, blob: bytes) -> None:
        match message["type"]:
            case "ok" | "refused":
                self._answer(message)
            case "paused":
                self._answered = max(self._answered, message["seq"])
                self._paused = self._open.get(message["seq"])
            case "resume":
                self.on_resume(message["pausedMs"])
                if self._paused is not None:
                    question, self._paused = self._paused, None
                    self._open.clear()  # it was the only one
                    question.give(message, b"")
            case "loaded" | "context":
                if found := self._asked.pop(message["ask"], None):
                    found.give(message, blob)
            case "ping":
                self._out.extend(_frame(encode({"type": "pong", "n": message["n"]})))
            case "prepare":
                why = self.prepare(message["package"], message["entrypoint"])
                said = {"type": "prepared"} if why is None else {"type": "problem", "message": why}
                self._out.extend(_frame(encode(said)))
            case "task":
                self._task = message
                self._attempt = message["attempt"]
            case "cancel":
                self.is_cancelled = True
            case "ttl":
                self.on_ttl(message["leftMs"])
            case "fenced":
                os._exit(FENCED)

    def _answer(self, message: _Message) -> None:
        seq = message["seq"]
        self._answered = max(self._answered, seq)
        if found := self._open.pop(seq, None):
            found.give(message, b"")

    def _leave(self) -> None:
        """In a forked child of the handler: the line belongs to its parent."""
        self._is_left = True
        self._is_up = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Frames:
    """Makes messages, each with its blob, of the daemon's bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._message: _Message | None = None  # whose blob is not whole
        self._blob = bytearray()

    def feed(self, data: bytes) -> list[tuple[_Message, bytes]]:
        buffer = self._buffer
        buffer += data
        found = []
        while len(buffer) >= 5:
            end = 4 + int.from_bytes(buffer[:4], "big")
            if len(buffer) < end:
                break
            body = bytes(buffer[5:end])
            if buffer[4] == 66:  # B
                self._blob += body
            else:
                self._message = decode(body)
            del buffer[:end]
            assert self._message is not None
            if len(self._blob) == self._message.get("size", 0):
                found.append((self._message, bytes(self._blob)))
                self._message = None
                self._blob = bytearray()
        return found


def _frame(body: bytes) -> bytes:
    return _head(1 + len(body), b"J") + body


def _head(length: int, kind: bytes) -> bytes:
    return length.to_bytes(4, "big") + kind


def _with_blob(body: bytes, blob: bytes | None) -> list[bytes | memoryview]:
    frames: list[bytes | memoryview] = [_frame(body)]
    view = memoryview(blob or b"")
    for start in range(0, len(view), PART_BYTES):
        part = view[start : start + PART_BYTES]
        frames += [_head(1 + len(part), b"B"), part]
    return frames
