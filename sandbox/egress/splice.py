"""One connection of a handler, joined to the server it wanted.

Dials, waits for the greeting if that is to be judged, then passes bytes on both ways: what one
side has read and the other cannot take yet is at most one buffer, and until it is gone nothing
more is read (backpressure). The end of one direction is passed on as such (half-close). Whatever
goes wrong resets both sides.

It works on bare sockets and the event loop's readers and writers, because transports make a
connection cost twice as much, cannot be reset, and differ between asyncio and uvloop. No task, no
coroutine: callbacks alone, all gone after `reset`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from sandbox.egress.hello import BadHello, Hello, read_hello
from sandbox.egress.tally import Line

__all__ = ["BUFFER_BYTES", "Owner", "Splice", "reset"]

# Of one read, shared by all connections of a gateway; also what a slow side may keep in memory.
BUFFER_BYTES = 64 * 1024
_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: close(2) sends a reset


class Owner(Protocol):
    """Whoever has the connection."""

    def joined(self, splice: Splice) -> Line:
        """The server answered; returns where the bytes are counted."""

    def spend(self, count: int) -> bool:
        """So many bytes are about to be passed on; False: they may not."""

    def ended(self, splice: Splice, reason: str) -> None:
        """The connection is gone; `reason` is "" if nobody refused it anything."""


def reset(one: socket.socket) -> None:
    """Close with a reset: whoever is at the other end sees an error, not an end."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    except OSError:
        pass  # closed all the same
    one.close()


class _Way:
    """One direction: what was read and could not be written yet, and whether it has ended."""

    __slots__ = ("ended", "pending", "source", "target")

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.pending = b""
        self.ended = False


class Splice:
    """Owns both sockets, non-blocking ones; ends by telling its owner. `judge` is asked what it
    has against the client's first bytes, None: they are not looked at."""

    def __init__(
        self,
        owner: Owner,
        client: socket.socket,
        server: socket.socket,
        buffer: memoryview,
        judge: Callable[[Hello], str | None] | None,
    ) -> None:
        self._owner = owner
        self._client = client
        self._server = server
        self._buffer = buffer
        self._judge = judge
        self._held = bytearray()  # of the greeting, until it is judged
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._idle_s = self._seen = 0.0
        self._line = Line()
        self._up = _Way(client, server)
        self._down = _Way(server, client)

    def dial(self, address: str, port: int, timeout_s: float, idle_s: float) -> None:
        """Connect to this very address; nothing is resolved."""
        self._idle_s = idle_s
        code = self._server.connect_ex((address, port))
        if code == errno.EINPROGRESS:
            # On this host and near it the answer is there by now: a turn of the loop less.
            code = self._server.connect_ex((address, port))
            code = errno.EINPROGRESS if code == errno.EALREADY else code
        if code == errno.EINPROGRESS:
            self._timer = self._loop.call_later(timeout_s, self._on_dial_timeout)
            self._loop.add_writer(self._server.fileno(), self._on_dialled)
        elif code == 0:
            self._join()
        else:
            self.reset(f"cannot be reached: {os.strerror(code)}")

    def reset(self, reason: str = "") -> None:
        """End both sides at once, now."""
        self._leave()
        reset(self._client)
        reset(self._server)
        self._owner.ended(self, reason)

    # --- inside ------------------------------------------------------------------------------

    def _on_dial_timeout(self) -> None:
        self._timer = None
        self.reset("cannot be reached: no answer in time")

    def _on_dialled(self) -> None:
        self._loop.remove_writer(self._server.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        code = self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.reset(f"cannot be reached: {os.strerror(code)}")
        else:
            self._join()

    def _join(self) -> None:
        self._line = self._owner.joined(self)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seen = self._loop.time()
        self._timer = self._loop.call_later(self._idle_s, self._on_idle)
        self._loop.add_reader(self._server.fileno(), self._on_readable, self._down)
        up = self._on_greeting if self._judge is not None else self._on_request
        self._loop.add_reader(self._client.fileno(), up)
        up()  # a client that talks first has talked already

    def _on_idle(self) -> None:
        """The timer is not set anew at each byte; it looks when the last one was."""
        left = self._seen + self._idle_s - self._loop.time()
        if left <= 0:
            self._timer = None
            self.reset("idle for too long")
        else:
            self._timer = self._loop.call_later(left, self._on_idle)

    def _on_request(self) -> None:
        self._on_readable(self._up)

    def _on_greeting(self) -> None:
        """What the client says first waits here until the rules have judged it."""
        count = self._read(self._up)
        if count < 0:
            return
        if count == 0 and self._held:
            self.reset("the TLS greeting ends too soon")
            return
        if count == 0:
            self._finish(self._up)
            return
        self._held += self._buffer[:count]
        try:
            hello = read_hello(self._held)
            reason = None if hello is None or self._judge is None else self._judge(hello)
        except BadHello as exc:
            self.reset(str(exc))
            return
        if reason is not None:
            self.reset(reason)
        elif hello is not None:
            self._loop.add_reader(self._client.fileno(), self._on_request)
            said, self._held = bytes(self._held), bytearray()
            self._pass_on(self._up, memoryview(said))

    def _on_readable(self, way: _Way) -> None:
        count = self._read(way)
        if count == 0:
            self._finish(way)
        elif count > 0:
            self._pass_on(way, self._buffer[:count])

    def _read(self, way: _Way) -> int:
        """Bytes read into the buffer, 0 at the end, below it if there is nothing to do."""
        try:
            count = way.source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError:
            self.reset()
            return -1
        self._seen = self._loop.time()
        return count

    def _pass_on(self, way: _Way, data: memoryview) -> None:
        if not self._owner.spend(len(data)):
            self.reset("more bytes than allowed")
            return
        if way is self._up:
            self._line.sent += len(data)
        else:
            self._line.received += len(data)
        sent = self._write(way, data)
        if 0 <= sent < len(data):
            way.pending = bytes(data[sent:])
            self._loop.remove_reader(way.source.fileno())
            self._loop.add_writer(way.target.fileno(), self._on_writable, way)

    def _on_writable(self, way: _Way) -> None:
        sent = self._write(way, way.pending)
        if sent < 0:
            return
        self._seen = self._loop.time()
        way.pending = way.pending[sent:]
        if not way.pending:
            self._loop.remove_writer(way.target.fileno())
            self._loop.add_reader(way.source.fileno(), self._on_readable, way)

    def _write(self, way: _Way, data: bytes | memoryview) -> int:
        """Bytes that the target took; below 0 if the connection is gone."""
        try:
            return way.target.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.reset()
            return -1

    def _finish(self, way: _Way) -> None:
        """The source will send no more: say so to the target, or end if both are through."""
        way.ended = True
        self._loop.remove_reader(way.source.fileno())
        if self._up.ended and self._down.ended:
            self._leave()
            self._client.close()
            self._server.close()
            self._owner.ended(self, "")
            return
        try:
            way.target.shutdown(socket.SHUT_WR)
        except OSError:
            self.reset()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for one in (self._client, self._server):
            self._loop.remove_reader(one.fileno())
            self._loop.remove_writer(one.fileno())
