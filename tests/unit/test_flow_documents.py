"""Flow documents: what is read, what is refused, and where it says so."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmonkeyd.documents.flow import edges, flow_digest, parse_flow, parse_text
from flowmonkeyd.errors import Invalid
from flowmonkeyd.model import Flow, HandlerRef, RetryPolicy, Selector, Step, Transitions

CONTRACT = {
    "id": "order", "version": "1.0.0", "name": "Order", "initialStepId": "validate",
    "steps": {
        "validate": {
            "id": "validate", "type": "validate-order", "config": {"a": [1]},
            "input": {"type": "key", "key": "order"}, "outputKey": "validated",
            "retry": {"maxAttempts": 2, "backoffMs": 100, "backoffMultiplier": 2,
                      "maxBackoffMs": 60000, "retryOn": ["HTTP_ERROR"]},
            "timeoutMs": 30000,
            "transitions": {"onSuccess": "charge", "onFailure": "reject", "onResume": "charge"},
        },
        "charge": {"id": "charge", "type": "acme/charge@^1.2", "input": {"type": "full"}},
        "reject": {"id": "reject", "type": "reject", "name": "No", "input": {"type": "full"}},
    },
}  # fmt: skip


def _step(**fields):
    return {"id": "a", "type": "x", "input": {"type": "full"}, **fields}


def _flow(a=None, /, **fields):
    return {
        "id": "f", "version": "1.0.0", "initialStepId": "a",
        "steps": {"a": _step() if a is None else a}, **fields,
    }  # fmt: skip


def _builtin(kind, config, **steps):
    step = {"id": "a", "type": kind, "config": config}
    return _flow(steps={"a": step, **{key: _step(id=key) for key in steps}})


def check_flow(document, *expected):
    """The document is refused with these (path, words of the message) in this order."""
    with pytest.raises(Invalid) as caught:
        parse_flow(document)
    found = [(problem.path, problem.message) for problem in caught.value.problems]
    assert [path for path, _ in found] == [path for path, _ in expected], found
    for (_, message), (_, words) in zip(found, expected, strict=True):
        assert words in message
    assert caught.value.code == "INVALID"
    assert caught.value.message.endswith(f": {len(expected)} problem{'s' * (len(expected) > 1)}")


def test_the_flow_of_the_contract_is_read():
    flow, warnings = parse_flow(CONTRACT)
    assert warnings == ()
    assert flow == Flow(
        id="order",
        version="1.0.0",
        initial_step_id="validate",
        name="Order",
        document=CONTRACT,
        steps={
            "validate": Step(
                id="validate",
                handler=HandlerRef("validate-order"),
                input=Selector("key", "order"),
                config={"a": [1]},
                output_key="validated",
                retry=RetryPolicy(2, 100, 2.0, 60_000, frozenset({"HTTP_ERROR"})),
                timeout_ms=30_000,
                transitions=Transitions("charge", "reject", "charge"),
            ),
            "charge": Step("charge", HandlerRef("acme/charge", "^1.2"), Selector("full")),
            "reject": Step("reject", HandlerRef("reject"), Selector("full"), name="No"),
        },
    )


def test_json_and_yaml_of_one_flow_are_the_same_flow():
    expected = parse_flow(CONTRACT)
    for text in (json.dumps(CONTRACT), json.dumps(CONTRACT).encode(), yaml.safe_dump(CONTRACT)):
        assert parse_flow(text) == expected


@pytest.mark.parametrize(
    ("written", "selector"),
    [
        ({"type": "key", "key": "k"}, Selector("key", "k")),
        ({"type": "keys", "keys": ["a", "b"]}, Selector("keys", ["a", "b"])),
        ({"type": "path", "path": "a.0"}, Selector("path", "a.0")),
        ({"type": "template", "template": {"x": "${y}"}}, Selector("template", {"x": "${y}"})),
        ({"type": "full"}, Selector("full")),
        ({"type": "static", "value": None}, Selector("static", None)),
    ],
)
def test_each_selector_is_read(written, selector):
    flow, _ = parse_flow(_flow(_step(input=written)))
    assert flow.steps["a"].input == selector


def test_fields_for_people_and_drawings_are_accepted():
    more = {
        "name": "N", "description": "D", "tags": ["t"], "status": "draft",
        "visual": {"nodes": {}}, "metadata": {"x": 1},
    }  # fmt: skip
    flow, _ = parse_flow(_flow(**more))
    assert (flow.name, flow.description) == ("N", "D")


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        ([], "$", "should be an object, not a list"),
        (7, "$", "should be an object, not a number"),
        (_flow(colour="red"), "$.colour", "unknown field"),
        (_flow(id="a b"), "$.id", "form"),
        (_flow(id="a" * 129), "$.id", "form"),
        (_flow(id=""), "$.id", "form"),
        (_flow(id="a\n"), "$.id", "form"),
        (_flow(version=1), "$.version", "should be text, not a number"),
        (_flow(version="1.0"), "$.version", "not a SemVer version"),
        (_flow(initialStepId="b"), "$.initialStepId", "there is no step 'b'"),
        (_flow(steps=[]), "$.steps", "should be an object, not a list"),
        (_flow(steps={"a": None}), "$.steps.a", "should be an object, not null"),
        (_flow(status="new"), "$.status", "should be draft, published or archived"),
        (_flow(metadata={"x": float("inf")}), "$.metadata.x", "not a JSON number"),
        (_flow(metadata={"x": {1}}), "$.metadata.x", "not a JSON value"),
        (_flow(metadata={1: 2}), "$.metadata", "not text"),
        (_flow(metadata={"x": "\ud800"}), "$.metadata.x", "surrogate"),
        (_flow(metadata={"x": "x" * 2**20}), "$", "more than 1048576 bytes"),
        (_flow(_step(id="b")), "$.steps.a.id", "must equal its key 'a', not 'b'"),
        (_flow(_step(colour=1)), "$.steps.a.colour", "unknown field"),
        (_flow(_step(type="a b")), "$.steps.a.type", "form"),
        (_flow(_step(type="a/b/c")), "$.steps.a.type", "form"),
        (_flow(_step(type="a@")), "$.steps.a.type", "form"),
        (_flow(_step(type="a@latest")), "$.steps.a.type", "'latest' is not a version or range"),
        (_flow(_step(type="delay@1", config={"ms": 1})), "$.steps.a.type", "built in"),
        (_flow(_step(config=[])), "$.steps.a.config", "should be an object, not a list"),
        (_flow({"id": "a", "type": "x"}), "$.steps.a.input", "is required"),
        (_flow(_step(input=None)), "$.steps.a.input", "is required"),
        (_flow(_step(input="full")), "$.steps.a.input", "should be an object, not text"),
        (_flow(_step(input={})), "$.steps.a.input", "needs a type: key, keys, path"),
        (_flow(_step(input={"type": "all"})), "$.steps.a.input", "none of key, keys, path"),
        (_flow(_step(input={"type": "key"})), "$.steps.a.input.key", "is required"),
        (_flow(_step(input={"type": "key", "key": 1})), "$.steps.a.input.key", "text"),
        (_flow(_step(input={"type": "key", "key": ""})), "$.steps.a.input.key", "empty"),
        (_flow(_step(input={"type": "keys", "keys": "a"})), "$.steps.a.input.keys", "a list"),
        (_flow(_step(input={"type": "keys", "keys": [1]})), "$.steps.a.input.keys[0]", "text"),
        (_flow(_step(input={"type": "template"})), "$.steps.a.input.template", "is required"),
        (_flow(_step(input={"type": "static"})), "$.steps.a.input.value", "is required"),
        (_flow(_step(input={"type": "full", "x": 1})), "$.steps.a.input.x", "unknown field"),
        (_flow(_step(outputKey="a..b")), "$.steps.a.outputKey", "form"),
        (_flow(_step(outputKey="")), "$.steps.a.outputKey", "form"),
        (_flow(_step(timeoutMs=0)), "$.steps.a.timeoutMs", "at least 1"),
        (_flow(_step(timeoutMs=60_001)), "$.steps.a.timeoutMs", "at most 60000"),
        (_flow(_step(timeoutMs=1.5)), "$.steps.a.timeoutMs", "a whole number"),
        (_flow(_step(timeoutMs=True)), "$.steps.a.timeoutMs", "a whole number, not true"),
        (_flow(_step(retry=3)), "$.steps.a.retry", "should be an object, not a number"),
        (_flow(_step(retry={"maxAttempts": -1})), "$.steps.a.retry.maxAttempts", "at least 0"),
        (_flow(_step(retry={"maxAttempts": 1001})), "$.steps.a.retry.maxAttempts", "at most 1000"),
        (_flow(_step(retry={"backoffMs": "1"})), "$.steps.a.retry.backoffMs", "not text"),
        (_flow(_step(retry={"backoffMs": 10**12})), "$.steps.a.retry.backoffMs", "at most"),
        (_flow(_step(retry={"maxBackoffMs": -1})), "$.steps.a.retry.maxBackoffMs", "at least"),
        (_flow(_step(retry={"backoffMultiplier": 0})), "$.steps.a.retry.backoffMultiplier", "1"),
        (_flow(_step(retry={"retryOn": "X"})), "$.steps.a.retry.retryOn", "a list, not text"),
        (
            _flow(_step(retry={"backoffMultiplier": "2"})),
            "$.steps.a.retry.backoffMultiplier",
            "a number, not text",
        ),
        (
            _flow(_step(retry={"backoffMultiplier": True})),
            "$.steps.a.retry.backoffMultiplier",
            "a number, not true",
        ),
        (_flow(_step(retry={"delay": 1})), "$.steps.a.retry.delay", "unknown field"),
        (_flow(_step(transitions=[])), "$.steps.a.transitions", "an object, not a list"),
        (_flow(_step(transitions={"next": "a"})), "$.steps.a.transitions.next", "unknown field"),
        (_flow(_step(transitions={"onSuccess": "b"})), "$.steps.a.transitions.onSuccess", "'b'"),
        (_flow(_step(transitions={"onFailure": "b"})), "$.steps.a.transitions.onFailure", "'b'"),
        (_flow(_step(transitions={"onResume": "b"})), "$.steps.a.transitions.onResume", "'b'"),
        (_flow(_step(transitions={"onResume": 1})), "$.steps.a.transitions.onResume", "text"),
    ],
)
def test_a_wrong_document_is_refused_with_the_place_and_the_reason(document, path, words):
    check_flow(document, (path, words))


def _when(**condition):
    return {"conditions": [{"path": "p", "op": "eq", "target": None, **condition}]}


@pytest.mark.parametrize(
    ("kind", "config", "path", "words"),
    [
        ("delay", {}, "", "give at least one of ms, seconds, minutes, hours"),
        ("delay", {"ms": -1}, ".ms", "at least 0"),
        ("delay", {"hours": "1"}, ".hours", "a number, not text"),
        ("delay", {"days": 1}, ".days", "unknown field"),
        ("delay", {"hours": 300_000}, "", "waits longer than"),
        ("conditional", {}, ".conditions", "is required"),
        ("conditional", {"conditions": []}, ".conditions", "should not be empty"),
        ("conditional", {"conditions": [1]}, ".conditions[0]", "an object, not a number"),
        ("conditional", {"conditions": [{"path": "p", "op": "eq"}]}, ".conditions[0].target",
         "is required"),
        ("conditional", _when(op="equals"), ".conditions[0].op", "should be eq, neq, gt"),
        ("conditional", _when(target="b"), ".conditions[0].target", "there is no step 'b'"),
        ("conditional", _when(path=""), ".conditions[0].path", "should not be empty"),
        ("conditional", _when(op="matches", value="("), ".conditions[0]", "not a pattern of RE2"),
        ("conditional", _when(op="matches", value=r"(a)\1"), ".conditions[0]", "RE2"),
        ("conditional", _when(op="matches", value=5), ".conditions[0]", "RE2"),
        ("conditional", {**_when(), "default": "b"}, ".default", "there is no step 'b'"),
        ("switch", {"path": "p"}, ".cases", "is required"),
        ("switch", {"path": "p", "cases": {}}, ".cases", "should not be empty"),
        ("switch", {"path": "p", "cases": {"x": "b"}}, ".cases.x", "there is no step 'b'"),
        ("switch", {"path": "p", "cases": {"x y": "b"}}, '.cases["x y"]', "there is no step 'b'"),
        ("switch", {"path": "p", "cases": {"x": 1}}, ".cases.x", "text, not a number"),
        ("switch", {"cases": {"x": None}}, ".path", "is required"),
        ("sub-flow", {}, ".flowId", "is required"),
        ("sub-flow", {"flowId": "@1"}, ".flowId", "names no flow"),
        ("sub-flow", {"flowId": "f", "waitForCompletion": "no"}, ".waitForCompletion", "true or"),
        ("sub-flow", {"flowId": "f", "metadata": []}, ".metadata", "an object, not a list"),
        ("sub-flow", {"flowId": "f", "tenantId": 1}, ".tenantId", "text, not a number"),
        ("wait-event", {}, ".event", "is required"),
        ("wait-event", {"event": "e", "filter": []}, ".filter", "an object, not a list"),
        ("wait-event", {"event": "e", "maxWaitMs": 0}, ".maxWaitMs", "at least 1"),
        ("wait-event", {"event": "e", "maxWaitMs": 10**13}, ".maxWaitMs", "at most"),
    ],
)  # fmt: skip
def test_the_configuration_of_a_built_in_step_is_checked(kind, config, path, words):
    check_flow(_builtin(kind, config), (f"$.steps.a.config{path}", words))


_OPERATORS = (
    "eq neq gt gte lt lte in nin contains startsWith endsWith exists notExists matches".split()
)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("delay", {"ms": 0}),
        ("delay", {"ms": 1, "seconds": 2, "minutes": 3, "hours": 4}),
        *(("conditional", _when(op=op, value="a.*")) for op in _OPERATORS),
        ("switch", {"path": "p", "cases": {"x": None}, "default": None}),
        ("sub-flow", {"flowId": "f"}),
        ("sub-flow", {"flowId": "f@1.0.0", "waitForCompletion": False, "tenantId": "t"}),
        ("wait-event", {"event": "e", "filter": {"id": 1}, "maxWaitMs": 1000}),
    ],
)
def test_a_built_in_step_needs_no_input(kind, config):
    flow, warnings = parse_flow(_builtin(kind, config))
    assert flow.steps["a"].input == Selector("full")
    assert warnings == ()


def test_every_problem_is_told_at_once_whatever_else_is_wrong():
    check_flow(
        {
            "id": 5,
            "version": "one",
            "initialStepId": "start",
            "steps": {
                "a": _step(id="b", retry={"maxAttempts": -1}, transitions={"onSuccess": "c"}),
                "input": {"id": "input", "type": "x@?", "input": {"type": "key", "kee": "k"}},
                "s": {"id": "s", "type": "switch", "config": {"path": 1, "cases": {"x": "d"}}},
                "odd name": 3,
            },
            "extra": 1,
        },
        ("$.id", "should be text, not a number"),
        ("$.steps.a.retry.maxAttempts", "at least 0"),
        ("$.steps.input.input.key", "is required"),
        ("$.steps.input.input.kee", "unknown field"),
        ('$.steps["odd name"]', "should be an object, not a number"),
        ("$.extra", "unknown field"),
        ("$.version", "SemVer"),
        ("$.initialStepId", "no step 'start'"),
        ("$.steps.a.id", "must equal its key"),
        ("$.steps.a.transitions.onSuccess", "no step 'c'"),
        ("$.steps.input.type", "'?' is not a version or range"),
        ("$.steps.s.config.path", "should be text"),
        ("$.steps.s.config.cases.x", "no step 'd'"),
    )


def test_missing_fields_are_all_named():
    check_flow(
        {}, *((f"$.{name}", "is required") for name in ("id", "version", "initialStepId", "steps"))
    )
    check_flow(_flow(steps={}), ("$.steps", "should not be empty"), ("$.initialStepId", "no step"))


def test_a_value_in_the_wrong_place_is_not_quoted():
    """It may be a secret."""
    with pytest.raises(Invalid) as caught:
        parse_flow(_flow(_step(timeoutMs="hunter2", outputKey=["hunter2"], hunter=1)))
    assert "hunter2" not in repr(caught.value.problems) + caught.value.message


def test_steps_are_limited():
    steps = {f"s{n}": _step(id=f"s{n}") for n in range(1001)}
    check_flow(_flow(initialStepId="s0", steps=steps), ("$.steps", "at most 1000"))
    del steps["s1000"]
    parse_flow(_flow(initialStepId="s0", steps=steps))


def test_problems_are_limited():
    with pytest.raises(Invalid) as caught:
        parse_flow(_flow(tags=[1] * 5000))
    assert caught.value.message == "cannot accept the flow 'f': 5000 problems"
    assert len(caught.value.problems) == 1000


def check_warnings(document, *expected, known=None):
    _, warnings = parse_flow(document, handlers_known=known)
    assert [(w.path, w.severity) for w in warnings] == [(path, "warning") for path in expected]


def test_steps_that_nothing_leads_to_are_warned_of():
    check_warnings(
        _flow(steps={"a": _step(), "b": _step(id="b", transitions={"onSuccess": "c"}),
                     "c": _step(id="c", transitions={"onFailure": "a"})}),
        "$.steps.b", "$.steps.c",
    )  # fmt: skip


@pytest.mark.parametrize("way", ["onSuccess", "onFailure", "onResume"])
def test_every_transition_leads_somewhere(way):
    check_warnings(_flow(steps={"a": _step(transitions={way: "b"}), "b": _step(id="b")}))


def test_targets_of_built_in_steps_lead_somewhere():
    cases = {"path": "p", "cases": {"x": "b", "y": None}, "default": "c"}
    check_warnings(_builtin("switch", cases, b=1, c=1))
    check_warnings(_builtin("conditional", {**_when(target="b"), "default": "c"}, b=1, c=1))
    check_warnings(_builtin("conditional", _when(target="b"), b=1, c=1), "$.steps.c")


def test_steps_without_a_handler_are_warned_of():
    asked = []

    def known(ref):
        asked.append(ref)
        return ref.type == "reject"

    check_warnings(CONTRACT, "$.steps.validate.type", "$.steps.charge.type", known=known)
    assert asked[1] == HandlerRef("acme/charge", "^1.2")


def test_edges_tell_every_way_and_every_end():
    flow, _ = parse_flow(CONTRACT)
    assert edges(flow) == [
        ("validate", "success", "charge"),
        ("validate", "resume", "charge"),
        ("validate", "failure", "reject"),
        ("charge", "success", None),
        ("reject", "success", None),
    ]
    flow, _ = parse_flow(
        _builtin("switch", {"path": "p", "cases": {"x": "b"}, "default": None}, b=1)
    )
    assert edges(flow) == [
        ("a", "cases.x", "b"),
        ("a", "default", None),
        ("b", "success", None),
    ]


def test_the_digest_is_of_the_meaning():
    backwards = json.loads(json.dumps(CONTRACT), object_pairs_hook=lambda p: dict(reversed(p)))
    assert list(backwards) != list(CONTRACT)
    assert flow_digest(backwards) == flow_digest(CONTRACT)
    assert flow_digest(parse_text(yaml.safe_dump(CONTRACT))) == flow_digest(CONTRACT)
    other = copy.deepcopy(CONTRACT)
    other["steps"]["validate"]["config"]["a"] = [2]
    assert flow_digest(other) != flow_digest(CONTRACT)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _paths(value, path=()):
    yield path
    for key in (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield from _paths(value[key], (*path, key))


_WHOLE = _builtin("switch", {"path": "p", "cases": {"x": "b"}, "default": None}, b=1)
_WHOLE["steps"]["validate"] = CONTRACT["steps"]["validate"]
_WHOLE["steps"]["if"] = {
    "id": "if",
    "type": "conditional",
    "config": _when(op="matches", value="a"),
}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([path for path in _paths(_WHOLE) if path]), _ANY)
def test_any_value_anywhere_is_read_or_refused_and_never_anything_else(path, value):
    document = copy.deepcopy(_WHOLE)
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    try:
        parse_flow(document)
    except Invalid:
        return
    json.dumps(document, allow_nan=False)
