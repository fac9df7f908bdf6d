"""Flows through the real engine: selectors, outputs, ways, retries, limits on every write path."""

import pytest

from flowmonkeyd.errors import Conflict, Invalid
from flowmonkeyd.model import Limits
from flowmonkeyd.testing import FlowHarness
from tests.flows import Tally, doc, echo, no, parked, step, wait_for_event


def crash(given, ctx):
    raise RuntimeError("boom")


def touch(given, ctx):
    """Spoils its input and asks for a second look at the context."""
    given["order"]["n"] = 99
    return dict(ctx.context)["order"]["n"]


def updating(given, ctx):
    for key, value in ctx.config["updates"].items():
        ctx.update(key, value)
    ctx.emit("seen", {"n": 1})
    return ctx.config["output"] if "output" in ctx.config else ctx.success()


def routed(given, ctx):
    return ctx.success(given, next=ctx.config["next"])


def bad_reply(given, ctx):
    return {"x": float("nan")} if ctx.config == "nan" else object()


HANDLERS = {
    "echo": echo,
    "no": no,
    "crash": crash,
    "touch": touch,
    "updating": updating,
    "routed": routed,
    "bad": bad_reply,
    "parked": parked,
}


@pytest.fixture
async def fm():
    async with FlowHarness(HANDLERS) as fm:
        yield fm


async def run(fm, document, context=None, **options):
    fm.apply(document)
    created = await fm.create(document["id"], context, **options)
    return await fm.run(created.id)


BIG = "x" * 2000  # a row of its own


@pytest.mark.parametrize(
    ("selector", "context", "output"),
    [
        ({"type": "key", "key": "a"}, {"a": {"b": 1}}, {"b": 1}),
        ({"type": "key", "key": "a.b"}, {"a": {"b": 1}, "a.b": 2}, 2),
        ({"type": "key", "key": "a"}, {"a": None}, None),
        ({"type": "key", "key": "a"}, {"a": BIG, "z": BIG}, BIG),
        ({"type": "keys", "keys": ["a", "b", "c"]}, {"a": 1, "b": None}, {"a": 1, "b": None}),
        ({"type": "path", "path": "a.1.b"}, {"a": [0, {"b": BIG}], "z": BIG}, BIG),
        ({"type": "template", "template": {"t": "${a}!"}}, {"a": 1}, {"t": "1!"}),
        ({"type": "template", "template": {"v": "${a}"}}, {"a": 1}, {"v": 1}),
        ({"type": "template", "template": ["${a.b}", "${z}"]}, {"a": {"b": [1]}}, [[1], None]),
        ({"type": "full"}, {"a": BIG, "b": 1}, {"a": BIG, "b": 1}),
        ({"type": "static", "value": {"s": "${a}"}}, {"a": 1}, {"s": "${a}"}),
    ],
)  # fmt: skip
async def test_a_step_is_given_what_its_selector_says(fm, selector, context, output):
    ended = await run(fm, doc(step("a", input=selector, out="r")), context)
    assert ended.context == {**context, "r": output}


@pytest.mark.parametrize(
    "selector",
    [
        {"type": "key", "key": "missing"},
        {"type": "path", "path": "a.b.c"},
        {"type": "path", "path": "a.length"},
        {"type": "template", "template": "${missing}"},
    ],
)
async def test_no_value_is_not_null(fm, selector):
    ended = await run(fm, doc(step("a", input=selector, out="r")), {"a": 1, "r": "kept"})
    assert ended.context["r"] == "kept"


async def test_handlers_get_copies(fm):
    """Upstream 1.3: an in-process handler can alter the context behind the engine's back."""
    ended = await run(fm, doc(step("a", "touch", out="seen")), {"order": {"n": 1}})
    assert ended.context == {"order": {"n": 1}, "seen": 1}


