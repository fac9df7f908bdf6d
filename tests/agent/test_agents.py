"""What a handler can do in an agent, in both languages, over a real socket."""

from __future__ import annotations

import pytest
from started import Keeper

from flowmonkeyd.agentmodel import Result


def success(output=None, **more):
    answer = {"outcome": "success", "output": output, "updates": {}, "emitted": []}
    return {**answer, **more}


# handler, input, more of the task, output
OUTPUTS = [
    ("echo", {"a": [1, None, "ä"]}, {}, {"a": [1, None, "ä"]}),
    ("later", 1, {}, {"waited": True}),
    ("Plain", 1, {}, {"calls": 1}),
    ("Declared", {"width": 2}, {"config": {"name": "x"}}, {"width": 2, "name": "x"}),
    ("extends", 1, {"ttl_ms": 10}, None),
]


@pytest.mark.parametrize(("name", "given", "more", "output"), OUTPUTS[:-1])
async def test_a_handler_returns_what_it_returns(start, name, given, more, output):
    assert await (await start()).run(name, given, **more) == success(output)


async def test_no_value_is_not_null(start):
    answer = await (await start()).run("nothing")
    assert answer == {"outcome": "success", "updates": {}, "emitted": []}


async def test_a_declared_input_that_breaks_its_rules_is_a_failure(start):
    answer = await (await start()).run("Declared", {"width": 0})
    assert answer["error"]["code"] == "INPUT_VALIDATION_FAILED"
    assert answer["error"]["details"][0]["rule"] == "min"


async def test_ctx_tells_what_the_task_said(start):
    one = await start()
    answer = await one.run("about", 5, config={"c": 1}, secrets={"key": "hidden"}, step_attempt=2)
    output = answer["output"]
    assert 0 < output.pop("left") <= 60_000
    assert output.pop("told") == ["execution", "flow", "step", 2, "default", "task", True]
    assert "hidden" not in output.pop("shown")
    assert output == {
        "input": 5,
        "config": {"c": 1},
        "context": {"k": [1, 2]},
        "secret": "hidden",
        "cancelled": False,
    }


