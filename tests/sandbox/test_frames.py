"""The frame parser and the two pure judges: `classify` and `checked_result`."""

from __future__ import annotations

import contextlib
import json
import random
import signal

import pytest

from sandbox import Ending, wire
from sandbox.ending import Facts, checked_result, classify

_TOKEN = b"12345678"


def test_frames_survive_being_fed_a_byte_at_a_time():
    sent = [(wire.LOG, b"{}"), (wire.RESULT, b""), (wire.RESULT, b"x" * 300)]
    stream = b"".join(wire.frame(kind, _TOKEN, payload) for kind, payload in sent)
    reader = wire.FrameReader(300)
    got = [frame for byte in stream for frame in reader.feed(bytes([byte]))]
    assert got == [(kind, _TOKEN, payload) for kind, payload in sent]
    assert wire.FrameReader(300).feed(stream) == got


def test_size_is_checked_before_the_bytes_come():
    reader = wire.FrameReader(100)
    assert reader.feed(wire.frame(b"R", _TOKEN, b"x" * 100)[:-1]) == []
    with pytest.raises(wire.TooLarge):
        wire.FrameReader(100).feed(wire.frame(b"R", _TOKEN, b"x" * 101)[:4])


def test_random_bytes_are_frames_or_errors_and_nothing_else():
    chance = random.Random(20261123)
    for _ in range(300):
        data = chance.randbytes(chance.randrange(1, 60))
        if chance.random() < 0.5:
            data = bytes([0, 0, 0, chance.randrange(40)]) + data
        with contextlib.suppress(wire.ProtocolError):
            for frame in wire.FrameReader(64).feed(data):
                wire.decode(frame.payload)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"NaN", b"-Infinity", b"1e400", b"\xff", b'"\\ud800"', b"[" * 201 + b"]" * 201,
     b"[" * 10**6, b'{"a":' * 300 + b"1" + b"}" * 300, b"1" * 5000, b"[1] 2"],
)  # fmt: skip
def test_what_is_not_json_is_refused(text):
    with pytest.raises(wire.ProtocolError):
        wire.decode(text)


@pytest.mark.parametrize(
    "value", [None, {}, [], "ä\u2028\U0001f412", 2**80, -0.5, {"a": [1, {"b": None}]}, [[[]]] * 150]
)
def test_json_values_pass_both_ways(value):
    assert wire.decode(wire.encode(value)) == value


@pytest.mark.parametrize("text", ["]", "[[", '"[', "\\", '\\"]{', "\\\\"])
@pytest.mark.parametrize(("levels", "refused"), [(199, False), (200, True)])
def test_depth_counts_brackets_outside_of_strings(text, levels, refused):
    value = text
    for level in range(levels):
        value = {text: value} if level % 2 else [value, text]
    payload = json.dumps([value, [text] * 300]).encode()
    if refused:
        with pytest.raises(wire.ProtocolError, match="nested"):
            wire.decode(payload)
    else:
        assert wire.decode(payload)[0] == value


_SIGKILL, _SIGSEGV = int(signal.SIGKILL), int(signal.SIGSEGV)
_LIMITS = {"cpu_limit_ms": 1000, "memory_limit_bytes": 100, "wall_limit_ms": 50}


@pytest.mark.parametrize(
    ("ending", "facts"),
    [
        (Ending.TIMEOUT, Facts(cause=Ending.TIMEOUT, wait_status=_SIGKILL)),
        (Ending.MEMORY, Facts(cause=Ending.TIMEOUT, wait_status=_SIGKILL, over_memory=True)),
        (Ending.MEMORY, Facts(cause=Ending.MEMORY, wait_status=0)),
        (Ending.PROTOCOL, Facts(cause=Ending.PROTOCOL, wait_status=_SIGKILL, cpu_ms=2000)),
        (Ending.CPU, Facts(wait_status=_SIGKILL, cpu_ms=500)),
        (Ending.CPU, Facts(wait_status=int(signal.SIGXCPU), cpu_ms=1000)),
        (Ending.CRASH, Facts(wait_status=_SIGKILL, cpu_ms=499)),
        (Ending.CRASH, Facts(wait_status=0)),
        (Ending.CRASH, Facts(wait_status=7 << 8)),
        (Ending.CRASH, Facts(wait_status=_SIGSEGV, peak_memory_bytes=89)),
        (Ending.MEMORY, Facts(wait_status=_SIGSEGV, peak_memory_bytes=90)),
        (Ending.CRASH, Facts(wait_status=34)),
        (Ending.MEMORY, Facts(wait_status=_SIGKILL, peak_memory_bytes=90)),
        (Ending.CRASH, Facts(wait_status=_SIGSEGV, peak_memory_bytes=119, full_bytes=120)),
        (Ending.MEMORY, Facts(wait_status=_SIGSEGV, peak_memory_bytes=120, full_bytes=120)),
        (Ending.UNAVAILABLE, Facts(wait_status=None)),
    ],
)
def test_ending_follows_from_the_facts(ending, facts):
    facts = Facts(**{**{n: getattr(facts, n) for n in Facts.__dataclass_fields__}, **_LIMITS})
    assert classify(facts)[0] is ending


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, {"outcome": "success", "next": 3}, {"outcome": "success", "updates": []},
        {"outcome": "success", "emitted": [["a"]]}, {"outcome": "success", "emitted": [[1, 2]]},
        {"outcome": "failure"}, {"outcome": "failure", "error": {"code": 1}},
        {"outcome": "failure", "error": {"code": "A", "retryable": "no"}},
        {"outcome": "failure", "error": {"code": "A" * 201}},
        {"outcome": "wait"}, {"outcome": "wait", "wait": []},
        {"outcome": "wait", "wait": {"durationMs": -1}},
        {"outcome": "wait", "wait": {"durationMs": True}},
        {"outcome": "wait", "wait": {"durationMs": 1, "more": 2}},
        {"outcome": ["success"]},
    ],
)  # fmt: skip
def test_result_of_the_wrong_shape_is_refused(value):
    with pytest.raises(wire.ProtocolError):
        checked_result(value)
