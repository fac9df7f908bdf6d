"""Agents whose daemon goes away and comes back, that pause, are resumed, told to go."""

from __future__ import annotations

import asyncio
import random

import pytest
from started import PATIENCE_S, Keeper

from flowmonkeyd.agentmodel import Pause
from flowmonkeyd.errors import LeaseLost


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_daemon_lost_at_any_question_loses_and_doubles_nothing(start, where):
    one, keeper = await start(), Keeper()
    keeper.cuts = dict.fromkeys((1, 2, 5, 6, 7, 12), where)
    answer = await one.run("counts", 12, keeper=keeper)
    assert answer["output"] == [0, 12]
    assert keeper.seqs == list(range(1, 13))
    assert keeper.cuts == {}


async def test_the_same_daemon_answers_a_question_again_without_asking_anybody(start):
    one, keeper = await start(), Keeper()
    await one.give("counts", 3)
    keeper.cuts = {2: "after"}
    with pytest.raises(Exception) as raised:
        await one.agent.serve(keeper)
    assert type(raised.value).__name__ == "Cut"
    answer = await one.result(keeper)
    assert answer["output"] == [0, 3]


async def test_lines_that_are_logged_without_a_daemon_are_kept(start):
    one, keeper = await start(), Keeper()
    await one.give("waits_for_cancel")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        await keeper.until(lambda k: "default" in k.saved)
        serving.cancel()
    await one.restart()
    await one.agent.connected(PATIENCE_S)
    one.agent.cancel("so")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        assert await one.process.wait() == 0
        serving.cancel()


async def test_an_agent_without_a_task_finds_the_next_daemon(start):
    one = await start()
    await one.restart()
    hello = await one.agent.connected(PATIENCE_S)
    assert (hello.state, hello.attempt) == ("idle", 0)
    assert (await one.run("echo", 1))["output"] == 1


@pytest.mark.slow
async def test_a_running_agent_says_so_to_the_next_daemon_while_it_computes(start):
    one, keeper = await start(), Keeper()
    await one.give("computes", 2.0, heartbeat_ms=20)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        await keeper.until(lambda k: "default" in k.saved)
        serving.cancel()
    await one.restart()
    hello = await one.agent.connected(PATIENCE_S)
    assert (hello.state, hello.attempt, hello.answered) == ("running", 1, 1)
    assert (await one.result(keeper))["output"] == "computed"
    assert keeper.seqs == [1, 2]


@pytest.mark.slow
async def test_there_are_heartbeats_while_the_handler_computes(start):
    one, keeper = await start(), Keeper()
    await one.give("computes", 1.0, heartbeat_ms=20)
    heard = set()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        await keeper.until(lambda k: 1 in k.seqs)
        while 2 not in keeper.seqs:
            heard.add(one.agent.last_heard)
            await asyncio.sleep(0.005)
        one.agent.acknowledge(await serving)
    assert len(heard) > 10


RESUMED = {"got": {"file": 1}, "by": "event"}


async def test_a_pause_ends_with_what_it_was_resumed_with(start):
    one, keeper = await start(), Keeper()
    await one.give("pauses")
    pause = await one.served(keeper)
    assert pause == Pause(1, "for the file", 1000, "up", {"a": 1}, None, None)
    one.agent.hold()
    one.agent.resume("event", {"file": 1}, 50_000)
    output = (await one.result(keeper))["output"]
    assert output.pop("left") > 60_000  # the time of the pause is not its own
    assert output == RESUMED


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_daemon_lost_at_a_pause_is_told_of_it_again(start, where):
    one, keeper = await start(), Keeper()
    keeper.cuts = {1: where}
    await one.give("pauses")
    assert isinstance(await one.served(keeper), Pause)
    one.agent.resume("event", {"file": 1}, 1)
    output = (await one.result(keeper))["output"]
    assert (output["got"], output["by"]) == ({"file": 1}, "event")
    assert len(keeper.pauses) == 1


async def test_a_paused_agent_waits_for_the_next_daemon(start):
    one, keeper = await start(), Keeper()
    await one.give("pauses_with")
    pause = await one.served(keeper)
    assert (pause.name, pause.blob.encoding) == ("default", "json")
    await one.agent.ping(PATIENCE_S)  # it has the answer
    await one.restart()
    assert (await one.agent.connected(PATIENCE_S)).state == "paused"
    one.agent.resume("hand", None, 1)
    assert (await one.result(keeper))["output"] == ["begin", "here", None, "hand"]


