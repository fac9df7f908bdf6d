"""One end of the socket pair between the caller and the sandbox host.

What is sent in one turn of the loop goes out in one write. It promises to say once that the link
has ended, and why; it never parses a payload. What waits to be sent is bounded by the calls in
flight: each has one request or one reply, and a log within its limit.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from sandbox.host.messages import Message, Reader, message
from sandbox.wire import ProtocolError

__all__ = ["Link"]

_READ_BYTES = 256 * 1024  # a little more than the kernel keeps for a socket pair


class Link:
    """Sends messages and hands over those that come; `on_end` is given the reason, in words.

    `on_message` may raise ProtocolError, which ends the link.
    """

    def __init__(
        self,
        sock: socket.socket,
        limit_bytes: int,
        on_message: Callable[[Message], None],
        on_end: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_end = on_end
        self._reader = Reader(limit_bytes)
        self._space = memoryview(bytearray(_READ_BYTES))
        self._outgoing = bytearray()
        self._is_flushing = False  # at the end of this turn, or when there is room
        self._is_full = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self.read)

    def send(self, kind: bytes, number: int, *parts: bytes) -> None:
        """Have a message sent with the others of this turn; nothing after the end."""
        if self._closed:
            return
        self._outgoing += message(kind, number, *parts)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def read(self) -> bool:
        """Take what has come; whether there was anything."""
        if self._closed:
            return False
        try:
            size = self._socket.recv_into(self._space)
        except BlockingIOError:
            return False
        except OSError as exc:
            self._end(str(exc.strerror))
            return False
        if not size:
            self._end("it has ended")
            return False
        try:
            for one in self._reader.feed(self._space[:size]):
                if not self._closed:  # by what came before
                    self._on_message(one)
        except ProtocolError as exc:
            self._end(f"it broke the protocol: {exc}")
        return True

    def end_writing(self) -> None:
        """Send what waits, as far as there is room, and say that no more will come."""
        self._flush()
        if not self._closed:
            with suppress(OSError):  # it has ended meanwhile
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it without a word."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            if self._is_full:
                self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            sent = self._socket.send(self._outgoing) if self._outgoing else 0
            del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()  # the reading side hears of it
        waits = self._is_flushing = bool(self._outgoing)
        if waits != self._is_full:
            self._is_full = waits
            if waits:
                self._loop.add_writer(self._socket.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _end(self, reason: str) -> None:
        self.close()
        self._on_end(reason)
