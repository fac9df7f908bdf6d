"""Frames between the pool and a child: bytes in, frames out, no I/O.

A frame is `length (4 bytes, big endian) kind (1) token (8) JSON text (UTF-8)`; the length counts
what follows it. The token is random per execution: stray bytes on the channel are not a frame.
What a child sends is bytes from a stranger: size is checked before anything is kept, and
NaN, infinities, lone surrogates, invalid UTF-8 and nesting beyond 200 are refused.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from typing import Any, NamedTuple

__all__ = [
    "CONTEXT",
    "DEPTH_MAX",
    "EMITS_MAX",
    "ENDED",
    "FORKED",
    "LINE_COST_BYTES",
    "LISTENER",
    "LOG",
    "MESSAGE_MAX_BYTES",
    "PREPARE",
    "PROBLEM",
    "PROFILES",
    "READY",
    "REQUEST",
    "RESULT",
    "SPAWN",
    "TAKE",
    "TOKEN_BYTES",
    "UNCONFINED",
    "Frame",
    "FrameReader",
    "ProtocolError",
    "TooLarge",
    "check",
    "decode",
    "encode",
    "encode_plain",
    "frame",
    "unconfined",
]

# Kinds. From the pool: the request, the context when asked. From the child: an empty CONTEXT asks.
REQUEST, CONTEXT, LOG, RESULT, PROBLEM = b"Q", b"C", b"L", b"R", b"X"
# From the pool, before any request: what will be called, and whether to import it already.
PREPARE = b"P"
# Before any request, with a token of zeros: the child is ready; why it could not be confined.
READY, UNCONFINED = b"Y", b"U"
# Before these, where refused system calls are counted: with the descriptor that tells them.
LISTENER = b"N"

TOKEN_BYTES = 8
LINE_COST_BYTES = 100  # an empty log line that is kept costs memory, a row and a wake-up too
EMITS_MAX = 1000  # each is a row and a wake-up
DEPTH_MAX = 200  # as deep as the daemon's own JSON parser goes

# Messages between the pool and a fork server; both are ours and trusted.
MESSAGE_MAX_BYTES = 64 * 1024
PROFILES = ("python", "python+network", "node", "node+network")
SPAWN = struct.Struct("=cIBH")  # b"S", number, index of the profile, heap in MiB (node)
FORKED = struct.Struct("=cI")  # b"F", number; with channel, stdout, stderr and pidfd
# b"E", number, wait status, CPU in microseconds, peak in KiB
ENDED = struct.Struct("=cIiQQ")
# b"T", number, memory bytes, cpu seconds, open files, threads, temp bytes, cores; the path, a zero
# byte
TAKE = struct.Struct("=cIQIIIQB")

_LENGTH = struct.Struct("!I")
_HEADER_BYTES = 1 + TOKEN_BYTES
# One level down or up, as signed bytes.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})


class ProtocolError(Exception):
    """The peer sent what is not a frame of ours; the message says what, in one line."""


class TooLarge(ProtocolError):
    """A frame announces more bytes than allowed."""


class Frame(NamedTuple):
    """One frame as received; `payload` is not parsed yet."""

    kind: bytes
    token: bytes
    payload: bytes


class FrameReader:
    """Cuts a stream into frames of at most `limit_bytes` of payload each."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes + _HEADER_BYTES
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether every byte fed belonged to a frame, and nobody called `spoil`."""
        return not self._buffer

    @property
    def missing(self) -> int:
        """How many bytes the frame that has begun still needs; 0 if that is not known."""
        if len(self._buffer) < _LENGTH.size:
            return 0
        (length,) = _LENGTH.unpack_from(self._buffer)
        return int(length) + _LENGTH.size - len(self._buffer)

    def spoil(self) -> None:
        """Something is wrong with this stream: it is never empty again."""
        self._buffer += b"!"

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes and return the frames they complete; raises TooLarge or ProtocolError.

        Never keeps more than one frame's worth of bytes beyond what was fed.
        """
        buffer = self._buffer
        if not buffer:  # mostly it is one whole frame: then there is nothing to keep
            frames, end = self._cut(data)
            if end < len(data):
                buffer += data[end:]
            return frames
        buffer += data
        frames, end = self._cut(buffer)
        del buffer[:end]
        return frames

    def _cut(self, data: bytes | bytearray) -> tuple[list[Frame], int]:
        """The whole frames that are at its beginning, and where they end."""
        frames = []
        start, size = 0, len(data)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > self._limit:
                self.spoil()
                raise TooLarge(f"a frame of {length} bytes where {self._limit} are allowed")
            if length < _HEADER_BYTES:
                self.spoil()
                raise ProtocolError(f"a frame of {length} bytes is too short to be one")
            end = start + _LENGTH.size + length
            if size < end:
                break
            body = bytes(data[start + _LENGTH.size : end])
            frames.append(Frame(body[:1], body[1:_HEADER_BYTES], body[_HEADER_BYTES:]))
            start = end
        return frames, start


