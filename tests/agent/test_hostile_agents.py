"""Agents that lie: raw sockets against the daemon's end, each ended with a reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import struct

import pytest
import pytest_asyncio
from started import PATIENCE_S, Keeper, Started, until

from flowmonkeyd import agentlink, agents
from flowmonkeyd.agentmodel import BlobHead, Pause, Result
from flowmonkeyd.agents import Blob, Unanswered
from flowmonkeyd.agentwire import JSON_MAX_BYTES, PART_BYTES, ProtocolError


def frame(body: bytes, kind: str = "J") -> bytes:
    return struct.pack("!IB", 1 + len(body), ord(kind)) + body


def say(**message) -> bytes:
    return frame(json.dumps(message).encode())


def blob(data: bytes) -> bytes:
    return b"".join(
        frame(data[at : at + PART_BYTES], "B") for at in range(0, len(data), PART_BYTES)
    )


def hello(instance: str, **more) -> bytes:
    said = {"protocol": 1, "instance": instance, "attempt": 0, "runtime": "x", "state": "idle"}
    return say(type="hello", answered=0, **{**said, **more})


def checkpoint(seq: int, data: bytes, **more) -> bytes:
    about = {"size": len(data), "encoding": "bytes", "compression": "none"}
    sha256 = hashlib.sha256(data).hexdigest()
    said = {"seq": seq, "name": "default", "settled": True, **about, "sha256": sha256}
    return say(type="checkpoint", **{**said, **more})


RESULT = {"outcome": "success"}


class Stranger:
    """Whoever connects to the socket."""

    def __init__(self, one: Started) -> None:
        self.one = one

    async def connect(self) -> Stranger:
        path = self.one.folder / "agent.sock"
        self.reader, self.writer = await asyncio.open_unix_connection(str(path))
        return self

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self) -> dict:
        head = await self.reader.readexactly(5)
        length, _kind = struct.unpack("!IB", head)
        return json.loads(await self.reader.readexactly(length - 1))

    async def is_dropped(self) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass
        return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


class Host:
    """The daemon's end, and strangers that connect to it."""

    def __init__(self, folder) -> None:
        self.one = Started("python", folder)
        self.agent = self.one.agent
        self.strangers = []

    async def stranger(self) -> Stranger:
        self.strangers.append(await Stranger(self.one).connect())
        return self.strangers[-1]

    async def greeted(self, **more) -> Stranger:
        stranger = await self.stranger()
        stranger.say(hello(self.one.instance, **more))
        await self.agent.connected(PATIENCE_S)
        return stranger

    async def running(self, **more) -> Stranger:
        """One that has accepted its task."""
        stranger = await self.greeted()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.agent.give(self.one.task("echo", **more), PATIENCE_S))
            assert (await stranger.hear())["type"] == "task"
            stranger.say(say(type="accepted", attempt=1))
        return stranger

    async def broken(self) -> str:
        """The reason why serving ended."""
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ProtocolError) as raised:
                await self.agent.serve(Keeper())
        assert self.agent.problem is raised.value
        assert self.agent.hello is None
        return str(raised.value)


@pytest_asyncio.fixture
async def host(tmp_path):
    host = Host(tmp_path)
    await host.agent.open()
    yield host
    for stranger in host.strangers:
        await stranger.close()
    await host.one.end()


