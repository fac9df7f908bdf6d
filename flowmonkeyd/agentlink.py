"""One connection of one agent: bytes in and out, under limits, in the order that the protocol has.

Owns what is true of a connection alone: that hello comes first and once and names the instance,
that questions are numbered without a gap, that nothing is said of a task before there is one, how
much may come in a second, and how much may wait. What breaks a rule ends it with a ProtocolError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast

from flowmonkeyd import agentmodel as model
from flowmonkeyd import agentwire as wire

__all__ = ["Allowance", "Link", "Owner"]

# What no agent of ours comes near: it logs 16 KiB a second (see `agents`), sends ten times progress
# a second at most, and waits for the answers to the rest, of which there are hardly 5,000 a second.
# More is a flood. Blobs are not counted: their reading waits until they are kept.
MESSAGES_PER_S, MESSAGES_BURST = 10_000, 50_000
MESSAGE_BYTES_PER_S, MESSAGE_BURST_BYTES = 8 * 1024 * 1024, 64 * 1024 * 1024
# An agent that takes no bytes for so long is stuck, unless it is held.
WRITE_S = 30.0
_WITHOUT_TASK = (model.Hello, model.Prepared, model.Refusal, model.Pong, model.Accepted)


class Allowance:
    """So much in a burst, and so much more each second. It begins full."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, time.monotonic()

    def take(self, amount: float) -> bool:
        """Use some of it; False, and nothing is used, if there is not so much."""
        if amount > self._left:
            now = time.monotonic()
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
            self._at = now
        if amount > self._left:
            return False
        self._left -= amount
        return True


class Owner(Protocol):
    """Whose connection it is."""

    instance: str

    def on_begun(self, link: Link) -> bool:
        """Whether this connection is wanted."""

    def on_message(self, link: Link, message: model.Message | model.Part) -> None:
        """A message that may come now. Raises ProtocolError if it may not."""

    def on_received(self, link: Link, size: int) -> None:
        """So many bytes have come, and what they complete was told."""

    def on_ended(self, link: Link, problem: wire.ProtocolError | None) -> None:
        """It is over; `problem` is the rule that was broken, if that is why."""


class Link(asyncio.Protocol):
    """A connection, from its beginning to its end; `assigned` is the attempt that may be talked
    about, 0 before there is a task."""

    def __init__(self, owner: Owner, blob_max_bytes: int) -> None:
        self.reader = wire.Reader(blob_max_bytes)
        self.hello: model.Hello | None = None
        self.assigned = 0
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._is_wanted = False
        self._problem: wire.ProtocolError | None = None
        self._seq = 0
        self._messages = Allowance(MESSAGES_PER_S, MESSAGES_BURST)
        self._bytes = Allowance(MESSAGE_BYTES_PER_S, MESSAGE_BURST_BYTES)
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_over = False

    # -- of asyncio ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A stranger has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._is_wanted = self._owner.on_begun(self)
        if not self._is_wanted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if not self._is_wanted or self._is_over:
            return
        try:
            before = self.reader.message_bytes
            for message in self.reader.feed(data):
                if not isinstance(message, model.Part):
                    self._check(message)
                self._owner.on_message(self, message)
            if not self._bytes.take(self.reader.message_bytes - before):
                raise wire.ProtocolError("a flood of bytes")
        except wire.ProtocolError as exc:
            self._problem = exc
            self._end()
        else:
            self._owner.on_received(self, len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """The agent has gone, or we have."""
        if self._is_wanted:
            self._end()

    def pause_writing(self) -> None:
        """Too much waits to be taken."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It was taken."""
        self._writable.set()

    # -- of the owner --------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing comes and goes any more."""
        return self._is_over

    def say(self, message: Mapping[str, Any], blob: bytes = b"") -> None:
        """Send a message, with a small blob."""
        self.write(wire.frames(message, blob))

    def write(self, data: bytes) -> None:
        """Send frames; lost if it is over."""
        if self._transport is not None and not self._is_over:
            self._transport.write(data)

    async def written(self) -> bool:
        """Wait until more can be sent; False if that takes too long."""
        try:
            async with asyncio.timeout(WRITE_S):
                await self._writable.wait()
        except TimeoutError:
            return False
        return True

    def read_on(self, is_wanted: bool) -> None:
        """Take bytes, or leave them where they are."""
        if self._transport is not None and not self._is_over:
            if is_wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def drop(self) -> None:
        """End it. What was written is still sent."""
        if self._transport is not None and not self._is_over:
            self._transport.close()
            self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._writable.set()
        if self._problem is not None and self._transport is not None:
            self._transport.abort()
        self._owner.on_ended(self, self._problem)

    def _check(self, message: model.Message) -> None:
        if not self._messages.take(1):
            raise wire.ProtocolError("a flood of messages")
        if isinstance(message, model.Hello):
            if self.hello is not None:
                raise wire.ProtocolError("a second hello")
            if message.instance != self._owner.instance:
                raise wire.ProtocolError(f"hello from another instance, {message.instance}")
            self.hello = message
            self.assigned = message.attempt
            self._seq = message.answered
        elif self.hello is None:
            raise wire.ProtocolError(f"{type(message).__name__.lower()} before hello")
        elif not self.assigned and not isinstance(message, _WITHOUT_TASK):
            raise wire.ProtocolError(f"{type(message).__name__.lower()} without a task")
        elif isinstance(message, model.Accepted) and message.attempt != self.assigned:
            raise wire.ProtocolError(f"accepted attempt {message.attempt}, not {self.assigned}")
        elif isinstance(message, model.Durable):
            if message.seq != self._seq + 1:
                raise wire.ProtocolError(f"seq {message.seq} after {self._seq}")
            self._seq += 1
