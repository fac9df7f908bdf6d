"""What the caller and the sandbox host say to each other: bytes in, messages out, no I/O.

A message is `length (4 bytes, big endian) kind (1) number (4) payload`; the length counts the
payload. The number tells calls, terms and questions apart. A handler's input and result are JSON
text in the payload as it is: only its own side parses it. What comes from the host is held to the
shapes here (ProtocolError) and to the limits of its call, for the host reads strangers' bytes;
what comes from the caller is trusted.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from sandbox import wire
from sandbox.ending import checked_result
from sandbox.model import (
    ALL_LAYERS,
    MIB,
    OUTPUT_MAX_BYTES,
    AskContext,
    Call,
    Contact,
    Denial,
    Egress,
    Ending,
    JsonText,
    Layer,
    Limits,
    LogLine,
    Policy,
    PoolSettings,
    Reply,
    Reuse,
    Traffic,
    Usage,
)
from sandbox.wire import ProtocolError

__all__ = [
    "CALL",
    "CANCEL",
    "CONTEXT",
    "FAILED",
    "FROM_HOST_MAX_BYTES",
    "LOGS",
    "NO_STATISTICS",
    "READY",
    "REPLY",
    "SETTINGS",
    "STATISTICS",
    "TERMS",
    "TERMS_MAX",
    "TO_HOST_MAX_BYTES",
    "Message",
    "Reader",
    "call_of",
    "call_parts",
    "failure_of",
    "failure_text",
    "layers_of",
    "layers_text",
    "lines_of",
    "lines_text",
    "message",
    "reply_of",
    "reply_parts",
    "settings_of",
    "settings_text",
    "statistics_of",
    "statistics_text",
    "terms_of",
    "terms_text",
]

# From the caller: the settings, once and first; terms under a number, which may be given anew;
# a call on terms; the context that was asked for; a call that is not wanted any more.
SETTINGS, TERMS, CALL, CANCEL = b"S", b"T", b"C", b"X"
# From the host: the pool has started; it cannot, or a call has met a bug; log lines; how it ended.
READY, FAILED, LOGS, REPLY = b"Y", b"F", b"L", b"R"
# Both ways, empty when it is a question: a call's context (the host's), statistics (the caller's).
CONTEXT, STATISTICS = b"K", b"N"

TERMS_MAX = 1024  # packages in use at a time, about; who is number 1025 takes the first's place
# The largest result, or as much of a log.
FROM_HOST_MAX_BYTES = OUTPUT_MAX_BYTES + 16 * MIB
TO_HOST_MAX_BYTES = 1024 * MIB  # the most that a context may be set to hold

_HEAD = struct.Struct("!IcI")
_CALL = struct.Struct("!III")  # number of the terms, length of the head, length of the input
# Ending, whether there is a result, wall ms, CPU ms, peak bytes, length of the rest
_REPLY = struct.Struct("!B?QQQI")
_ENDINGS = tuple(Ending)
_INDEX = {ending: index for index, ending in enumerate(_ENDINGS)}
_STREAMS, _LEVELS = ("stdout", "stderr", "log"), (None, "debug", "info", "warning", "error")
_COUNTS = ("slots", "busy", "waiting", "servers", "kept", "started", "reused", "crashed")
# Of a host that is not there.
NO_STATISTICS: Mapping[str, Any] = {**dict.fromkeys(_COUNTS, 0), "spares": {}}
_FAILURE_MAX_BYTES = 16 * 1024


class Message(NamedTuple):
    """One message as received; `payload` is not parsed yet."""

    kind: bytes
    number: int
    payload: bytes


class Reader:
    """Cuts a stream into messages of at most `limit_bytes` of payload each."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Take bytes and return the messages they complete; raises ProtocolError."""
        buffer = self._buffer
        buffer += data
        found = []
        start, size = 0, len(buffer)
        while size - start >= _HEAD.size:
            length, kind, number = _HEAD.unpack_from(buffer, start)
            if length > self._limit:
                raise ProtocolError(f"a message of {length} bytes")
            end = start + _HEAD.size + length
            if size < end:
                break
            found.append(Message(kind, number, bytes(buffer[start + _HEAD.size : end])))
            start = end
        del buffer[:start]
        return found


def message(kind: bytes, number: int, *parts: bytes) -> bytes:
    """One message as bytes."""
    return b"".join((_HEAD.pack(sum(map(len, parts)), kind, number), *parts))


# --- from the caller --------------------------------------------------------------------------