BEFORE_HELLO = {
    "not a frame": (b"GET / HTTP/1.1\r\n\r\n", "where a message was expected"),
    "too long": (struct.pack("!IB", JSON_MAX_BYTES + 2, ord("J")), "are allowed"),
    "no length": (b"\0\0\0\0J", "are allowed"),
    "not JSON": (frame(b"{"), "not JSON"),
    "not an object": (frame(b"[]"), "not a message"),
    "no type": (frame(b"{}"), "not a message"),
    "odd type": (frame(b'{"type":[1]}'), "not a message"),
    "too deep": (frame(b"[" * 300 + b"]" * 300), "nested deeper"),
    "far too deep": (frame(b"[" * 500_000), "nested deeper"),
    "a blob of nothing": (frame(b"x", "B"), "where a message was expected"),
    "another message": (say(type="heartbeat"), "before hello"),
    "another instance": (hello("ff" * 16), "another instance"),
    "another protocol": (hello("x", protocol=2), "hello.protocol"),
    "a key too many": (hello("x", more=1), "hello.more"),
    "NaN": (frame(b'{"type":"hello","attempt":NaN}'), "NaN"),
    "a huge number": (frame(b'{"type":"hello","attempt":' + b"9" * 5000 + b"}"), "not JSON"),
    "a surrogate": (frame(b'{"type":"problem","message":"\\ud800"}'), "surrogate"),
}


@pytest.mark.parametrize("what", BEFORE_HELLO)
async def test_what_is_no_hello_ends_the_instance(host, what):
    data, reason = BEFORE_HELLO[what]
    stranger = await host.stranger()
    stranger.say(data)
    with pytest.raises(ProtocolError, match=reason):
        await host.agent.connected(PATIENCE_S)
    assert await stranger.is_dropped()


WITHOUT_TASK = {
    "result": say(type="result", seq=1, answer=RESULT),
    "log": say(type="log", atMs=1, stream="stdout", level=None, message="x", fields=None),
    "load": say(type="load", ask=1, name="x"),
    "accepted": say(type="accepted", attempt=1),
    "pong": say(type="pong", n=1),
}


@pytest.mark.parametrize("what", WITHOUT_TASK)
async def test_what_has_no_place_before_a_task_ends_the_instance(host, what):
    stranger = await host.greeted()
    stranger.say(WITHOUT_TASK[what])
    assert what in await host.broken()


WITH_TASK = {
    "a second hello": (hello("x"), "second hello"),
    "a gap": (say(type="clear", seq=2, name=None), "seq 2 after 0"),
    "the same again": (
        say(type="clear", seq=1, name=None) + say(type="result", seq=1, answer=RESULT),
        "seq 1 after 1",
    ),
    "another attempt": (say(type="accepted", attempt=2), "accepted attempt 2"),
    "a blob too large": (checkpoint(1, b"", size=2**40), "are allowed"),
    "another SHA-256": (checkpoint(1, b"abc", sha256="0" * 64) + blob(b"abc"), "SHA-256"),
    "a large blob with another SHA-256": (
        checkpoint(1, b"a" * 100_000, sha256="0" * 64) + blob(b"a" * 100_000),
        "SHA-256",
    ),
    "a message within a blob": (
        checkpoint(1, b"abc") + say(type="heartbeat"),
        "expected 3 bytes of a blob",
    ),
    "a short part": (checkpoint(1, b"abc") + frame(b"ab", "B"), "expected 3 bytes of a blob"),
    "more than the blob": (
        checkpoint(1, b"abc") + blob(b"abc") + frame(b"x", "B"),
        "where a message was expected",
    ),
    "a level for stdout": (
        say(type="log", atMs=1, stream="stdout", level="info", message="x", fields=None),
        "log.level",
    ),
    "a negative time": (
        say(type="log", atMs=-1, stream="stdout", level=None, message="x", fields=None),
        "log.atMs",
    ),
    "a long line": (
        say(type="log", atMs=1, stream="stdout", level=None, message="x" * 70_000, fields=None),
        "log.message",
    ),
    "a percent beyond": (
        say(type="progress", percent=101, message=None, etaMs=None),
        "progress.percent",
    ),
    "true for a number": (say(type="extend", seq=1, ms=True), "extend.ms"),
    "an odd problem": (
        say(type="result", seq=1, answer={"outcome": "problem", "ending": "timeout"}),
        "result.answer",
    ),
    "an empty name": (say(type="load", ask=1, name=""), "load.name"),
    "an odd checkpoint in a pause": (
        say(
            type="pause",
            seq=1,
            reason="x",
            maxWaitMs=None,
            event=None,
            filter=None,
            checkpoint={"size": 1},
        ),
        "pause.checkpoint",
    ),
}


