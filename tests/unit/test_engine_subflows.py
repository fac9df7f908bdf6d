"""Sub-flows and fan-out: a parent goes on exactly when the children it asked for have ended."""

import pytest

from flowmonkeyd.errors import Conflict
from flowmonkeyd.model import CancelSource, Limits
from flowmonkeyd.steps import DEPTH_MAX
from flowmonkeyd.testing import FlowHarness
from tests.flows import Tally, doc, echo, no, step, sub_flow, wait_for_event

HANDLERS = {"echo": echo, "no": no}
CHILD = doc(step("c1", next="c2", out="seen"), step("c2"), id="child")
WAITS = doc(wait_for_event("w"), id="waits")
FAILS = doc(step("boom", "no", config={"code": "BOOM"}), id="fails")
ORPHAN = doc(step("gone", "not-published"), id="orphan")


@pytest.fixture
async def fm():
    async with FlowHarness(HANDLERS) as fm:
        for document in (CHILD, WAITS, FAILS, ORPHAN):
            fm.apply(document)
        yield fm


async def test_the_parent_parks_and_then_has_the_childs_context(fm):
    fm.apply(doc(sub_flow("s", "child", out="r", next="end"), step("end")))
    parent = await fm.create("f", {"n": 1})
    run = await fm.run(parent.id)
    (child,) = await fm.children(parent.id)
    assert run.status == "completed"
    assert run.context["r"] == {
        "childExecutionId": child.id,
        "flowId": "child",
        "status": "completed",
        "context": {"n": 1, "seen": {"n": 1}},
    }
    assert child.parent_execution_id == parent.id
    assert [h.step_id for h in await fm.history(parent.id)] == ["s", "end"]


async def test_a_failed_child_fails_the_step_and_not_more(fm):
    fm.apply(doc(sub_flow("s", "fails", fail="mend"), step("mend", out="saw")))
    parent = await fm.create("f")
    run = await fm.run(parent.id)
    assert run.status == "completed"
    error = run.context["saw"]["_error"]
    assert error["code"] == "CHILD_FAILED"
    assert error["details"]["error"]["code"] == "BOOM"


@pytest.mark.parametrize("fan_out", [False, True])
async def test_a_child_that_ends_the_moment_it_is_made_does_not_strand_its_parent(fm, fan_out):
    config = {"forEach": "items"} if fan_out else {}
    fm.apply(doc(sub_flow("s", "orphan", config=config)))
    parent = await fm.create("f", {"items": [1, 2]})
    run = await fm.run(parent.id)
    assert (run.status, run.error["code"]) == ("failed", "CHILD_FAILED")


async def test_an_unknown_flow_is_a_failure_of_the_step(fm):
    fm.apply(doc(sub_flow("s", "nowhere", fail="mend"), step("mend", out="saw")))
    run = await fm.run((await fm.create("f")).id)
    assert run.context["saw"]["_error"]["code"] == "SUB_FLOW_ERROR"
    assert await fm.children(run.id) == []


async def test_one_refused_child_takes_its_sisters_with_it(fm):
    """The second item breaks a limit of the child's context: no child is left behind."""
    async with FlowHarness(HANDLERS, limits=Limits(value_bytes_max=50)) as fm:
        fm.apply(CHILD)
        config = {"forEach": "items.list", "itemKey": "item"}
        input = {"type": "template", "template": {"text": "${a}${b}"}}
        fm.apply(doc(sub_flow("s", "child", config=config, input=input)))
        parent = await fm.create("f", {"items": {"list": [1, 2]}, "a": "x" * 30, "b": "y" * 30})
        run = await fm.run(parent.id)
        assert run.error["code"] == "SUB_FLOW_ERROR"
        assert await fm.children(parent.id) == []
        assert (await fm.history(parent.id))[0].error["code"] == "SUB_FLOW_ERROR"


async def test_fan_out_gives_the_children_in_the_order_of_the_items(fm):
    fm.apply(doc(sub_flow("s", "child", config={"forEach": "items", "itemKey": "it"}, out="r")))
    parent = await fm.create("f", {"items": ["a", "b", "c"]})
    await fm.settle()
    run = await fm.get(parent.id)
    seen = [(c["context"]["it"], c["context"]["index"]) for c in run.context["r"]]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]


@pytest.mark.parametrize("wait", [True, False])
async def test_a_fan_out_over_nothing_is_an_empty_list_at_once(fm, wait):
    config = {"forEach": "items", "waitForCompletion": wait}
    fm.apply(doc(sub_flow("s", "child", config=config, out="r")))
    run = await fm.run((await fm.create("f", {"items": []})).id)
    assert (run.status, run.context["r"]) == ("completed", [])


