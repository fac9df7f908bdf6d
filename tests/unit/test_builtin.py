"""The built-in step types: the 14 operators, conditional, switch, delay, wait-event, sub-flow."""

import pytest

from flowmonkeyd.builtin import CHILDREN_MAX, keys_needed, run
from flowmonkeyd.model import NO_VALUE, HandlerRef, Outcome, Selector, Step, WaitKind

NOW = 1000


def result(kind, config, values=None, given=NO_VALUE):
    step = Step("s", HandlerRef(kind), Selector("full"), config)
    return run(step, values or {}, given, NOW)


def matched(op, actual, value):
    values = {} if actual is NO_VALUE else {"v": actual}
    config = {"conditions": [{"path": "v", "op": op, "value": value, "target": "yes"}]}
    return result("conditional", {**config, "default": "no"}, values).next_step == "yes"


@pytest.mark.parametrize(
    ("op", "actual", "value", "yes"),
    [
        ("eq", 1, 1, True),
        ("eq", 1, 1.0, True),
        ("eq", 1, True, False),
        ("eq", "1", 1, False),
        ("eq", None, None, True),
        ("eq", NO_VALUE, None, False),
        ("eq", {"a": [1]}, {"a": [1]}, True),
        ("neq", 1, 2, True),
        ("neq", 1, 1, False),
        ("neq", NO_VALUE, 1, True),
        ("gt", 2, 1, True),
        ("gt", 1, 1, False),
        ("gt", "b", "a", True),
        ("gt", "10", 9, False),  # upstream 8.2.23: text and numbers by host coercion
        ("gt", True, 0, False),
        ("gt", NO_VALUE, 0, False),
        ("gt", None, -1, False),
        ("gte", 1, 1, True),
        ("gte", 0.5, 1, False),
        ("lt", 1, 2, True),
        ("lt", "a", 1, False),
        ("lt", NO_VALUE, 1, False),
        ("lte", 1, 1, True),
        ("lte", [1], [2], False),
        ("in", 1, [1, 2], True),
        ("in", 1, [True], False),
        ("in", 1, "1", False),
        ("in", {"a": 1}, [{"a": 1}], True),
        ("nin", 3, [1, 2], True),
        ("nin", 1, [1, 2], False),
        ("nin", 1, "x", False),
        ("contains", "abc", "b", True),
        ("contains", "abc", 1, False),
        ("contains", [1, 2], 2, True),
        ("contains", {"a": 1}, "a", False),
        ("contains", NO_VALUE, "a", False),
        ("startsWith", "abc", "ab", True),
        ("startsWith", ["ab"], "ab", False),
        ("endsWith", "abc", "bc", True),
        ("endsWith", "abc", "ab", False),
        ("exists", 0, None, True),
        ("exists", "", None, True),
        ("exists", False, None, True),
        ("exists", None, None, False),
        ("exists", NO_VALUE, None, False),
        ("notExists", None, None, True),
        ("notExists", NO_VALUE, None, True),
        ("notExists", 0, None, False),
        ("matches", "abc", "^a.c$", True),
        ("matches", "xabcx", "abc", True),
        ("matches", "abc", "^b", False),
        ("matches", 5, "5", False),
        ("matches", "a" * 5000 + "!", "^(a+)+$", False),  # linear, or this never ends
    ],
)
def test_operators(op, actual, value, yes):
    assert matched(op, actual, value) == yes


CASES = {"one": "a", "404": "b", "true": "c", "null": "d", "undefined": "e", "1.5": "f"}


@pytest.mark.parametrize(
    ("actual", "target"),
    [
        ("one", "a"),
        (404, "b"),
        ("404", "b"),
        (True, "c"),
        (None, "d"),
        (NO_VALUE, "e"),
        (1.5, "f"),
        ("constructor", "other"),  # upstream 8.2.23: breaks it there
        ("__class__", "other"),
        ([1], "other"),
    ],
)
def test_switch_goes_by_the_text_of_the_value(actual, target):
    values = {} if actual is NO_VALUE else {"v": actual}
    config = {"path": "v", "cases": CASES, "default": "other"}
    answer = result("switch", config, values)
    assert answer.next_step == target
    shown = None if actual is NO_VALUE else actual
    assert answer.output == {"path": "v", "value": shown, "target": target}