@pytest.mark.parametrize("what", WITH_TASK)
async def test_what_breaks_a_rule_ends_the_instance_with_the_reason(host, what):
    data, reason = WITH_TASK[what]
    stranger = await host.running()
    stranger.say(data)
    assert reason in await host.broken()
    assert await stranger.is_dropped()
    # and nobody is let in again
    assert await (await host.stranger()).is_dropped()


async def test_a_second_connection_is_refused_and_changes_nothing(host):
    first = await host.running()
    second = await host.stranger()
    second.say(hello(host.one.instance, attempt=1, state="running"))
    assert await second.is_dropped()
    first.say(say(type="result", seq=1, answer=RESULT))
    async with asyncio.timeout(PATIENCE_S):
        assert await host.agent.serve(Keeper()) == Result(1, RESULT)


async def test_a_flood_of_messages_ends_the_instance(host):
    stranger = await host.running()
    stranger.say(say(type="heartbeat") * int(agentlink.MESSAGES_BURST * 1.5))
    assert "flood" in await host.broken()


async def test_a_flood_of_bytes_ends_the_instance(host):
    stranger = await host.running()
    line = say(type="log", atMs=1, stream="stdout", level=None, message="x" * 60_000, fields=None)

    async def flood():
        try:
            for _ in range(2 * agentlink.MESSAGE_BURST_BYTES // len(line)):
                stranger.say(line)
                await stranger.writer.drain()
        except ConnectionError:
            pass

    async with asyncio.TaskGroup() as group:
        group.create_task(flood())
        assert "flood" in await host.broken()


async def test_lines_beyond_the_limit_are_dropped_and_counted(host):
    stranger = await host.running()
    line = say(type="log", atMs=1, stream="stdout", level=None, message="x" * 9900, fields=None)
    stranger.say(line * 200 + say(type="result", seq=1, answer=RESULT))
    keeper = Keeper()
    async with asyncio.timeout(PATIENCE_S):
        await host.agent.serve(keeper)
    most = agents.LOG_BURST_BYTES // 10_000
    assert most <= len(keeper.lines) < most + 50


async def test_a_blob_that_never_ends_is_no_more_than_its_size(host):
    """Nothing is kept of what was announced and does not come."""
    stranger = await host.running()
    keeper = Keeper()
    stranger.say(checkpoint(1, os.urandom(10 * PART_BYTES)) + frame(os.urandom(PART_BYTES), "B"))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(host.agent.serve(keeper))
        await until(lambda: list(host.one.spool.iterdir()))
        await stranger.close()
        await until(lambda: not list(host.one.spool.iterdir()))
        again = await host.greeted(attempt=1, state="running")
        again.say(checkpoint(1, b"abc") + blob(b"abc") + say(type="result", seq=2, answer=RESULT))
        assert (await serving).seq == 2
    assert keeper.saved["default"].data == b"abc"


async def test_half_a_frame_is_forgotten_with_its_connection(host):
    first = await host.running()
    first.say(say(type="clear", seq=1, name=None)[:20])
    await first.writer.drain()
    await first.close()
    again = await host.greeted(attempt=1, state="running")
    again.say(say(type="result", seq=1, answer=RESULT))
    async with asyncio.timeout(PATIENCE_S):
        assert (await host.agent.serve(Keeper())).seq == 1


async def test_a_result_after_a_cancel_is_refused(host):
    stranger = await host.running()
    host.agent.cancel("user")
    stranger.say(say(type="result", seq=1, answer=RESULT))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(host.agent.serve(Keeper()))
        assert (await stranger.hear())["type"] == "cancel"
        assert (await stranger.hear())["code"] == "CANCELLED"
        assert not serving.done()
        serving.cancel()


async def test_a_pause_that_was_resumed_is_not_paused_by_its_repetition(host):
    stranger = await host.running()
    about = {"reason": "x", "maxWaitMs": None, "event": None, "filter": None}
    pause = say(type="pause", seq=1, checkpoint=None, **about)
    stranger.say(pause)
    keeper = Keeper()
    assert isinstance(await host.agent.serve(keeper), Pause)
    host.agent.resume("hand", 7, 1)
    await stranger.close()
    again = await host.greeted(attempt=1, state="running")
    again.say(pause + say(type="result", seq=2, answer=RESULT))
    async with asyncio.timeout(PATIENCE_S):
        assert (await host.agent.serve(keeper)).seq == 2
        assert [(await again.hear())["type"] for _ in range(2)] == ["paused", "resume"]
    assert len(keeper.pauses) == 1


async def test_an_agent_that_forgets_its_task_is_ended(host):
    stranger = await host.running()
    await stranger.close()
    (await host.stranger()).say(hello(host.one.instance))
    assert "forgotten" in await host.broken()


async def test_an_agent_that_takes_nothing_is_waited_for_only_so_long(host, monkeypatch):
    monkeypatch.setattr(agentlink, "WRITE_S", 0.05)
    stranger = await host.running()
    stranger.say(say(type="load", ask=1, name="big"))

    class Big(Keeper):
        async def on_load(self, name):
            return Blob(BlobHead(8 * PART_BYTES, "bytes", "none", "0" * 64), file=path)

    path = host.one.folder / "big"
    path.write_bytes(bytes(8 * PART_BYTES))
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ProtocolError, match="takes nothing"):
            await host.agent.serve(Big())