@pytest.mark.parametrize(
    ("context", "code"),
    [({}, "INPUT_ERROR"), ({"items": 5}, "INPUT_ERROR"), ({"items": {}}, "INPUT_ERROR")],
)
async def test_a_fan_out_over_no_list_fails_at_once(fm, context, code):
    fm.apply(doc(sub_flow("s", "child", config={"forEach": "items"}, fail="x"), step("x")))
    run = await fm.run((await fm.create("f", context)).id)
    assert (run.status, run.error["code"]) == ("failed", code)


async def test_fire_and_forget_goes_on_at_once_and_the_child_runs(fm):
    config = {"waitForCompletion": False}
    fm.apply(doc(sub_flow("s", "child", config=config, out="r")))
    parent = await fm.create("f")
    await fm.settle()
    (child,) = await fm.children(parent.id)
    assert (await fm.get(parent.id)).context["r"] == {
        "childExecutionId": child.id,
        "flowId": "child",
        "mode": "fire-and-forget",
    }
    assert child.status == "completed"


async def test_a_forgotten_child_is_not_taken_for_the_one_that_is_waited_for(fm):
    forget = {"waitForCompletion": False}
    fm.apply(doc(sub_flow("a", "child", config=forget, next="b"), sub_flow("b", "waits", out="r")))
    parent = await fm.create("f")
    await fm.settle()
    assert (await fm.get(parent.id)).status == "waiting"
    await fm.send_event("go")
    await fm.settle()
    run = await fm.get(parent.id)
    assert run.status == "completed"
    assert run.context["r"]["flowId"] == "waits"


async def test_a_child_made_by_hand_does_not_end_its_parents_wait(fm):
    fm.apply(doc(sub_flow("s", "waits", out="r")))
    parent = await fm.create("f")
    await fm.settle()
    other = await fm.create("child", parent=parent.id)
    await fm.run(other.id)
    assert (await fm.get(parent.id)).status == "waiting"
    await fm.send_event("go")
    await fm.settle()
    assert (await fm.get(parent.id)).context["r"]["flowId"] == "waits"


async def test_a_parent_waits_again_for_a_child_that_is_retried_by_hand(fm):
    flaky = Tally(failures=1)
    async with FlowHarness({**HANDLERS, "flaky": flaky}) as fm:
        fm.apply(doc(step("t", "flaky", next="w"), wait_for_event("w"), id="mixed"))
        fm.apply(doc(sub_flow("s", "mixed", config={"forEach": "items"}, out="r")))
        parent = await fm.create("f", {"items": [1]})
        await fm.settle()
        assert (await fm.get(parent.id)).status == "failed"
        second = await fm.create("f", {"items": [1, 2]})
        await fm.engine.run_builtins()
        one, two = await fm.children(second.id)
        await fm.run(one.id)
        assert (await fm.get(one.id)).status == "failed"
        await fm.retry(one.id)
        await fm.run(one.id)
        await fm.run(two.id)
        assert (await fm.get(two.id)).status == "failed"
        assert (await fm.get(second.id)).status == "waiting", "the retried child has not ended"
        await fm.send_event("go")
        await fm.settle()
        run = await fm.get(second.id)
        assert (run.status, run.error["code"]) == ("failed", "CHILD_FAILED")
        statuses = [c["status"] for c in run.error["details"]["children"]]
        assert statuses == ["failed"]


async def test_cancelling_a_child_tells_the_parent(fm):
    fm.apply(doc(sub_flow("s", "waits", fail="mend"), step("mend", out="saw")))
    parent = await fm.create("f")
    await fm.settle()
    (child,) = await fm.children(parent.id)
    await fm.cancel(child.id)
    run = await fm.run(parent.id)
    assert run.status == "completed"
    assert run.context["saw"]["_error"]["code"] == "CHILD_FAILED"
    assert run.context["saw"]["_error"]["details"]["status"] == "cancelled"