def frame(kind: bytes, token: bytes, payload: bytes) -> bytes:
    """One frame as bytes."""
    return _LENGTH.pack(_HEADER_BYTES + len(payload)) + kind + token + payload


def unconfined(payload: bytes) -> tuple[str, str]:
    """The layer and the reason that an UNCONFINED frame names; raises ProtocolError."""
    said = decode(payload)
    if not isinstance(said, dict):
        raise ProtocolError("not a layer and a reason")
    return str(said.get("layer", ""))[:100], str(said.get("reason", ""))[:1000]


def encode(value: Any) -> bytes:
    """JSON text of a value; ValueError or TypeError, in words, for what JSON has no text for."""
    check(value)
    return encode_plain(value)


def encode_plain(value: Any) -> bytes:
    """The same of a value whose keys are known to be text, and which is known to be shallow."""
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise ValueError("a text with a lone surrogate has no UTF-8 form") from None


def check(value: Any) -> None:
    """Refuse what json.dumps would quietly change (keys that are not text) or cannot end.

    Raises TypeError or ValueError, in words; what else JSON has no text for is left to `encode`.
    """
    level = [value]
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise ValueError(f"it is nested deeper than {DEPTH_MAX} or contains itself")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if not _TEXT.issuperset(map(type, item)):
                    _check_keys(item)
                inner += item.values()
            elif isinstance(item, (list, tuple)):
                inner += item
        # Most levels hold nothing but these, which this says ten times faster than the next line.
        if _SCALARS.issuperset(map(type, inner)):
            return
        level = [item for item in inner if isinstance(item, (dict, list, tuple))]


def decode(payload: bytes) -> Any:
    """The value of JSON text from a stranger; raises ProtocolError."""
    try:
        value = _DECODER.decode(payload.decode())
    except RecursionError:
        raise ProtocolError(f"JSON nested deeper than {DEPTH_MAX}") from None
    except ValueError as exc:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ProtocolError(f"not JSON: {str(exc)[:200]}") from None
    # Without that many brackets it cannot be that deep: counting is 100 times faster.
    if payload.count(b"[") + payload.count(b"{") > DEPTH_MAX and _depth(payload) > DEPTH_MAX:
        raise ProtocolError(f"JSON nested deeper than {DEPTH_MAX}")
    if b"\\u" in payload:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ProtocolError("not JSON: a lone surrogate") from None
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the range of a number")
    return value


# Made once: json.loads and json.dumps make one for each call that has options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _depth(payload: bytes) -> int:
    """How deep valid JSON text nests, from its brackets: no Python code for each value."""
    unescaped = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_strings = b"".join(unescaped.split(b'"')[::2])
    steps = outside_strings.translate(_STEPS, _NOT_BRACKETS)
    return max(itertools.accumulate(memoryview(steps).cast("b")), default=0)


def _check_keys(item: dict[Any, Any]) -> None:
    for key in item:
        if not isinstance(key, str):
            raise TypeError(f"keys must be text, not {type(key).__name__}")