async def test_a_dotted_output_key_reaches_into_a_large_value(fm):
    document = doc(
        step("a", input={"type": "static", "value": 7}, out="big.r.n", next="b"),
        step("b", input={"type": "path", "path": "big.r.n"}, out="seen"),
    )
    ended = await run(fm, document, {"big": {"text": BIG}, "other": BIG})
    assert ended.context == {"big": {"text": BIG, "r": {"n": 7}}, "other": BIG, "seen": 7}


async def test_a_value_may_grow_into_a_row_and_shrink_back(fm):
    grown = {"type": "static", "value": BIG}
    small = {"type": "static", "value": 1}
    document = doc(
        step("a", input=grown, out="v", next="b"), step("b", input=small, out="v", next="c"),
        step("c", input=grown, out="v"),
    )  # fmt: skip
    fm.apply(document)
    created = await fm.create("f")
    seen = [(await fm.tick(created.id)).context["v"] for _ in range(3)]
    assert seen == [BIG, 1, BIG]
    await fm.restart()
    assert (await fm.get(created.id)).context == {"v": BIG}


async def test_the_events_of_a_two_step_success_are_in_order(fm):
    ended = await run(fm, doc(step("a", next="b"), step("b")))
    assert [e["type"] for e in await fm.events(ended.id)] == [
        "execution.created",
        "execution.started",
        "step.started",
        "step.completed",
        "transition",
        "step.started",
        "step.completed",
        "execution.completed",
    ]


async def test_the_history_says_what_each_attempt_did(fm):
    document = doc(step("a", "no", retry={"maxAttempts": 1}, fail="b"), step("b", out="r"))
    ended = await run(fm, document, {"n": 1})
    rows = [
        (h.seq, h.step_id, h.attempt, h.outcome, (h.error or {}).get("code"))
        for h in await fm.history(ended.id)
    ]
    assert rows == [
        (1, "a", 0, "failure", "NO"),
        (2, "a", 1, "failure", "NO"),
        (3, "b", 0, "success", None),
    ]
    assert ended.step_count == 3


async def test_a_result_may_name_the_next_step(fm):
    document = doc(step("a", "routed", config={"next": "c"}, next="b"), step("b"), step("c"))
    ended = await run(fm, document)
    assert [h.step_id for h in await fm.history(ended.id)] == ["a", "c"]


async def test_a_step_that_does_not_exist_is_a_bad_transition(fm):
    document = doc(step("a", "routed", config={"next": "z"}, fail="b"), step("b"))
    ended = await run(fm, document)
    assert (ended.status, ended.error["code"]) == ("failed", "INVALID_TRANSITION")


async def test_an_exception_is_a_failure_like_any_other(fm):
    document = doc(
        step("a", "crash", retry={"maxAttempts": 1, "retryOn": ["HANDLER_ERROR"]}, fail="b"),
        step("b", input={"type": "path", "path": "_error.code"}, out="saw"),
    )
    ended = await run(fm, document)
    assert ended.context == {"saw": "HANDLER_ERROR"}
    assert ended.step_count == 3


@pytest.mark.parametrize("kind", ["nan", "object"])
async def test_what_is_no_json_is_no_result(fm, kind):
    ended = await run(fm, doc(step("a", "bad", config={"kind": kind})))
    assert ended.status == "failed"
    assert ended.error["code"] in ("INVALID_RESULT", "HANDLER_ERROR")
    assert (await fm.history(ended.id))[0].outcome == "error"


async def test_updates_and_emitted_events_come_with_the_success(fm):
    config = {"updates": {"u": 1}, "output": 2}
    ended = await run(fm, doc(step("a", "updating", config=config, out="r")))
    assert ended.context == {"u": 1, "r": 2}
    custom = [e["data"] for e in await fm.events(ended.id) if e["type"] == "handler.custom"]
    assert custom == [{"event": "seen", "data": {"n": 1}}]


async def test_the_error_is_there_in_the_branch_and_gone_at_the_end(fm):
    document = doc(
        step("a", "no", fail="b", config={"code": "E", "message": "why", "details": {"d": BIG}}),
        step("b", next="c"),
        step("c", input={"type": "path", "path": "_error.details.d"}, out="saw"),
    )
    fm.apply(document)
    created = await fm.create("f")
    await fm.tick(created.id)
    error = (await fm.tick(created.id)).context["_error"]
    assert error == {"code": "E", "message": "why", "stepId": "a", "details": {"d": BIG}}
    ended = await fm.tick(created.id)
    assert ended.context == {"saw": BIG}