@pytest.mark.parametrize(
    ("kind", "config", "code"),
    [
        ("conditional", {"conditions": []}, "MISSING_CONDITIONS"),
        ("conditional", {"conditions": [], "default": "x"}, "MISSING_CONDITIONS"),
        (
            "conditional",
            {"conditions": [{"path": "v", "op": "eq", "value": 1, "target": "x"}]},
            "NO_MATCH",
        ),
        ("switch", {"cases": {"a": "b"}}, "MISSING_PATH"),
        ("switch", {"path": "v", "cases": {"a": "b"}}, "NO_MATCH"),
    ],
)
def test_what_cannot_decide_fails_with_its_code(kind, config, code):
    answer = result(kind, config)
    assert answer.outcome is Outcome.FAILURE
    assert (answer.error.code, answer.error.retryable, answer.fatal) == (code, False, False)


def test_the_first_condition_that_holds_wins():
    conditions = [
        {"path": "n", "op": "gt", "value": 10, "target": "big"},
        {"path": "n", "op": "gt", "value": 5, "target": "middle"},
        {"path": "n", "op": "gt", "value": 0, "target": "small"},
    ]
    answer = result("conditional", {"conditions": conditions}, {"n": 7})
    assert answer.next_step == "middle"
    assert answer.output == {"matched": True, "op": "gt", "target": "middle"}


@pytest.mark.parametrize("kind", ["conditional", "switch"])
def test_a_null_default_completes_and_is_not_the_same_as_none(kind):
    config = {
        "conditional": {"conditions": [{"path": "v", "op": "exists", "target": "x"}]},
        "switch": {"path": "v", "cases": {"a": "x"}},
    }[kind]
    answer = result(kind, {**config, "default": None})
    assert (answer.outcome, answer.next_step) == (Outcome.SUCCESS, None)


def test_a_path_goes_into_lists():
    config = {"conditions": [{"path": "a.1.b", "op": "eq", "value": 2, "target": "x"}]}
    assert result("conditional", config, {"a": [0, {"b": 2}]}).next_step == "x"


@pytest.mark.parametrize(
    ("kind", "config", "needed"),
    [
        ("conditional", {"conditions": [{"path": "a.b"}, {"path": "c"}]}, {"a", "c"}),
        ("switch", {"path": "v.w"}, {"v"}),
        ("sub-flow", {"flowId": "f", "forEach": "items.list"}, {"items"}),
        ("sub-flow", {"flowId": "f"}, set()),
        ("delay", {"ms": 1}, set()),
    ],
)
def test_what_a_step_reads_is_known_before_it_runs(kind, config, needed):
    assert keys_needed(Step("s", HandlerRef(kind), Selector("full"), config)) == needed


@pytest.mark.parametrize(
    ("config", "wake_at_ms"), [({"event": "e"}, None), ({"event": "e", "maxWaitMs": 5}, NOW + 5)]
)
def test_wait_event_says_what_it_waits_for(config, wake_at_ms):
    wait = result("wait-event", {**config, "filter": {"a": 1}}).wait
    assert (wait.kind, wait.event, wait.event_filter) == (WaitKind.EVENT, "e", {"a": 1})
    assert wait.wake_at_ms == wake_at_ms


def test_a_fan_out_beyond_its_limit_is_refused():
    values = {"items": list(range(CHILDREN_MAX + 1))}
    config = {"flowId": "f", "forEach": "items"}
    assert result("sub-flow", config, values).error.code == "SUB_FLOW_ERROR"
    at_limit = result("sub-flow", config, {"items": values["items"][:-1]})
    assert len(at_limit.children) == CHILDREN_MAX


@pytest.mark.parametrize("given", [NO_VALUE, None, {}])
def test_a_sub_flow_without_input_starts_with_an_empty_context(given):
    (child,) = result("sub-flow", {"flowId": "f"}, given=given).children
    assert child.context == {}
