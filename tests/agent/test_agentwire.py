"""What an agent says, from bytes: whatever they are and however they are cut."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmonkeyd import agentwire
from flowmonkeyd.agentmodel import Assignment, Part
from flowmonkeyd.agentwire import PART_BYTES, ProtocolError, Reader

BLOB_MAX = 3 * PART_BYTES
SHA = "0" * 64


def frame(body: bytes, kind: bytes = b"J") -> bytes:
    return struct.pack("!I", 1 + len(body)) + kind + body


def messages():
    blob = {"size": st.integers(0, 40), "encoding": st.sampled_from(["json", "bytes"])}
    blob |= {"compression": st.sampled_from(["none", "zlib"]), "sha256": st.just(SHA)}
    seq, name = st.integers(1, 9), st.text(min_size=1, max_size=9)
    # Hypothesis makes lone surrogates too, which no agent can send
    name = name.filter(lambda text: text.isprintable())
    shapes = {
        "heartbeat": {},
        "clear": {"seq": seq, "name": st.none() | name},
        "checkpoint": {"seq": seq, "name": name, "settled": st.booleans(), **blob},
        "pause": {
            "seq": seq,
            "reason": name,
            "maxWaitMs": st.none() | st.integers(0, 99),
            "event": st.none() | name,
            "filter": st.none() | st.dictionaries(name, st.integers()),
            "checkpoint": st.none() | st.fixed_dictionaries({"name": name, **blob}),
        },
        "progress": {
            "percent": st.floats(0, 100),
            "message": st.none() | name,
            "etaMs": st.none() | st.integers(0, 99),
        },
    }
    return st.one_of(
        [st.fixed_dictionaries({"type": st.just(kind), **shape}) for kind, shape in shapes.items()]
    )


def as_bytes(message: dict) -> bytes:
    size = message.get("size") or (message.get("checkpoint") or {}).get("size", 0)
    part = frame(bytes(size), b"B") if size else b""
    return frame(json.dumps(message).encode()) + part


def read(data: bytes, cuts: list[int]) -> list:
    """What comes of it in these pieces, the parts of a blob as one."""
    reader, found = Reader(BLOB_MAX), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        for one in reader.feed(data[begin:end]):
            if isinstance(one, Part) and found and isinstance(found[-1], bytes):
                found[-1] += one.data
            else:
                found.append(one.data if isinstance(one, Part) else one)
    return found


@pytest.mark.slow
@given(st.lists(messages(), max_size=6), st.lists(st.integers(0, 3000), max_size=8))
def test_messages_are_the_same_however_they_are_cut(said, cuts):
    data = b"".join(as_bytes(one) for one in said)
    whole = read(data, [])
    assert read(data, cuts) == whole
    assert read(data, list(range(len(data)))) == whole
    assert len([one for one in whole if not isinstance(one, bytes)]) == len(said)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_messages_or_a_protocol_error(data, cuts):
    with contextlib.suppress(ProtocolError):
        read(data, cuts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KINDS = st.sampled_from(sorted(agentwire._SCHEMAS))


@pytest.mark.slow
@given(KINDS, st.dictionaries(st.text(max_size=9), JSON, max_size=4), st.data())
@settings(max_examples=300)
def test_any_values_are_messages_or_a_protocol_error(kind, more, data):
    keys = agentwire._SCHEMAS[kind][1]
    values = {name: data.draw(JSON, label=name) for name in keys}
    body = json.dumps({**values, **more, "type": kind}).encode()
    with contextlib.suppress(ProtocolError):
        read(frame(body), [])


def test_a_blob_comes_in_pieces_and_none_of_it_is_kept():
    reader = Reader(BLOB_MAX)
    about = {"encoding": "bytes", "compression": "none", "sha256": SHA}
    size = 2 * PART_BYTES + 5
    head = {"type": "checkpoint", "seq": 1, "name": "x", "settled": True, "size": size, **about}
    reader.feed(frame(json.dumps(head).encode()))
    got = 0
    for part in (PART_BYTES, PART_BYTES, 5):
        data = frame(b"x" * part, b"B")
        for at in range(0, len(data), 100_000):
            found = reader.feed(data[at : at + 100_000])
            got += sum(len(one.data) for one in found)
            assert len(reader._buffer) < 5 or at == 0
    assert got == size


def test_a_task_says_everything_that_it_was_given():
    task = Assignment(
        **{name: name for name in ("job_id", "task_id", "package", "entrypoint")},
        **{name: name for name in ("execution_id", "flow_id", "step_id", "tenant_id")},
        **dict.fromkeys(("attempt", "step_attempt", "heartbeat_ms", "interval_ms"), 7),
        **dict.fromkeys(("checkpoint_max_bytes", "ttl_ms", "ttl_soft_ms", "ttl_hard_ms"), 7),
        **{name: {"a": name} for name in ("config", "secrets", "checkpoints")},
        active_ms=7,
        has_input=True,
        input=[None],
    )
    data = agentwire.frames(task.message("ab" * 16))
    body = json.loads(data[5:])
    assert (body["type"], body["instance"], body["ttl"]["hardMs"]) == ("task", "ab" * 16, 7)
    assert body["checkpoint"] == {"intervalMs": 7, "maxSize": 7, "names": {"a": "checkpoints"}}
    assert (body["resume"], body["pauseMaxMs"], body["input"]) == (None, 0, [None])
    assert "secrets" not in repr(task)