def settings_text(settings: PoolSettings) -> bytes:
    """Settings as JSON."""
    return to_json(dataclasses.asdict(settings))


def settings_of(payload: bytes) -> PoolSettings:
    """The settings that `settings_text` was given."""
    said = from_json(payload)
    said["ports"] = tuple(said["ports"])
    said["required_layers"] = frozenset(said["required_layers"])
    said["without"] = frozenset(said["without"])
    said["kinds"] = None if said["kinds"] is None else tuple(said["kinds"])
    return PoolSettings(**said)


def terms_text(call: Call) -> bytes:
    """What is the same for many calls, as JSON."""
    return to_json(
        {
            "package_dir": call.package_dir,
            "entrypoint": call.entrypoint,
            "runtime": call.runtime,
            "tenant_id": call.tenant_id,
            "limits": dataclasses.asdict(call.limits),
            "policy": dataclasses.asdict(call.policy),
            "reuse": None if call.reuse is None else dataclasses.asdict(call.reuse),
            "preload": call.preload,
        }
    )


def terms_of(payload: bytes) -> Call:
    """A call that has the terms and nothing else."""
    said = from_json(payload)
    policy, reuse = said["policy"], said["reuse"]
    network = policy["network"]
    if network is not None:
        for name in ("allow", "deny", "private"):
            network[name] = None if network[name] is None else tuple(network[name])
        policy["network"] = Egress(**network)
    policy["required"] = frozenset(policy["required"])
    said["policy"] = Policy(**policy)
    said["limits"] = Limits(**said["limits"])
    said["reuse"] = None if reuse is None else Reuse(**reuse)
    return Call(**said)


def call_parts(call: Call, terms: int) -> tuple[bytes, ...]:
    """A call without its context; ValueError or TypeError, in words that quote nothing of it, for
    what JSON has no text for."""
    head = [
        *(call.execution_id, call.flow_id, call.step_id, call.attempt, call.task_id),
        *(call.has_input, dict(call.secrets)),
    ]
    text = wire.encode_plain(head)
    given, config = _text(call.input), _text(call.config)
    if len(text) + len(given) + len(config) > TO_HOST_MAX_BYTES - _CALL.size:
        raise ValueError("it is too large")
    return _CALL.pack(terms, len(text), len(given)), text, given, config


def call_of(payload: bytes, terms: Mapping[int, Call], context: AskContext) -> Call:
    """The call that `call_parts` was given, on its terms."""
    number, head_size, input_size = _CALL.unpack_from(payload)
    input_at = _CALL.size + head_size
    config_at = input_at + input_size
    execution, flow, step, attempt, task, has_input, secrets = from_json(
        payload[_CALL.size : input_at]
    )
    base = terms[number]
    return Call(
        package_dir=base.package_dir,
        entrypoint=base.entrypoint,
        runtime=base.runtime,
        input=JsonText(payload[input_at:config_at]),
        has_input=has_input,
        config=JsonText(payload[config_at:]),
        context=context,
        secrets=secrets,
        execution_id=execution,
        flow_id=flow,
        step_id=step,
        attempt=attempt,
        tenant_id=base.tenant_id,
        task_id=task,
        limits=base.limits,
        policy=base.policy,
        reuse=base.reuse,
        preload=base.preload,
    )


def _text(value: Any) -> bytes:
    return value if isinstance(value, JsonText) else wire.encode(value)


# --- from the host ----------------------------------------------------------------------------


def layers_text(layers: Iterable[Layer]) -> bytes:
    """Layers as JSON."""
    return to_json([[one.name, one.available, one.required, _clean(one.detail)] for one in layers])


def layers_of(payload: bytes) -> list[Layer]:
    """Layers that the host has found; raises ProtocolError."""
    layers = [Layer(*_row(one, str, bool, bool, str)) for one in _list(wire.decode(payload))]
    if any(layer.name not in ALL_LAYERS for layer in layers):
        raise ProtocolError("an unknown layer")
    return layers


def failure_text(reason: str) -> bytes:
    """Why the host cannot, in one line."""
    return _clean(reason).encode()[:_FAILURE_MAX_BYTES]


def failure_of(payload: bytes) -> str:
    """The same as text."""
    return payload[:_FAILURE_MAX_BYTES].decode(errors="replace")


def statistics_text(statistics: Mapping[str, Any]) -> bytes:
    """`Pool.statistics` as JSON."""
    return to_json(statistics)


