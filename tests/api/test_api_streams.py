"""Waiting and following: told when it is committed, ended with the execution or the daemon, and
nothing is kept for a client that has gone away."""

import asyncio
import http.client
import json
from contextlib import contextmanager

import pytest

from flowmonkeyd.api.feed import Feed
from flowmonkeyd.store import Committed
from tests.api.api_server import SWITCH, Connection, served


@pytest.fixture
async def api(tmp_path):
    async with served(tmp_path) as api:
        await api.call("PUT", "/v1/flows", SWITCH)
        yield api


async def waiting(api):
    """The id of an execution that waits for the event `go`."""
    body = {"flow": "pick", "context": {"n": 1}}
    made = (await api.call("POST", "/v1/executions", body)).json
    while made["status"] != "waiting":  # on a busy machine it does not get there in one commit
        made = (await api.call("GET", f"/v1/executions/{made['id']}")).json
    return made["id"]


async def go(api):
    await api.call("POST", "/v1/events", {"name": "go", "data": {"k": 1}})


@contextmanager
def asked(api, path, method="GET"):
    """A connection with a request on it that has not been answered yet."""
    connection = Connection(api.socket)
    try:
        connection.request(method, path)
        yield connection
    finally:
        connection.close()


async def until(condition):
    """Let the loop go on until the condition holds: what it waits for is only a turn away."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody announces that a client was missed
            await asyncio.sleep(0.001)


def lines_of(connection):
    """Every line of the answer, to its end; blocks, so call it in a thread."""
    return [json.loads(line) for line in connection.getresponse().read().splitlines() if line]


# --- waitMs ------------------------------------------------------------------------------------


async def test_a_wait_ends_when_the_execution_has_ended(api):
    one = await waiting(api)
    async with asyncio.TaskGroup() as group:
        call = api.call("GET", f"/v1/executions/{one}?waitMs=60000")
        shown = group.create_task(call)
        await until(lambda: api.feed.waiting == 1)
        assert not shown.done()
        await go(api)
    assert shown.result().json["status"] == "completed"
    assert api.feed.waiting == 0


async def test_a_wait_that_is_over_shows_where_the_execution_stands(api):
    one = await waiting(api)
    shown = await api.call("GET", f"/v1/executions/{one}?waitMs=1")
    assert (shown.status, shown.json["status"]) == (200, "waiting")
    body = {"flow": "pick", "context": {"n": 1}}
    made = await api.call("POST", "/v1/executions?waitMs=1", body)
    assert made.status == 201
    assert made.json["status"] in ("pending", "running", "waiting")
    assert api.feed.waiting == 0


async def test_nobody_is_waited_for_once_the_client_has_gone(api):
    one = await waiting(api)
    with asked(api, f"/v1/executions/{one}?waitMs=60000"):
        await until(lambda: api.feed.waiting == 1)
    await until(lambda: api.feed.waiting == 0)


@pytest.mark.parametrize("path", ["/v1/events?follow=true", "/v1/executions/{}/logs?follow=true"])
async def test_a_stream_ends_with_its_reader(api, path):
    one = await waiting(api)
    with asked(api, path.format(one)) as connection:
        answer = await asyncio.to_thread(connection.getresponse)
        assert answer.getheader("content-type") == "application/x-ndjson"
        await until(lambda: api.feed.followers == 1)
    await until(lambda: api.feed.followers == 0)


async def test_a_drain_ends_waits_and_streams_with_a_whole_answer(api):
    one = await waiting(api)
    with (
        asked(api, f"/v1/executions/{one}?waitMs=60000") as wait,
        asked(api, f"/v1/executions/{one}/events?follow=true") as stream,
    ):
        await until(lambda: (api.feed.waiting, api.feed.followers) == (1, 1))
        api.feed.close()
        (shown,) = await asyncio.to_thread(lines_of, wait)
        assert shown["status"] == "waiting"
        events = await asyncio.to_thread(lines_of, stream)
        assert events[0]["type"] == "execution.created"


# --- follow=true -------------------------------------------------------------------------------


async def test_everything_is_followed_from_now_on_or_from_a_seq(api):
    one = await waiting(api)
    with (
        asked(api, "/v1/events?follow=true") as new,
        asked(api, "/v1/events?follow=true&after=0") as whole,
    ):
        answers = [await asyncio.to_thread(c.getresponse) for c in (new, whole)]
        two = await waiting(api)
        first = json.loads(await asyncio.to_thread(answers[0].readline))
        assert (first["type"], first["executionId"]) == ("execution.created", two)
        seen = []
        while not seen or seen[-1]["seq"] < first["seq"]:
            seen.append(json.loads(await asyncio.to_thread(answers[1].readline)))
        assert [event["seq"] for event in seen] == list(range(1, first["seq"] + 1))
        assert {one, two} <= {event["executionId"] for event in seen}


async def test_a_page_and_a_stream_say_the_same(api):
    one = await waiting(api)
    await go(api)
    await api.call("GET", f"/v1/executions/{one}?waitMs=5000")
    path = f"/v1/executions/{one}/events"
    paged, after = [], 0
    while True:
        page = (await api.call("GET", f"{path}?limit=2&after={after}")).json
        paged += page["items"]
        if page["nextCursor"] is None:
            break
        after = paged[-1]["seq"]
    with asked(api, f"{path}?follow=true") as connection:
        assert await asyncio.to_thread(lines_of, connection) == paged


async def test_what_breaks_a_stream_cuts_it_so_that_nobody_takes_it_for_ended(api, caplog):
    one = await waiting(api)
    with asked(api, f"/v1/executions/{one}/events?follow=true") as connection:
        answer = await asyncio.to_thread(connection.getresponse)
        await until(lambda: api.feed.followers == 1)
        await api.store.close()
        api.feed.committed(Committed(events=True))  # it looks, and the store is closed
        with pytest.raises(http.client.IncompleteRead):
            await asyncio.to_thread(answer.read)
    caplog.clear()


async def test_a_slow_reader_gets_everything_later_and_holds_up_nobody():
    """Rows are looked up when they are asked for: nothing is kept for who does not ask."""
    feed, rows, looks = Feed(), [{"seq": 1}], []

    async def look(after):
        looks.append(after)
        found = [row for row in rows if row["seq"] > after]
        return found, bool(rows[-1]["seq"] == 1000 and not found)

    following = feed.follow(look, 0)
    assert await anext(following) == b'{"seq":1}\n'
    for seq in range(2, 1001):
        rows.append({"seq": seq})
        feed.committed(Committed(events=True))
    assert looks == [0]
    assert len((await anext(following)).splitlines()) == 999
    assert [chunk async for chunk in following] == []
    assert looks == [0, 1, 1000]


async def test_a_quiet_stream_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr("flowmonkeyd.api.feed.HEARTBEAT_S", 0.001)

    async def nothing(after):
        return [], False

    following = Feed().follow(nothing, 0)
    assert await anext(following) == b"\n"
    await following.aclose()
