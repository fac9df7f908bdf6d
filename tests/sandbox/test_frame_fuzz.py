"""Fuzz of whatever reads a child's bytes: the frame parser, the JSON parser, logs, results.

Only three things may come of any bytes: frames, values, or ProtocolError; whatever the pieces they
come in, and never more memory than one frame. The last test sends such bytes from a real child.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
import tracemalloc

import pytest
from attacks.results import CHANNEL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import Call, Ending, Limits, wire
from sandbox.ending import checked_result
from sandbox.logs import Logs

_TOKEN = b"12345678"
_LIMIT = 200
_UNHURRIED = settings(max_examples=150, deadline=None)
_KINDS = st.sampled_from([b"Q", b"C", b"L", b"R", b"X", b"Y", b"U", b"\0", b"\xff"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
# What begins like a frame, and what does not; and texts that begin like JSON.
_FRAMES = st.lists(
    st.builds(
        wire.frame, _KINDS, st.binary(min_size=8, max_size=8), st.binary(max_size=_LIMIT + 20)
    )
    | st.builds(lambda n, rest: struct.pack("!I", n) + rest, st.integers(0, 60), st.binary())
    | st.binary(max_size=30),
    max_size=6,
).map(b"".join)
_TEXTS = (
    _JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60)
    | st.text('[]{}:,"\\0123.eE+-truefalsnNaIity \u2028\U0001f412', max_size=60).map(str.encode)
    | st.integers(1, 400).map(lambda n: b"[" * n + b"]" * n)
    | st.integers(1, 6000).map(lambda n: b"9" * n)
)


def _read(pieces: list[bytes]) -> tuple[list[wire.Frame], str]:
    """The frames until the first error, and its name."""
    reader, frames = wire.FrameReader(_LIMIT), []
    for piece in pieces:
        try:
            frames += reader.feed(piece)
        except wire.ProtocolError as exc:
            return frames, type(exc).__name__
    return frames, "" if reader.is_empty else "rest"


def _reference(data: bytes) -> tuple[list[wire.Frame], str]:
    """The same by the description of a frame, from the whole stream at once."""
    frames = []
    while len(data) >= 4:
        length = int.from_bytes(data[:4])
        if length > _LIMIT + 9:
            return frames, "TooLarge"
        if length < 9:
            return frames, "ProtocolError"
        if len(data) < 4 + length:
            break
        body, data = data[4 : 4 + length], data[4 + length :]
        frames.append(wire.Frame(body[:1], body[1:9], body[9:]))
    return frames, "rest" if data else ""


@_UNHURRIED
@given(data=_FRAMES, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_frames_do_not_depend_on_the_pieces_they_come_in(data, cuts):
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    wanted, error = _reference(data)
    got, said = _read(pieces)
    # An error in a piece hides the frames before it in the same piece: the execution is over.
    assert said == error
    assert got == wanted[: len(got)]
    if not error or error == "rest":
        assert got == wanted
    assert _read([data[n : n + 1] for n in range(len(data))]) == (wanted, error)


@_UNHURRIED
@given(payload=st.binary(max_size=_LIMIT), kind=_KINDS, token=st.binary(min_size=8, max_size=8))
def test_a_frame_is_read_as_it_was_written(payload, kind, token):
    assert _read([wire.frame(kind, token, payload)]) == ([(kind, token, payload)], "")


@_UNHURRIED
@given(length=st.integers(0, 2**32 - 1))
def test_a_reader_says_how_much_it_waits_for_and_keeps_no_more(length):
    reader = wire.FrameReader(_LIMIT)
    try:
        assert reader.feed(struct.pack("!I", length)) == []
    except wire.ProtocolError:
        assert not 9 <= length <= _LIMIT + 9
    else:
        assert reader.missing == length


def test_a_frame_that_never_ends_costs_no_more_than_its_limit():
    tracemalloc.start()
    try:
        reader = wire.FrameReader(100_000)
        reader.feed(struct.pack("!I", 100_009))
        for _ in range(100_008):
            reader.feed(b"x")
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400_000


@_UNHURRIED
@given(text=_TEXTS)
def test_what_is_decoded_is_plain_and_can_be_encoded_again(text):
    try:
        value = wire.decode(text)
    except wire.ProtocolError:
        return
    assert wire.decode(wire.encode(value)) == value
    assert value == json.loads(text)
    level = [value]
    while level:
        assert all(type(one) in (dict, list, str, int, float, bool, type(None)) for one in level), (
            value
        )
        assert all(math.isfinite(one) for one in level if type(one) is float)
        level = [
            inner
            for one in level
            if type(one) in (dict, list)
            for inner in (one.values() if type(one) is dict else one)
        ]


@_UNHURRIED
@given(value=_JSON)
def test_every_json_value_passes(value):
    assert wire.decode(wire.encode(value)) == value
    assert wire.decode(json.dumps(value).encode()) == value


_NAMES = ("outcome output next updates emitted error wait code message retryable details "
          "durationMs until event filter reason").split()  # fmt: skip
_VALUES = _JSON | st.sampled_from(["success", "failure", "wait", "2026-01-01T00:00:00Z"])
_OBJECTS = st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=8)
_RESULTS = st.dictionaries(
    st.sampled_from(_NAMES),
    _VALUES | _OBJECTS | st.lists(st.lists(_VALUES, max_size=3)),
    max_size=8,
)


@_UNHURRIED
@given(value=_RESULTS | _VALUES, outcome=st.sampled_from(["success", "failure", "wait"]))
def test_a_result_has_the_agreed_shape_or_is_none(value, outcome):
    if isinstance(value, dict):
        value = {**value, "outcome": outcome}
    try:
        result = checked_result(value)
    except wire.ProtocolError:
        return
    assert result["outcome"] in ("success", "failure", "wait")
    assert type(result["updates"]) is dict
    assert all(type(name) is str for name, _data in result["emitted"])
    if outcome == "failure":
        assert type(result["error"]["code"]) is str
        assert type(result["error"]["retryable"]) is bool
    if outcome == "wait":
        assert type(result["wait"]) is dict


_LINES = st.fixed_dictionaries(
    {"stream": st.sampled_from(["stdout", "stderr", "log", "daemon", 3])},
    optional={
        "level": st.sampled_from(["info", "error", "fatal", None, 1]),
        "message": st.text(st.characters(exclude_categories=["Cs"])) | _JSON,
        "fields": _JSON,
    },
)


@_UNHURRIED
@given(
    sent=st.lists(
        st.tuples(st.just("frame"), _LINES.map(lambda v: json.dumps(v).encode()) | _TEXTS)
        | st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=100)),
        max_size=20,
    ),
    kept_bytes=st.integers(0, 2000),
)
def test_logs_keep_lines_of_the_agreed_shape_within_their_limit(sent, kept_bytes):
    logs = Logs(kept_bytes, 1000, None)
    for where, data in sent:
        if where == "frame":
            try:
                logs.on_frame(data)
            except wire.ProtocolError:
                break
        else:
            logs.on_output(where, data)
    lines = logs.finished()
    for line in lines:
        assert line.stream in ("stdout", "stderr", "log")
        assert (line.level is None) == (line.stream != "log")
        assert type(line.message) is str
        assert type(line.fields) is dict
    # The line that says that it was cut comes on top.
    assert sum(len(line.message) + 100 for line in lines[:-1]) <= kept_bytes


_SEND = f"""{CHANNEL}
import base64
def handle(input, ctx):
    data = base64.b64decode(input).replace(b"{_TOKEN.decode()}", channel()._token)
    send(data)
    return "own"
"""


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="session")
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(
        st.tuples(_KINDS, st.sampled_from([_TOKEN, bytes(8), b"wrong!!!"]), _TEXTS), max_size=4
    ),
    tail=st.binary(max_size=12),
)
async def test_whatever_a_child_sends_the_pool_answers_for_itself(pool, package, kinds, tail):
    data = b"".join(wire.frame(*one) for one in kinds) + tail
    call = Call(package(_SEND), input=base64.b64encode(data).decode(), limits=Limits(wall_ms=1000))
    servers = pool.server_pids
    reply = await pool.run(call)
    assert reply.ending in (Ending.RESULT, Ending.PROTOCOL, Ending.OUTPUT, Ending.CRASH,
                            Ending.MEMORY, Ending.TIMEOUT), reply  # fmt: skip
    assert set(servers) <= set(pool.server_pids)
    assert "\n" not in reply.message
