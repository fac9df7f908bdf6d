"""The daemon's end of one agent: what runs a stateful handler in a container.

An `Agent` is one instance's socket in the folder that is mounted into its container. It takes one
connection at a time, and again another one after that is lost: the agent connects anew, also to a
daemon that has just started. What is said there comes from a stranger: a broken frame, a wrong
sequence, a flood or a message at the wrong time ends the instance with a reason. What has to last
is handed over strictly one after the other and answered only once that is done, so that an agent
sends again whatever was not. It has no tasks of its own: bytes are taken in callbacks of the loop,
and whoever runs the job calls `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from flowmonkeyd import agentmodel as model
from flowmonkeyd import agentwire as wire
from flowmonkeyd import jsontext
from flowmonkeyd.agentblobs import Blob, receive
from flowmonkeyd.agentlink import Allowance, Link
from flowmonkeyd.agentmodel import (
    Assignment,
    Checkpoint,
    Clear,
    Extend,
    Hello,
    LogLine,
    Pause,
    Progress,
    Result,
)
from flowmonkeyd.agentwire import ProtocolError
from flowmonkeyd.errors import FlowMonkeyError, LeaseLost

__all__ = ["Agent", "Blob", "Listener", "Unanswered"]

SOCKET = "agent.sock"
# Of log text, a line counted with 100 bytes more than it has: what comes faster is dropped. The
# agents keep to the same. An execution of the sandbox, of a minute at most, may log 1 MiB in all.
LOG_BYTES_PER_S, LOG_BURST_BYTES, LINE_COST_BYTES = 16 * 1024, 1024 * 1024, 100
# Received and not yet handled: beyond either nothing more is read.
WAITING_MAX, WAITING_MAX_BYTES = 256, 2 * 1024 * 1024
# The same while a large blob is sent: an agent that must write before it can read goes on.
SENDING_MAX, SENDING_MAX_BYTES = 20_000, 8 * 1024 * 1024
ANSWERS_MAX = 64  # kept to be given again; our agents have no more than 16 questions open
_FOLDER_FDS = "/proc/self/fd"


class Unanswered(Exception):
    """The agent is not there, or did not do in time what it was asked; the message says what."""


class _Lost(Exception):
    """The connection ended within a question; the agent asks it again."""


class Listener(Protocol):
    """What is done with what an agent says; `serve` calls these one after the other.

    An async one returns once it is committed. FlowMonkeyError is a refusal, told to the handler
    with code and message. LeaseLost means that another instance has the job: the agent is told to
    go, and `serve` raises it. A question that was answered may come again, with the same `seq`, if
    the answer was lost with a daemon: it is to be answered as before and to change nothing.
    """

    def on_log(self, line: LogLine) -> None:
        """A line of the log, within the limit."""

    def on_progress(self, progress: Progress) -> None:
        """How far it is; ten times a second at most from an agent of ours."""

    async def on_checkpoint(self, wanted: Checkpoint, blob: Blob) -> None:
        """Save it."""

    async def on_clear(self, wanted: Clear) -> None:
        """Remove one or all."""

    async def on_pause(self, wanted: Pause, blob: Blob | None) -> None:
        """Commit the pause, with its checkpoint; the container may be frozen once `serve` has
        returned. If this very pause is over already, resume the agent then."""

    async def on_extend(self, wanted: Extend) -> int:
        """Return the time to live from now on, in ms of active time."""

    async def on_load(self, name: str) -> Blob | None:
        """Return a checkpoint; None if there is none."""

    async def on_context(self) -> bytes:
        """Return the execution's context as JSON text."""