async def test_who_does_not_answer_in_time_is_unanswered(host):
    with pytest.raises(Unanswered, match="is not there"):
        await host.agent.ping(0.01)
    with pytest.raises(Unanswered, match="did not connect"):
        await host.agent.connected(0.01)
    stranger = await host.greeted()
    with pytest.raises(Unanswered, match="did not answer"):
        await host.agent.ping(0.01)
    with pytest.raises(Unanswered, match="did not prepare"):
        await host.agent.prepare("/app", "x.py:y", 0.01)
    with pytest.raises(Unanswered, match="did not accept"):
        await host.agent.give(host.one.task("echo"), 0.01)
    await stranger.close()


async def test_who_is_lost_before_it_accepts_is_unanswered_at_once(host):
    stranger = await host.greeted()
    async with asyncio.TaskGroup() as group:
        giving = group.create_task(_gives(host))
        await stranger.hear()
        await stranger.close()
        assert "was lost" in await giving


async def _gives(host) -> str:
    with pytest.raises(Unanswered) as raised:
        await host.agent.give(host.one.task("echo"), PATIENCE_S)
    return str(raised.value)


async def test_a_full_disk_is_a_refusal_and_the_connection_goes_on(host):
    stranger = await host.running()
    os.rmdir(host.one.spool)  # as good as full: no file can be made there
    data = secrets.token_bytes(200_000)
    stranger.say(checkpoint(1, data) + blob(data) + say(type="result", seq=2, answer=RESULT))
    async with asyncio.timeout(PATIENCE_S):
        assert (await host.agent.serve(Keeper())).seq == 2
    host.one.spool.mkdir()
    refused = await stranger.hear()
    assert (refused["type"], refused["seq"], refused["code"]) == ("refused", 1, "UNAVAILABLE")


async def test_a_socket_left_by_a_daemon_that_was_killed_is_replaced(host):
    await host.agent.close()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(host.one.folder / "agent.sock"))
    await host.agent.open()
    await host.greeted()
    assert (host.one.folder / "agent.sock").stat().st_mode & 0o777 == 0o666