def statistics_of(payload: bytes) -> dict[str, Any]:
    """`Pool.statistics` of the host's pool; raises ProtocolError."""
    said = wire.decode(payload)
    if not isinstance(said, dict) or said.keys() != {*_COUNTS, "spares"}:
        raise ProtocolError("not statistics")
    _row([said[name] for name in _COUNTS], *[int] * len(_COUNTS))
    if not isinstance(said["spares"], dict):
        raise ProtocolError("not statistics")
    _row(list(said["spares"].values()), *[int] * len(said["spares"]))
    return said


def lines_text(lines: Iterable[LogLine]) -> bytes:
    """Log lines as JSON."""
    return to_json(
        [[one.at_ms, one.stream, one.level, one.message, one.fields or {}] for one in lines]
    )


def lines_of(payload: bytes) -> list[LogLine]:
    """Log lines of one call; raises ProtocolError."""
    lines = []
    for one in _list(wire.decode(payload)):
        at_ms, stream, level, text, fields = _row(one, int, str, object, str, dict)
        if stream not in _STREAMS or level not in _LEVELS:
            raise ProtocolError("not a log line")
        lines.append(LogLine(at_ms, stream, text, level, fields))
    return lines


def reply_parts(reply: Reply) -> tuple[bytes, ...]:
    """A reply without its log lines, which went ahead."""
    rest = b""
    if reply.message or reply.traffic is not None:
        rest = to_json([_clean(reply.message), _traffic_rows(reply.traffic)])
    usage, has_result = reply.usage, reply.result is not None
    numbers = (usage.wall_ms, usage.cpu_ms, usage.peak_memory_bytes)
    head = _REPLY.pack(_INDEX[reply.ending], has_result, *numbers, len(rest))
    return head, rest, reply.text


def reply_of(payload: bytes, limits: Limits, lines: list[LogLine]) -> Reply:
    """The reply to a call with these limits, whose log lines have come; raises ProtocolError."""
    try:
        index, has_result, wall_ms, cpu_ms, peak, size = _REPLY.unpack_from(payload)
        ending = _ENDINGS[index]
    except (struct.error, IndexError):
        raise ProtocolError("not a reply") from None
    if max(wall_ms, cpu_ms, peak) >= 2**63 or has_result != (ending is Ending.RESULT):
        raise ProtocolError("a reply that cannot be")
    said, traffic, result = "", None, None
    rest, text = payload[_REPLY.size : _REPLY.size + size], payload[_REPLY.size + size :]
    if rest:
        said, rows = _row(wire.decode(rest), str, object)
        traffic = None if rows is None else _traffic_of(rows)
    if has_result:
        if len(text) > limits.output_bytes:
            raise ProtocolError(f"a result of {len(text)} bytes")
        result = checked_result(wire.decode(text))
    usage = Usage(wall_ms, cpu_ms, peak)
    return Reply(ending, result, said, tuple(lines), usage, traffic, text=text)


def _traffic_rows(traffic: Traffic | None) -> list[Any] | None:
    if traffic is None:
        return None
    contacts = [
        [
            *(_clean(one.host), one.address, one.port),
            *(one.connections, one.sent_bytes, one.received_bytes),
        ]
        for one in traffic.contacts
    ]
    denials = [[_clean(one.target), _clean(one.reason), one.count] for one in traffic.denials]
    totals = (traffic.dns_queries, traffic.sent_bytes, traffic.received_bytes)
    return [contacts, denials, *totals]


def _traffic_of(rows: Any) -> Traffic:
    contacts, denials, *totals = _row(rows, list, list, int, int, int)
    return Traffic(
        tuple(Contact(*_row(one, str, str, int, int, int, int)) for one in contacts),
        tuple(Denial(*_row(one, str, str, int)) for one in denials),
        *totals,
    )


def _row(value: Any, *kinds: type) -> list[Any]:
    """A list of values of these kinds, whole numbers not negative and of 63 bits at most."""
    if not isinstance(value, list) or len(value) != len(kinds):
        raise ProtocolError("not a row")
    for one, kind in zip(value, kinds, strict=True):
        if kind is int:
            if type(one) is not int or not 0 <= one < 2**63:
                raise ProtocolError("not a number")
        elif not isinstance(one, kind):
            raise ProtocolError(f"not {kind.__name__}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError("not a list")
    return value


def _clean(text: str) -> str:
    """Names that a handler chose, and paths, may hold what UTF-8 cannot."""
    return text.encode(errors="replace").decode()