async def test_a_resumption_that_was_lost_is_told_again(start):
    one, keeper = await start(), Keeper()
    await one.give("pauses")
    assert isinstance(await one.served(keeper), Pause)
    await one.agent.ping(PATIENCE_S)
    await one.agent.close()
    one.agent.resume("time", None, 1)
    await one.agent.open()
    assert (await one.result(keeper))["output"]["by"] == "time"


async def test_a_new_process_goes_on_as_the_paused_one_would_have(start):
    one, keeper = await start(), Keeper()
    await one.give("pauses_with")
    pause = await one.served(keeper)
    two = await start()
    resume = {
        "by": "event",
        "data": {"file": 1},
        "reason": pause.reason,
        "event": pause.event,
        "pausedMs": 5,
    }
    names = {"default": {"size": keeper.saved["default"].head.size, "savedAtMs": 1}}
    answer = await two.run("pauses_with", keeper=keeper, resume=resume, checkpoints=names)
    assert answer["output"] == ["here", "here", {"file": 1}, "event"]
    assert keeper.pauses == [pause]


async def test_a_checkpoint_says_whether_the_resumption_was_taken(start):
    resume = {"by": "event", "data": 1, "reason": "for the file", "event": "up", "pausedMs": 5}
    keeper = Keeper()
    await (await start()).run("settles", keeper=keeper, resume=resume)
    assert keeper.settled == [False, True]


async def test_another_pause_is_not_ended_by_what_is_left_of_the_last_one(start):
    resume = {"by": "event", "data": 1, "reason": "for another", "event": "up", "pausedMs": 5}
    one, keeper = await start(), Keeper()
    await one.give("settles", resume=resume)
    assert isinstance(await one.served(keeper), Pause)
    one.agent.resume("hand", None, 1)
    await one.result(keeper)
    assert keeper.settled == [False, True]


async def test_a_pause_is_within_what_the_manifest_allows(start):
    assert (await (await start()).run("may_pause"))["output"] == ["cannot pause"] * 2
    error = (await (await start()).run("pauses", pause_max_ms=0))["error"]
    assert (error["code"], error["message"].partition("cannot pause")[1]) == (
        "PAUSE_NOT_ENABLED",
        "cannot pause",
    )


async def test_a_fenced_agent_exits_at_once(start):
    one, keeper = await start(), Keeper()
    await one.give("waits_for_cancel")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        await keeper.until(lambda k: 1 in k.seqs)
        one.agent.fenced()
        assert await one.process.wait() == 4
        serving.cancel()


async def test_a_question_after_the_lease_is_lost_fences_the_agent(start):
    class Superseded(Keeper):
        async def on_checkpoint(self, wanted, blob):
            raise LeaseLost("another instance has the job")

    one = await start()
    await one.give("counts", 3)
    with pytest.raises(LeaseLost):
        await one.agent.serve(Superseded())
    assert await one.process.wait() == 4


async def test_a_cancelled_handler_sees_it_and_its_result_is_refused(start):
    one, keeper = await start(), Keeper()
    await one.give("waits_for_cancel")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        await keeper.until(lambda k: 1 in k.seqs)
        one.agent.cancel("user")
        assert await one.process.wait() == 0
        assert not serving.done()
        serving.cancel()


async def test_the_end_of_its_time_is_told(start):
    one, keeper = await start(), Keeper()
    await one.give("waits_for_ttl")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        await keeper.until(lambda k: 1 in k.seqs)
        one.agent.ttl(700)
        one.agent.acknowledge(await serving)
    assert (await serving).answer["output"] == "warned"


async def test_a_handler_that_dies_leaves_its_checkpoint(start):
    lost = asyncio.Event()
    one, keeper = await start(), Keeper()
    await one.agent.close()
    one.another_daemon(on_lost=lambda agent: lost.set())
    await one.agent.open()
    await one.give("dies")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(one.agent.serve(keeper))
        assert await one.process.wait() == 7
        await lost.wait()
        assert one.agent.hello is None
        serving.cancel()
    assert list(keeper.saved) == ["default"]


async def test_a_daemon_lost_again_and_again_loses_nothing(start):
    one, keeper = await start(), Keeper()
    dice = random.Random(5)
    keeper.cuts = {n: dice.choice(("before", "after")) for n in range(1, 60) if dice.random() < 0.3}
    answer = await one.run("counts", 60, keeper=keeper)
    assert answer["output"] == [0, 60]
    assert keeper.seqs == list(range(1, 61))