class Agent:
    """One instance's agent. Open it before the container starts; close it in the end."""

    def __init__(
        self,
        instance: str,
        folder: Path,
        spool: Path,
        *,
        blob_max_bytes: int = 0,
        on_lost: Callable[[Agent], None] | None = None,
    ) -> None:
        """`folder` is the one that the container sees as /run/flowmonkey; large blobs are received
        into `spool`. `blob_max_bytes`, the most that a checkpoint may have, is needed to adopt a
        running instance only: `give` says it too. `on_lost` is called when the connection has
        ended, also because the agent broke a rule (`problem`)."""
        self.instance = instance
        self.problem: ProtocolError | None = None
        self.attempt = 0  # of the task that it has accepted
        self._folder, self._spool = folder, spool
        self._blob_max_bytes = blob_max_bytes
        self._on_lost = on_lost
        self._server: asyncio.Server | None = None
        self._link: Link | None = None
        self._heard = time.monotonic()
        self._changed = asyncio.Event()
        self._prepared: model.Prepared | model.Refusal | None = None
        self._pings = self._pongs = 0
        self._waiting: deque[model.Message | model.Part | _Lost] = deque()
        self._waiting_bytes = 0
        self._is_busy = self._is_held = self._is_sending = False
        self._answers: OrderedDict[int, Mapping[str, Any]] = OrderedDict()
        self._standing: dict[str, Mapping[str, Any]] = {}  # to be told again when it reconnects
        self._log = Allowance(LOG_BYTES_PER_S, LOG_BURST_BYTES)
        self._dropped = 0

    async def open(self) -> None:
        """Listen, in the place of a socket that is there from an earlier daemon."""
        loop = asyncio.get_running_loop()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder_fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"{_FOLDER_FDS}/{folder_fd}/{SOCKET}"  # unix(7): sun_path has 108 bytes
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listening.bind(path)
            os.chmod(path, 0o666)  # who may come so far is said by the folders above
            listening.setblocking(False)
            made = lambda: Link(self, self._blob_max_bytes)  # noqa: E731
            self._server = await loop.create_unix_server(made, sock=listening)
        except BaseException:
            listening.close()
            raise
        finally:
            os.close(folder_fd)

    async def close(self) -> None:
        """Drop the connection and listen no more. A running agent tries to connect again."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                (self._folder / SOCKET).unlink()
        if self._link is not None:
            self._link.drop()

    @property
    def hello(self) -> Hello | None:
        """How the agent that is there introduced itself; None: none is there, or none in order."""
        if self._link is None or self.problem is not None:
            return None
        return self._link.hello

    @property
    def last_heard(self) -> float:
        """When it last said anything (time.monotonic()); now, while it is we who keep it waiting
        or hold it."""
        if self._is_busy or self._is_held or self._waiting:
            return time.monotonic()
        return self._heard

    async def connected(self, timeout_s: float) -> Hello:
        """Wait until it is there. Raises Unanswered, ProtocolError."""
        await self._until(lambda: self.hello is not None, timeout_s, "did not connect")
        assert self.hello is not None
        return self.hello

    async def ping(self, timeout_s: float) -> None:
        """Have it answer. Raises Unanswered, ProtocolError."""
        self._pings = wanted = self._pings + 1
        self._linked().say({"type": "ping", "n": wanted})
        await self._until(lambda: self._pongs >= wanted, timeout_s, "did not answer a ping")

    async def prepare(self, package: str, entrypoint: str, timeout_s: float) -> str | None:
        """Have it import a handler before there is a task; return why that failed, or None. With
        the task it is tried once more. Raises Unanswered, ProtocolError."""
        self._prepared = None
        said = {"type": "prepare", "package": package, "entrypoint": entrypoint}
        self._linked().say(said)
        await self._until(lambda: self._prepared is not None, timeout_s, "did not prepare")
        answer = self._prepared
        return answer.message if isinstance(answer, model.Refusal) else None

    async def give(self, task: Assignment, timeout_s: float) -> None:
        """Give it its one task and wait until it has begun. Raises Unanswered, ProtocolError: then
        nobody knows whether it runs, and the instance has to be killed."""
        link = self._linked()
        if self.attempt or link.assigned:
            raise Unanswered(f"the agent of {self.instance} has a task already")
        self._blob_max_bytes = link.reader.blob_max_bytes = task.checkpoint_max_bytes
        link.assigned = task.attempt
        link.say(task.message(self.instance))
        accepted = lambda: self.attempt == task.attempt or link.is_over  # noqa: E731
        await self._until(accepted, timeout_s, "did not accept its task")
        if self.attempt != task.attempt:
            raise Unanswered(f"the agent of {self.instance} was lost before it accepted its task")

    def hang_up(self) -> None:
        """Drop the connection: the agent comes back and asks again what was not answered."""
        if self._link is not None:
            self._link.drop()

    def hold(self) -> None:
        """Its container is about to be frozen: it is not missed until `resume`."""
        self._is_held = True

    def resume(self, by: str, data: Any, paused_ms: int) -> None:
        """It was paused or held, and its container runs again; `by` is event, hand or time."""
        self._is_held = False
        self._heard = time.monotonic()
        # One that did not get it says when it reconnects that it is paused.
        message = {"type": "resume", "by": by, "data": data, "pausedMs": paused_ms}
        self._standing["resume"] = message
        self._say(message)

    def ttl(self, left_ms: int) -> None:
        """Its time to live is nearly over."""
        self._stand({"type": "ttl", "leftMs": left_ms})

    def cancel(self, reason: str) -> None:
        """It will be killed soon. A result that comes after this is refused."""
        self._stand({"type": "cancel", "reason": reason})

    def fenced(self) -> None:
        """Another instance has the job: it exits at once."""
        self._stand({"type": "fenced"})

    def acknowledge(self, result: Result) -> None:
        """The result that `serve` returned is committed: the agent exits."""
        self._answer(result.seq, {"type": "ok", "seq": result.seq})

    async def serve(self, listener: Listener) -> Result | Pause:
        """Hand over what it says until its job ends or pauses.

        Returns the Result, not answered yet (`acknowledge`), or the Pause that `on_pause` has
        committed; then `resume` and serve again. A lost connection is no end: the agent comes back,
        or whoever watches the container cancels this. After a cancellation in the middle of a
        question the agent asks it again of whoever serves next. Raises ProtocolError when it broke
        a rule, LeaseLost when the listener did.
        """
        while True:
            await self._until(lambda: bool(self._waiting))
            link, ended = self._link, None
            self._is_busy = True
            try:
                ended = await self._handle(self._next(), listener)
            except _Lost:
                pass
            except LeaseLost:
                self.fenced()
                raise
            except BaseException as exc:
                if link is not None:
                    link.drop()
                if isinstance(exc, ProtocolError):
                    self.problem = exc
                raise
            finally:
                self._is_busy = False
                self._heard = time.monotonic()
            if ended is not None:
                return ended

    # -- of the link ---------------------------------------------------------------------------

    def on_begun(self, link: Link) -> bool:
        """The first connection, or the next after one has ended; not two."""
        if self._link is not None or self.problem is not None or self._server is None:
            return False
        self._link = link
        return True

    def on_message(self, link: Link, message: model.Message | model.Part) -> None:
        """Keep what has to wait for its turn; do the rest."""
        match message:
            case Hello():
                self._greet(link, message)
            case model.Accepted(attempt):
                self.attempt = attempt
            case model.Prepared() | model.Refusal():
                self._prepared = message
            case model.Pong(n):
                if not self._pongs <= n <= self._pings:
                    raise ProtocolError(f"pong {n} for ping {self._pings}")
                self._pongs = n
            case model.Heartbeat():
                pass
            case _:
                self._waiting.append(message)

    def on_received(self, link: Link, size: int) -> None:
        """Wake who waits; take no more if too much does."""
        self._heard = time.monotonic()
        self._changed.set()
        if self._waiting:
            self._waiting_bytes += size
            most, most_bytes = WAITING_MAX, WAITING_MAX_BYTES
            if self._is_sending:
                most, most_bytes = SENDING_MAX, SENDING_MAX_BYTES
            if len(self._waiting) > most or self._waiting_bytes > most_bytes:
                link.read_on(False)

    def on_ended(self, link: Link, problem: ProtocolError | None) -> None:
        """What came before stays; a blob that is not whole ends here."""
        self._link = None
        self._waiting.append(_Lost())
        self.problem = self.problem or problem
        self._changed.set()
        if self._on_lost is not None:
            self._on_lost(self)

    def _greet(self, link: Link, hello: Hello) -> None:
        if self.attempt and hello.attempt not in (0, self.attempt):
            raise ProtocolError(f"hello with attempt {hello.attempt}, not {self.attempt}")
        self.attempt = self.attempt or hello.attempt
        if self.attempt and not hello.attempt:
            raise ProtocolError("it has forgotten its task")
        for name, message in self._standing.items():
            if name != "resume" or hello.state == "paused":
                link.say(message)

    # -- one thing after the other -------------------------------------------------------------

    def _next(self) -> model.Message | model.Part | _Lost:
        found = self._waiting.popleft()
        if not self._waiting:
            self._waiting_bytes = 0
            if self._link is not None:
                self._link.read_on(True)
        return found

    async def _parts(self, size: int) -> Any:
        """The parts of a blob of that size. Raises _Lost if they do not come."""
        while size:
            await self._until(lambda: bool(self._waiting))
            part = self._next()
            if not isinstance(part, model.Part):
                raise _Lost
            size -= len(part.data)
            yield part.data

    async def _handle(
        self, message: model.Message | model.Part | _Lost, listener: Listener
    ) -> Result | Pause | None:
        match message:
            case LogLine():
                self._log_line(message, listener)
            case Progress():
                listener.on_progress(message)
            case model.Load(ask, name):
                await self._load(ask, await listener.on_load(name))
            case model.AskedContext(ask):
                text = await listener.on_context()
                self._say({"type": "context", "ask": ask, "size": len(text)}, text)
            case Checkpoint() | Clear() | Pause() | Extend() | Result():
                return await self._durable(message, listener)
        return None  # also for what is left of a blob that nobody received

    async def _durable(self, wanted: model.Durable, listener: Listener) -> Result | Pause | None:
        blob = None
        head = wanted.blob if isinstance(wanted, Checkpoint | Pause) else None
        try:
            if head is not None:
                blob = await receive(head, self._parts(head.size), self._spool)
            if wanted.seq in self._answers:
                self._answer_again(wanted.seq)
                return None
            if isinstance(wanted, Result) and "cancel" not in self._standing:
                return wanted
            answer = await self._committed(wanted, blob, listener)
        except LeaseLost:
            raise
        except FlowMonkeyError as exc:
            said = {"seq": wanted.seq, "code": exc.code, "message": exc.message}
            answer = {"type": "refused", **said}
        finally:
            if blob is not None and blob.file is not None:
                blob.file.unlink(missing_ok=True)  # unless it was moved away
        self._answer(wanted.seq, answer)
        return wanted if isinstance(wanted, Pause) and answer["type"] == "paused" else None

    async def _committed(
        self, wanted: model.Durable, blob: Blob | None, listener: Listener
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {"type": "ok", "seq": wanted.seq}
        match wanted:
            case Checkpoint():
                assert blob is not None
                await listener.on_checkpoint(wanted, blob)
            case Clear():
                await listener.on_clear(wanted)
            case Extend():
                answer["ttlMs"] = await listener.on_extend(wanted)
            case Pause():
                self._standing.pop("resume", None)
                await listener.on_pause(wanted, blob)
                answer["type"] = "paused"
            case Result():
                raise FlowMonkeyError("the job was cancelled", "CANCELLED")
        return answer

    def _answer_again(self, seq: int) -> None:
        answer = self._answers[seq]
        self._say(answer)
        if answer["type"] == "paused" and "resume" in self._standing:
            self._say(self._standing["resume"])

    async def _load(self, ask: int, blob: Blob | None) -> None:
        head = blob.head if blob is not None else None
        said: dict[str, Any] = {"type": "loaded", "ask": ask, "found": head is not None}
        said["size"] = head.size if head is not None else 0
        for name in ("encoding", "compression", "sha256"):
            said[name] = getattr(head, name, None)
        if blob is None or blob.data is not None:
            self._say(said, b"" if blob is None or blob.data is None else blob.data)
            return
        link = self._link
        if link is None:
            raise _Lost
        self._is_sending = True
        try:
            link.read_on(True)
            link.say(said)
            async for part in blob.parts():
                link.write(wire.part_frame(part))
                while not await link.written():
                    if not self._is_held:
                        raise ProtocolError("it takes nothing")
        finally:
            self._is_sending = False

    def _log_line(self, line: LogLine, listener: Listener) -> None:
        fields = 0 if line.fields is None else jsontext.size_bytes(line.fields)
        if not self._log.take(len(line.message) + fields + LINE_COST_BYTES):
            self._dropped += 1
            return
        if self._dropped:
            text = f"… {self._dropped} lines dropped: more than {LOG_BYTES_PER_S} bytes a second"
            listener.on_log(LogLine(line.at_ms, "log", "warning", text, None))
            self._dropped = 0
        listener.on_log(line)

    # -- saying --------------------------------------------------------------------------------

    def _answer(self, seq: int, answer: Mapping[str, Any]) -> None:
        self._answers[seq] = answer
        if len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        self._say(answer)

    def _stand(self, message: Mapping[str, Any]) -> None:
        self._standing[message["type"]] = message
        self._say(message)

    def _say(self, message: Mapping[str, Any], blob: bytes = b"") -> None:
        """Say it if the agent is there: what matters is told again when it is."""
        if self._link is not None and self._link.hello is not None:
            self._link.say(message, blob)

    def _linked(self) -> Link:
        if self.problem is not None:
            raise self.problem
        if self._link is None or self._link.hello is None:
            raise Unanswered(f"the agent of {self.instance} is not there")
        return self._link

    async def _until(
        self, is_so: Callable[[], bool], timeout_s: float | None = None, what: str = ""
    ) -> None:
        """Wait until it is so. Raises ProtocolError at once, Unanswered after the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    if self.problem is not None:
                        raise self.problem
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            why = f"the agent of {self.instance} {what} within {timeout_s:g} s"
            raise Unanswered(why) from None