async def test_cancel_goes_down_a_chain_and_ends_everything_once(fm):
    fm.apply(doc(sub_flow("s", "waits"), id="l2"))
    fm.apply(doc(sub_flow("s", "l2", fail="x"), step("x"), id="l1"))
    fm.apply(doc(sub_flow("s", "l1", fail="x"), step("x")))
    top = await fm.create("f")
    await fm.settle()
    run = await fm.cancel(top.id, reason="enough")
    chain = [run]
    while children := await fm.children(chain[-1].id):
        chain.extend(children)
    assert [c.status for c in chain] == ["cancelled"] * 4
    assert [c.cancellation["source"] for c in chain] == ["user", "parent", "parent", "parent"]
    await fm.settle()
    assert [(await fm.get(c.id)).status for c in chain] == ["cancelled"] * 4
    for cancelled in chain:
        types = [e["type"] for e in await fm.events(cancelled.id)]
        assert types.count("execution.cancelled") == 1
        assert "execution.failed" not in types


async def test_cancelling_the_middle_of_a_chain_cancels_below_and_tells_above(fm):
    fm.apply(doc(sub_flow("s", "waits"), id="middle"))
    fm.apply(doc(sub_flow("s", "middle", fail="mend"), step("mend")))
    top = await fm.create("f")
    await fm.settle()
    (middle,) = await fm.children(top.id)
    (leaf,) = await fm.children(middle.id)
    await fm.cancel(middle.id, source=CancelSource.ADMIN)
    await fm.settle()
    assert (await fm.get(top.id)).status == "completed"
    assert (await fm.get(leaf.id)).cancellation["source"] == "parent"


async def test_a_flow_that_starts_itself_ends_at_the_depth_limit(fm):
    fm.apply(doc(sub_flow("s", "f")))
    top = await fm.create("f")
    await fm.settle()
    run = await fm.get(top.id)
    assert (run.status, run.error["code"]) == ("failed", "CHILD_FAILED")
    depth, last = 0, run
    while children := await fm.children(last.id):
        (last,) = children
        depth += 1
    assert depth == DEPTH_MAX
    assert last.error["code"] == "SUB_FLOW_ERROR"


async def test_the_contexts_of_children_are_held_to_the_limit_of_a_value():
    big = doc(step("c", input={"type": "static", "value": "x" * 60}, out="v"), id="big")
    for out, status in ((None, "completed"), ("r", "failed")):
        async with FlowHarness(HANDLERS, limits=Limits(value_bytes_max=200)) as fm:
            fm.apply(big)
            input = {"type": "static", "value": {}}
            config = {"forEach": "items"}
            fm.apply(doc(sub_flow("s", "big", config=config, input=input, out=out)))
            run = await fm.run((await fm.create("f", {"items": [1, 2, 3]})).id)
            assert run.status == status
            if status == "failed":
                assert run.error["code"] == "CONTEXT_VALUE_TOO_LARGE"
            else:
                (entry,) = await fm.history(run.id)
                assert [c["context"] for c in entry.output] == [None] * 3


async def test_retrying_a_child_whose_parent_has_ended_leaves_the_parent_alone(fm):
    fm.apply(doc(sub_flow("s", "waits")))
    parent = await fm.create("f")
    await fm.settle()
    (child,) = await fm.children(parent.id)
    await fm.cancel(parent.id)
    await fm.retry(child.id)
    await fm.settle()
    await fm.send_event("go")
    assert (await fm.get(child.id)).status == "completed"
    assert (await fm.get(parent.id)).status == "cancelled"


async def test_a_sub_flow_step_is_retried_with_new_children(fm):
    retry = {"maxAttempts": 2, "backoffMs": 0}
    fm.apply(doc(sub_flow("s", "fails", retry=retry)))
    parent = await fm.create("f")
    await fm.settle()
    assert len(await fm.children(parent.id)) == 3
    history = await fm.history(parent.id)
    assert [(h.seq, h.attempt, h.outcome) for h in history] == [
        (1, 0, "failure"),
        (2, 1, "failure"),
        (3, 2, "failure"),
    ]


async def test_a_parked_parent_cannot_be_resumed_by_hand(fm):
    fm.apply(doc(sub_flow("s", "waits")))
    parent = await fm.create("f")
    await fm.settle()
    with pytest.raises(Conflict) as refusal:
        await fm.resume(parent.id)
    assert refusal.value.code == "NOT_WAITING"


async def test_input_that_is_no_object_fails_at_once(fm):
    fm.apply(doc(sub_flow("s", "child", input={"type": "static", "value": [1]})))
    run = await fm.run((await fm.create("f")).id)
    assert run.error["code"] == "INPUT_ERROR"


async def test_a_child_inherits_tenant_and_priority(fm):
    fm.apply(doc(sub_flow("s", "child")))
    parent = await fm.create("f", tenant_id="acme", priority="high")
    await fm.settle()
    (child,) = await fm.children(parent.id)
    assert (child.tenant_id, child.priority) == ("acme", "high")