@pytest.mark.parametrize(
    ("max_steps", "status", "calls"), [(3, "completed", 3), (2, "failed", 2), (1, "failed", 1)]
)
async def test_exactly_the_limit_of_steps_may_run(max_steps, status, calls):
    tally = Tally()
    async with FlowHarness({"t": tally}, max_steps=max_steps) as fm:
        document = doc(step("a", "t", next="b"), step("b", "t", next="c"), step("c", "t"))
        ended = await run(fm, document)
        assert (ended.status, tally.total, ended.step_count) == (status, calls, calls)
        if status == "failed":
            assert ended.error["code"] == "MAX_STEPS"
            with pytest.raises(Conflict) as refusal:
                await fm.retry(ended.id)
            assert refusal.value.code == "MAX_STEPS"


async def test_a_loop_ends_at_the_limit_and_retries_count(fm):
    tally = Tally(failures=10**9)
    async with FlowHarness({"t": tally, "echo": echo}, max_steps=10) as fm:
        document = doc(step("a", "t", retry={"maxAttempts": 3}, fail="b"), step("b", next="a"))
        ended = await run(fm, document)
        assert (ended.error["code"], ended.step_count, tally.total) == ("MAX_STEPS", 10, 8)


# --- retries ------------------------------------------------------------------------------------


async def test_a_backoff_is_durable_and_exact():
    """Upstream 8.3.30: the counter is forgotten, so a step retries until the step limit."""
    tally = Tally(failures=3)
    async with FlowHarness({"t": tally}) as fm:
        retry = {"maxAttempts": 3, "backoffMs": 100, "backoffMultiplier": 3, "maxBackoffMs": 500}
        fm.apply(doc(step("a", "t", retry=retry)))
        created = await fm.create("f")
        for backoff_ms in (100, 300, 500):
            waiting = await fm.run(created.id)
            assert waiting.wake_at_ms == fm.clock.now_ms() + backoff_ms
            await fm.restart()
            fm.advance(backoff_ms - 1)
            assert (await fm.run(created.id)).status == "waiting"
            fm.advance(1)
        ended = await fm.run(created.id)
        assert (ended.status, tally.attempts) == ("completed", [0, 1, 2, 3])


async def test_a_step_that_is_visited_again_has_its_whole_budget():
    tally = Tally(failures=1)
    async with FlowHarness({"t": tally, "no": no}) as fm:
        document = doc(
            step("a", "t", retry={"maxAttempts": 1}, next="b", out="n"),
            step("b", "no", retry={"maxAttempts": 1}, fail="c"),
            step("c", "no", retry={"maxAttempts": 1}),
        )
        ended = await run(fm, document)
        assert [h.attempt for h in await fm.history(ended.id)] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("config", "retry_on", "attempts"),
    [
        ({"code": "E"}, None, 3),
        ({"code": "E"}, ["E"], 3),
        ({"code": "E"}, ["F"], 1),
        ({"code": "E", "retryable": False}, ["E"], 1),
    ],
)
async def test_what_is_not_to_be_retried_is_not(fm, config, retry_on, attempts):
    retry = {"maxAttempts": 2, "retryOn": retry_on}
    ended = await run(fm, doc(step("a", "no", config=config, retry=retry)))
    assert (ended.status, len(await fm.history(ended.id))) == ("failed", attempts)


async def test_each_attempt_has_an_id_of_its_own():
    tally = Tally(failures=2)
    async with FlowHarness({"t": tally}) as fm:
        await run(fm, doc(step("a", "t", retry={"maxAttempts": 2}, next="b"), step("b", "t")))
        assert len(set(tally.task_ids)) == len(tally.task_ids) == 4


# --- limits on every write path -----------------------------------------------------------------

