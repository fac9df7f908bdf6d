"""The context: limits on every write, sizes that add up, large values apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmonkeyd import jsontext
from flowmonkeyd.context import SPILL_BYTES, Change, Context, depth
from flowmonkeyd.model import Limits, StepError

SMALL = Limits(context_bytes_max=2000, value_bytes_max=1000, keys_max=3, depth_max=3)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def changed(context, sets, limits=Limits(), drops=frozenset()):
    change = context.change(sets, limits, drops)
    assert isinstance(change, Change), change
    return change


@pytest.mark.parametrize(
    ("before", "sets", "code", "limit", "actual"),
    [
        ({}, {"a": "x" * 999}, "CONTEXT_VALUE_TOO_LARGE", 1000, 1001),
        ({}, {"a": [[[[]]]]}, "CONTEXT_NESTING", 3, 4),
        ({"a": 1, "b": 2}, {"c": 3, "d": 4}, "CONTEXT_KEY_LIMIT", 3, 4),
        ({"a": "x" * 900, "b": "y" * 900}, {"c": "z" * 300}, "CONTEXT_SIZE_LIMIT", 2000, None),
    ],
)
def test_a_limit_refuses_with_its_code_and_numbers(before, sets, code, limit, actual):
    context = changed(Context(), before, SMALL).context
    error = context.change(sets, SMALL)
    assert isinstance(error, StepError)
    assert error.code == code
    assert not error.retryable
    assert error.details["limit"] == limit
    assert error.details["actual"] > limit
    if actual is not None:
        assert error.details["actual"] == actual


@pytest.mark.parametrize(
    "sets", [{"a": "x" * 998}, {"a": [[[]]]}, {"a": 1, "b": 2, "c": 3}, {"a": None}]
)
def test_exactly_the_limit_is_allowed(sets):
    assert changed(Context(), sets, SMALL).context.values == sets


def test_replacing_a_value_gives_its_bytes_back():
    context = changed(Context(), {"a": "x" * 900, "b": "y" * 900}, SMALL).context
    assert changed(context, {"a": "z" * 950}, SMALL).context.values["a"] == "z" * 950


def test_a_text_that_is_no_unicode_is_refused():
    error = Context().change({"a": "\ud800"}, Limits())
    assert isinstance(error, StepError)
    assert error.code == "INVALID_RESULT"


def test_a_large_value_is_a_row_of_its_own_and_a_change_beside_it_does_not_write_it():
    large = "x" * SPILL_BYTES
    first = changed(Context(), {"large": large, "small": 1})
    assert set(first.rows) == {"large"}
    assert first.context.inline == {"small": 1}
    unread = Context(first.context.inline, first.context.spilled, {}, first.context.total_bytes)
    second = changed(unread, {"small": 2})
    assert second.rows == {}
    assert second.context.spilled == {"large": len(large) + 2}
    third = changed(second.context, {"large": 1})
    assert third.dropped_rows == {"large"}
    assert third.context.spilled == {}


@given(st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=4), max_size=5))
def test_values_and_sizes_are_those_of_a_plain_dict(steps):
    context, plain = Context(), {}
    for sets in steps:
        context = changed(context, sets).context
        plain.update(sets)
        assert dict(context.values) == plain
        exact = jsontext.size_bytes(plain)
        assert exact <= context.total_bytes <= exact + 2 * len(plain) + 2


@pytest.mark.parametrize(
    ("value", "levels"),
    [(1, 0), ("x", 0), ([], 1), ({}, 1), ([1, [2]], 2), ({"a": {"b": [1]}}, 3), ([[], [[]]], 3)],
)
def test_depth_counts_containers(value, levels):
    assert depth(value) == levels
