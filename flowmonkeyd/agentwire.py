"""What an agent in a container says, from bytes to messages: pure, no I/O.

The protocol (version 1): a frame is `length (4 bytes, big endian) kind (1) body`; the length counts
what follows it. Kind `J` is one JSON object with a "type", kind `B` is a piece of the blob that the
J frame before it announced: a blob of n bytes is ceil(n / 1 MiB) B frames, all full but the last,
and no other frame comes between them. Agents are strangers: sizes are checked before anything is
kept, every key of every message has to be there and of its kind, unknown ones are refused, and of
a blob no more is ever held than the bytes just fed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from flowmonkeyd.agentmodel import (
    Accepted,
    AskedContext,
    BlobHead,
    Checkpoint,
    Clear,
    Extend,
    Heartbeat,
    Hello,
    Load,
    LogLine,
    Message,
    Part,
    Pause,
    Pong,
    Prepared,
    Progress,
    Refusal,
    Result,
)
from sandbox.wire import ProtocolError, decode, encode

__all__ = [
    "JSON_MAX_BYTES",
    "PART_BYTES",
    "PROTOCOL",
    "ProtocolError",
    "Reader",
    "frames",
    "part_frame",
]

PROTOCOL = 1
JSON_MAX_BYTES = 1024 * 1024 + 64 * 1024  # an output of 1 MiB and what is around it
PART_BYTES = 1024 * 1024
_HEAD = struct.Struct("!IB")
_JSON, _BLOB = ord("J"), ord("B")
_NAME_MAX = 200
_MESSAGE_MAX = 64 * 1024  # of a log line or a progress; the agents stay below 17 KiB
_INT_MAX = 2**53
_LEVELS = ("debug", "info", "warning", "error")


def frames(message: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """A message of ours, with its blob, as bytes. What we say has no limit: it was checked when it
    came in, an input may be a whole context."""
    body = encode(message)
    pieces = [_HEAD.pack(1 + len(body), _JSON), body]
    for start in range(0, len(blob), PART_BYTES):
        pieces.append(part_frame(blob[start : start + PART_BYTES]))
    return b"".join(pieces)


def part_frame(part: bytes) -> bytes:
    """A piece of a blob as bytes: PART_BYTES of it, or the last ones."""
    return _HEAD.pack(1 + len(part), _BLOB) + part


class Reader:
    """Makes messages of an agent's bytes, in whatever pieces they come."""

    def __init__(self, blob_max_bytes: int) -> None:
        """`blob_max_bytes`: no bigger blob can be announced; may be changed at any time."""
        self.blob_max_bytes = blob_max_bytes
        self.message_bytes = 0  # of all J frames so far
        self._buffer = bytearray()
        self._blob_left = 0  # of the announced blob
        self._part_left = 0  # of the B frame that has begun

    def feed(self, data: bytes) -> list[Message | Part]:
        """Take bytes and return what they complete. Raises ProtocolError, and is of no use then.

        Never keeps more than one J frame beyond what was fed.
        """
        self._buffer += data
        found: list[Message | Part] = []
        while (one := self._next()) is not None:
            found.append(one)
        return found

    def _next(self) -> Message | Part | None:
        buffer = self._buffer
        if not self._part_left:
            if len(buffer) < _HEAD.size:
                return None
            length, kind = _HEAD.unpack_from(buffer)
            size = length - 1
            if self._blob_left:
                self._begin_part(size, kind)
            elif kind != _JSON:
                raise ProtocolError(f"a frame of kind {kind} where a message was expected")
            elif not 0 <= size <= JSON_MAX_BYTES:
                raise ProtocolError(f"a message of {size} bytes, {JSON_MAX_BYTES} are allowed")
            else:
                return self._whole_message(size)
        if not buffer:
            return None
        piece = bytes(buffer[: self._part_left])
        del buffer[: self._part_left]
        self._part_left -= len(piece)
        self._blob_left -= len(piece)
        return Part(piece)

    def _begin_part(self, size: int, kind: int) -> None:
        expected = min(self._blob_left, PART_BYTES)
        if kind != _BLOB or size != expected:
            raise ProtocolError(f"expected {expected} bytes of a blob, got {size} of kind {kind}")
        del self._buffer[: _HEAD.size]
        self._part_left = size

    def _whole_message(self, size: int) -> Message | None:
        end = _HEAD.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEAD.size : end])
        del self._buffer[:end]
        self.message_bytes += end
        message = _message(decode(body))
        blob = getattr(message, "blob", None)
        if blob is not None:
            if blob.size > self.blob_max_bytes:
                limit = self.blob_max_bytes
                raise ProtocolError(f"a blob of {blob.size} bytes, {limit} are allowed")
            self._blob_left = blob.size
        return message


Check = Callable[[Any], Any]


def _int(low: int, high: int = _INT_MAX) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return check


def _text(longest: int, shortest: int = 0) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not shortest <= len(value) <= longest:
            raise ValueError(f"must be a text of {shortest} to {longest} characters")
        return value

    return check