TIGHT = Limits(value_bytes_max=100, context_bytes_max=300, keys_max=4, depth_max=3)
OVER = [
    ({"a": "x" * 99}, "CONTEXT_VALUE_TOO_LARGE"),
    ({"a": [[[[]]]]}, "CONTEXT_NESTING"),
    ({"a": "x" * 90, "b": "x" * 90, "c": "x" * 90, "d": "x" * 90}, "CONTEXT_SIZE_LIMIT"),
    ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, "CONTEXT_KEY_LIMIT"),
]


@pytest.fixture
async def tight():
    async with FlowHarness(HANDLERS, limits=TIGHT) as fm:
        yield fm


@pytest.mark.parametrize(("context", "code"), OVER)
async def test_the_limits_hold_for_the_first_context(tight, context, code):
    """Upstream 8.2.22: outputs, the initial context and resume data bypass the limits."""
    tight.apply(doc(step("a")))
    with pytest.raises(Invalid) as refusal:
        await tight.create("f", context)
    assert refusal.value.code == code


@pytest.mark.parametrize(("updates", "code"), OVER)
async def test_the_limits_hold_for_updates(tight, updates, code):
    document = doc(step("a", "updating", config={"updates": updates}, fail="b"), step("b"))
    ended = await run(tight, document)
    first, _ = await tight.history(ended.id)
    assert (ended.status, first.outcome, first.error["code"]) == ("completed", "error", code)
    assert ended.context == {}


@pytest.mark.parametrize(
    ("context", "output", "code"),
    [
        ({}, "x" * 99, "CONTEXT_VALUE_TOO_LARGE"),
        ({}, [[[[]]]], "CONTEXT_NESTING"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, 1, "CONTEXT_KEY_LIMIT"),
        ({"a": "x" * 90, "b": "x" * 90, "c": "x" * 90}, "x" * 50, "CONTEXT_SIZE_LIMIT"),
    ],
)
async def test_the_limits_hold_for_outputs(tight, context, output, code):
    fixed = {"type": "static", "value": output}
    ended = await run(tight, doc(step("a", input=fixed, out="r")), context)
    assert (ended.status, ended.error["code"]) == ("failed", code)
    assert ended.context == context


FULL = {"p": "x" * 95, "q": "x" * 95}
# Data is kept twice: at the top level and under resumeData.
OVER_DATA = [*OVER[:2], ({"a": "x" * 60}, "CONTEXT_SIZE_LIMIT"), OVER[3]]


@pytest.mark.parametrize(("data", "code"), OVER_DATA)
async def test_the_limits_hold_for_resume_data_and_the_wait_goes_on(tight, data, code):
    tight.apply(doc(wait_for_event("w")))
    waiting = await tight.run((await tight.create("f", FULL)).id)
    for how in (
        lambda: tight.resume(waiting.id, data),
        lambda: tight.resume_token(waiting.resume_token, data),
    ):
        with pytest.raises(Invalid) as refusal:
            await how()
        assert refusal.value.code == code
    ended = await tight.resume_token(waiting.resume_token, {"ok": 1})
    assert ended.status == "completed"


@pytest.mark.parametrize(("data", "code"), OVER_DATA)
async def test_the_limits_hold_for_event_data_and_only_the_one_that_breaks_them_fails(
    tight, data, code
):
    tight.apply(doc(wait_for_event("w")))
    one = await tight.run((await tight.create("f", FULL)).id)
    await tight.send_event("go", data)
    ended = await tight.get(one.id)
    assert (ended.status, ended.error["code"]) == ("failed", code)
    assert ended.resume_token is None
    assert ended.context == FULL


async def test_an_output_in_a_nested_place_is_held_to_the_limit_of_the_whole_value(tight):
    fixed = {"type": "static", "value": "x" * 60}
    ended = await run(tight, doc(step("a", input=fixed, out="v.more")), {"v": {"t": "y" * 60}})
    assert ended.error["code"] == "CONTEXT_VALUE_TOO_LARGE"
