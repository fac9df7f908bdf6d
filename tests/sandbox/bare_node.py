"""Node with our shim and without the sandbox, on a socket pair: the pool's side, for tests.

Owns the process and its ends of the channel; `run` is one execution. It checks every frame like
the pool: kind, token, JSON. For the tests of the shim, and for showing that an attack is a real
one where nothing stands in its way.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from sandbox import nodejs, wire
from sandbox.ending import checked_result

__all__ = ["Answer", "BareNode", "request"]

_PATIENCE_S = 20.0
_ZEROS = bytes(wire.TOKEN_BYTES)


class Answer(NamedTuple):
    """What came of an execution: a result, or a problem, or neither when the process ended."""

    result: dict[str, Any] | None
    problem: dict[str, Any] | None
    logs: list[dict[str, Any]]

    @property
    def error(self) -> dict[str, Any]:
        """The error of a failure."""
        assert self.result is not None, self
        assert self.result["outcome"] == "failure", self
        error: dict[str, Any] = self.result["error"]
        return error

    @property
    def output(self) -> Any:
        """The output of a success."""
        assert self.result is not None, self
        assert self.result["outcome"] == "success", self
        return self.result["output"]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Stream (of `ctx.log` the level) and message of each log line."""
        return [(line["level"] or line["stream"], line["message"]) for line in self.logs]


def request(root: Path | str, **other: Any) -> dict[str, Any]:
    """A request for the package in that folder."""
    return {
        "root": str(root),
        "entrypoint": "handler.js:handle",
        "input": None,
        "has_input": True,
        "config": {},
        "secrets": {},
        "execution_id": "e1",
        "flow_id": "f1",
        "step_id": "s1",
        "attempt": 0,
        "tenant_id": "default",
        "task_id": "t1",
        "output_bytes": 1 << 20,
        "log_bytes": 1 << 20,
        "reuse": False,
        **other,
    }


class BareNode:
    """A Node that waits for requests; use it with `with`."""

    def __init__(self, heap_mib: int = 192, program: str | None = None) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(_PATIENCE_S)
        go_read, self._go = os.pipe()
        self._printed = tempfile.TemporaryFile()
        self._reader = wire.FrameReader(64 << 20)
        self._frames: list[wire.Frame] = []
        printed = self._printed.fileno()
        moves = [(go_read, 0), (printed, 1), (printed, 2), (theirs.fileno(), 3)]
        assert all(source > 3 for source, _ in moves)
        self.pid = os.posix_spawn(
            nodejs.find(program),
            nodejs.command(heap_mib),
            nodejs.environment(),
            file_actions=[(os.POSIX_SPAWN_DUP2, *move) for move in moves],
        )
        os.close(go_read)
        theirs.close()
        self._status: int | None = None

    def __enter__(self) -> BareNode:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._ours.close()
        if self._go >= 0:
            os.close(self._go)
        self._printed.close()

    def wait_ready(self) -> None:
        """Wait until it says that it is ready."""
        assert self.next_frame() == (wire.READY, _ZEROS, b"")

    def run(
        self,
        asked: dict[str, Any],
        context: dict[str, Any] | None = None,
        token: bytes = b"12345678",
    ) -> Answer:
        """One execution; it must ask for the context if one is given, and only then."""
        self.send(wire.frame(wire.REQUEST, token, wire.encode(asked)))
        self.go()
        logs = []
        while (frame := self.next_frame()) is not None:
            assert frame.token == token
            if frame.kind == wire.LOG:
                line = wire.decode(frame.payload)
                assert line.keys() == {"stream", "level", "message", "fields"}
                logs.append(line)
            elif frame.kind == wire.CONTEXT:
                assert context is not None
                assert frame.payload == b""
                self.send(wire.frame(wire.CONTEXT, token, wire.encode(context)))
                context = None
            elif frame.kind == wire.RESULT:
                assert context is None
                return Answer(checked_result(wire.decode(frame.payload)), None, logs)
            else:
                assert frame.kind == wire.PROBLEM
                return Answer(None, wire.decode(frame.payload), logs)
        return Answer(None, None, logs)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._ours.sendall(data)

    def go(self) -> None:
        """Say that the package is there."""
        if self._go >= 0:
            os.write(self._go, b"!")
            os.close(self._go)
            self._go = -1

    def next_frame(self) -> wire.Frame | None:
        """The next frame that is no READY of an execution's; None once it has ended."""
        while not self._frames:
            try:
                data = self._ours.recv(1 << 20)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def close_channel(self) -> None:
        """What the pool does when it has gone away."""
        self._ours.shutdown(socket.SHUT_RDWR)

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def printed(self) -> str:
        """What it has written past its own streams, to descriptors 1 and 2."""
        self._printed.seek(0)
        return self._printed.read().decode("utf-8", "replace")