ANSWERS = {
    "success": {"outcome": "success", "output": {"a": 1}, "next": "there"},
    "failure": {
        "outcome": "failure",
        "error": {
            "code": "NO_GOOD",
            "message": "it is bad",
            "retryable": False,
            "details": {"why": "so"},
        },
    },
    "wait": {"outcome": "wait", "wait": {"event": "go", "durationMs": 5, "reason": "for it"}},
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_answers_come_with_updates_and_events(start, kind):
    answer = await (await start()).run("answers", kind)
    assert answer == {**ANSWERS[kind], "updates": {"seen": 1}, "emitted": [["thing", {"n": 1}]]}


async def test_an_exception_is_a_failure_with_its_traceback(start):
    error = (await (await start()).run("fails"))["error"]
    assert error["code"] == "HANDLER_ERROR"
    assert "on purpose" in error["message"]
    assert error["retryable"] is True
    trace = error["details"]["traceback"]
    assert "_fails" in trace
    assert "images/agent" not in trace


@pytest.mark.parametrize(("name", "ending"), [("unjson", "protocol"), ("huge", "output")])
async def test_what_is_no_result_says_why(start, name, ending):
    result = await (await start()).run(name)
    assert isinstance(result, Result)
    assert result.ending == ending


async def test_what_cannot_be_loaded_is_a_failure(start):
    error = (await (await start()).run("missing"))["error"]
    assert error["code"] == "HANDLER_ERROR"
    assert "cannot find missing" in error["message"]


async def test_lines_come_in_order_and_in_pieces(start):
    keeper = Keeper()
    await (await start()).run("speaks", keeper=keeper)
    told = [(one.stream, one.level, one.message[:10], len(one.message)) for one in keeper.lines]
    assert told == [
        ("log", "info", "first", 5),
        ("stdout", None, "second", 6),
        ("stderr", None, "third", 5),
        ("log", "warning", "fourth", 6),
        ("stdout", None, "x" * 10, 16_384),
        ("stdout", None, "x" * 10, 20_000 - 16_384),
        ("stdout", None, "half", 4),
    ]
    assert keeper.lines[0].fields["n"] == 1


@pytest.mark.slow
async def test_a_flood_of_lines_is_cut_and_counted(start):
    keeper = Keeper()
    assert (await (await start()).run("floods", keeper=keeper))["output"] == "done"
    kept = [one for one in keeper.lines if one.message.startswith("line ")]
    assert 5_000 < len(kept) < 20_000
    size = sum(len(one.message) + 100 for one in kept)
    assert size > 1_000_000


@pytest.mark.slow
async def test_checkpoints_of_every_kind_come_back(start):
    keeper = Keeper()
    answer = await (await start()).run("checkpoints", 10 * 1024 * 1024, keeper=keeper)
    assert answer["output"] == [
        ["big", "bytes", "compressed", "default"],
        10 * 1024 * 1024,
        [{"n": [1, None, "ä"]}, [0, 255]],
        True,
        ["bytes", "compressed", "default"],
        [],
        [None, 7],
    ]
    assert keeper.seqs == [1, 2, 3, 4, 5, 6]


async def test_a_compressed_checkpoint_is_small(start):
    keeper = Keeper()
    one = await start()
    await one.run("checkpoints", 10, keeper=keeper)
    assert keeper.saved == {}


async def test_what_is_too_large_is_an_exception_and_nothing_is_sent(start):
    keeper = Keeper()
    one = await start()
    answer = await one.run("too_large", keeper=keeper, checkpoint_max_bytes=300_000)
    assert answer["output"] == ["CHECKPOINT_TOO_LARGE", ["a"]]
    assert list(keeper.saved) == ["a"]


async def test_what_is_too_large_and_not_caught_is_a_failure_with_its_code(start):
    answer = await (await start()).run("too_large", 1, checkpoint_max_bytes=300_000)
    assert answer["error"]["code"] == "CHECKPOINT_TOO_LARGE"
    assert answer["error"]["retryable"] is False


async def test_a_refusal_is_an_exception_with_its_code(start):
    answer = await (await start()).run("refused")
    assert answer["error"]["code"] == "NOT_THIS"
    assert "not this one" in answer["error"]["message"]


async def test_more_time_to_live_is_what_the_daemon_says(start):
    [left, warned] = (await (await start()).run("extends", ttl_ms=10_000))["output"]
    assert 60_000 < left <= 65_000
    assert warned is False


async def test_progress_is_told_now_and_then_and_at_last(start):
    keeper = Keeper()
    await (await start()).run("progresses", 2000, keeper=keeper)
    percents = [one.percent for one in keeper.progress]
    assert percents == sorted(percents)
    assert len(percents) < 100
    assert (percents[-1], keeper.progress[-1].message) == (100, "over")
    assert any(one.eta_ms for one in keeper.progress)


@pytest.mark.slow
async def test_a_prepared_handler_is_imported_before_its_task(start):
    one = await start()
    early = await one.run("started")
    two = await start()
    task = two.task("started")
    assert await two.agent.prepare(task.package, task.entrypoint, 30) is None
    three = await start()
    late = await three.run("started")
    prepared = await two.run("started")
    assert early["output"] < prepared["output"] < late["output"]


async def test_a_handler_that_cannot_be_prepared_says_why_and_again_with_the_task(start):
    one = await start()
    task = one.task("missing")
    assert "cannot find missing" in await one.agent.prepare(task.package, task.entrypoint, 30)
    answer = await one.run("missing")
    assert "cannot find missing" in answer["error"]["message"]


# Node has no way to give the programs it starts another output than its own.
@pytest.mark.parametrize("language", ["python"], indirect=True)
async def test_what_its_programs_print_is_logged(start):
    keeper = Keeper()
    await (await start()).run("programs", keeper=keeper)
    assert sorted(keeper.messages("stdout")) == ["from a child", "from a program"]


NODE_FAILURES = [
    ("never_settles", "will never settle"),
    ("throws_later", "on purpose"),
    ("exits", "cannot call process.exit()"),
]


@pytest.mark.parametrize("language", ["node"], indirect=True)
@pytest.mark.parametrize(("name", "message"), NODE_FAILURES)
async def test_what_ends_a_node_program_ends_the_handler(start, name, message):
    assert message in (await (await start()).run(name))["error"]["message"]


@pytest.mark.parametrize("language", ["node"], indirect=True)
async def test_an_es_module_is_a_handler(start):
    one = await start()
    answer = await one.run("handle", 1, entrypoint="module.mjs:handle")
    assert answer["output"] == {"module": 1}


@pytest.mark.parametrize("language", ["python"], indirect=True)
async def test_a_forked_child_is_not_the_handler(start):
    keeper = Keeper()
    assert (await (await start()).run("forks", keeper=keeper))["output"] == [9, 1]
    assert keeper.seqs == [1]


@pytest.mark.parametrize("language", ["python"], indirect=True)
async def test_a_handler_that_closes_all_descriptors_is_heard_again(start):
    keeper = Keeper()
    assert (await (await start()).run("closes", keeper=keeper))["output"] == "closed"
    assert keeper.seqs == [1]