def _one_of(*words: str | None) -> Check:
    def check(value: Any) -> Any:
        if (value is not None and not isinstance(value, str)) or value not in words:
            raise ValueError(f"must be one of {', '.join(str(one) for one in words)}")
        return value

    return check


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _percent(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError("must be a number from 0 to 100")
    return float(value)


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("must be a SHA-256 in hex")
    return value


_SEQ = _int(1)
_NAME = _text(_NAME_MAX, 1)
_BLOB_KEYS: Mapping[str, Check] = {
    "size": _int(0),
    "encoding": _one_of("json", "bytes"),
    "compression": _one_of("none", "zlib"),
    "sha256": _sha256,
}


def _checkpoint(seq: int, name: str, settled: bool, **blob: Any) -> Checkpoint:
    return Checkpoint(seq, name, BlobHead(**blob), settled)


def _pause(checkpoint: dict[str, Any] | None, **rest: Any) -> Pause:
    if checkpoint is None:
        return Pause(name=None, blob=None, **rest)
    found = _checked("pause.checkpoint", checkpoint, {"name": _NAME, **_BLOB_KEYS})
    return Pause(name=found.pop("name"), blob=BlobHead(**found), **rest)


def _log(stream: str, level: str | None, **rest: Any) -> LogLine:
    if (stream == "log") is (level is None):
        raise ProtocolError("log.level: only and every line of the stream log has one")
    return LogLine(stream=stream, level=level, **rest)


def _result(answer: Any, seq: int) -> Result:
    if answer.get("outcome") != "problem":
        return Result(seq, answer)
    keys = {"outcome": _text(20), "ending": _one_of("memory", "output", "protocol")}
    found = _checked("result.answer", answer, {**keys, "message": _text(_MESSAGE_MAX)})
    return Result(seq, None, found["ending"], found["message"])


# type: what is made of it, and its keys besides "type", each with its check
_SCHEMAS: Mapping[str, tuple[Callable[..., Message], Mapping[str, Check]]] = {
    "hello": (
        Hello,
        {
            "protocol": _int(PROTOCOL, PROTOCOL),
            "instance": _text(64, 1),
            "attempt": _int(0),
            "runtime": _text(_NAME_MAX),
            "state": _one_of("idle", "running", "paused"),
            "answered": _int(0),
        },
    ),
    "prepared": (Prepared, {}),
    "problem": (Refusal, {"message": _text(_MESSAGE_MAX)}),
    "accepted": (Accepted, {"attempt": _int(1)}),
    "heartbeat": (Heartbeat, {}),
    "progress": (
        Progress,
        {
            "percent": _percent,
            "message": _or_none(_text(_MESSAGE_MAX)),
            "etaMs": _or_none(_int(0)),
        },
    ),
    "log": (
        _log,
        {
            "atMs": _int(0),
            "stream": _one_of("log", "stdout", "stderr"),
            "level": _one_of(None, *_LEVELS),
            "message": _text(_MESSAGE_MAX),
            "fields": _or_none(_object),
        },
    ),
    "checkpoint": (_checkpoint, {"seq": _SEQ, "name": _NAME, "settled": _bool, **_BLOB_KEYS}),
    "clear": (Clear, {"seq": _SEQ, "name": _or_none(_NAME)}),
    "pause": (
        _pause,
        {
            "seq": _SEQ,
            "reason": _text(1000),
            "maxWaitMs": _or_none(_int(0)),
            "event": _or_none(_NAME),
            "filter": _or_none(_object),
            "checkpoint": _or_none(_object),
        },
    ),
    "extend": (Extend, {"seq": _SEQ, "ms": _int(1)}),
    "result": (_result, {"seq": _SEQ, "answer": _object}),
    "load": (Load, {"ask": _int(0), "name": _NAME}),
    "context": (AskedContext, {"ask": _int(0)}),
    "pong": (Pong, {"n": _int(0)}),
}
_SNAKE = {"atMs": "at_ms", "etaMs": "eta_ms", "maxWaitMs": "max_wait_ms"}


def _message(said: Any) -> Message:
    """The message that a JSON value is; raises ProtocolError for what is none."""
    kind = said.get("type") if isinstance(said, dict) else None
    if not isinstance(kind, str) or kind not in _SCHEMAS:
        raise ProtocolError(f"not a message: type {kind!r:.100}")
    del said["type"]
    make, schema = _SCHEMAS[kind]
    return make(**_checked(kind, said, schema))


def _checked(kind: str, said: dict[str, Any], schema: Mapping[str, Check]) -> dict[str, Any]:
    if said.keys() != schema.keys():
        wrong = sorted(said.keys() ^ schema.keys())[0]
        raise ProtocolError(f"{kind}.{wrong:.100}: {'unknown' if wrong in said else 'missing'}")
    found = {}
    for name, check in schema.items():
        try:
            found[_SNAKE.get(name, name)] = check(said[name])
        except ValueError as exc:
            raise ProtocolError(f"{kind}.{name} {exc}") from None
    return found
