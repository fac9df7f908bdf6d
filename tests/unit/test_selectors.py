"""Selectors and templates: missing is not null, and copies are copies."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmonkeyd import jsontext
from flowmonkeyd.documents.selectors import get_path, keys_needed, put_path, render, resolve
from flowmonkeyd.model import NO_VALUE, Selector

CONTEXT = {
    "order": {"id": 7, "lines": [{"sku": "a"}, {"sku": "b"}], "note": None, "10": "ten"},
    "zero": 0,
    "empty": "",
    "no": False,
    "null": None,
    "list": [1, [2, 3]],
    "a.b": "dotted",
    " spaced ": "s",
    "text": "${zero}",
    "pi": 3.5,
    "big": 10**20,
}


def check_selector(kind, argument, value, keys):
    selector = Selector(kind, argument)
    found = resolve(selector, CONTEXT)
    assert found == value
    assert type(found) is type(value)
    assert keys_needed(selector) == (None if keys is None else frozenset(keys))


@pytest.mark.parametrize(
    ("kind", "argument", "value", "keys"),
    [
        ("key", "zero", 0, ["zero"]),
        ("key", "empty", "", ["empty"]),
        ("key", "no", False, ["no"]),
        ("key", "null", None, ["null"]),
        ("key", "nothing", NO_VALUE, ["nothing"]),
        ("key", "a.b", "dotted", ["a.b"]),
        ("key", "order.id", NO_VALUE, ["order.id"]),
        (
            "keys",
            ["zero", "null", "nothing"],
            {"zero": 0, "null": None},
            ["zero", "null", "nothing"],
        ),
        ("keys", ["nothing"], {}, ["nothing"]),
        ("keys", [], {}, []),
        ("path", "order.id", 7, ["order"]),
        ("path", "order.lines.1.sku", "b", ["order"]),
        ("path", "order.lines.2.sku", NO_VALUE, ["order"]),
        ("path", "order.lines.-1.sku", NO_VALUE, ["order"]),
        ("path", "order.lines.01.sku", NO_VALUE, ["order"]),
        ("path", "order.lines.\u0661.sku", NO_VALUE, ["order"]),
        ("path", "order.lines." + "9" * 5000, NO_VALUE, ["order"]),
        ("path", "order.lines.length", NO_VALUE, ["order"]),
        ("path", "order.10", "ten", ["order"]),
        ("path", "order.note", None, ["order"]),
        ("path", "order.note.more", NO_VALUE, ["order"]),
        ("path", "zero.more", NO_VALUE, ["zero"]),
        ("path", "text.0", NO_VALUE, ["text"]),
        ("path", "a.b", NO_VALUE, ["a"]),
        ("path", "list.1.0", 2, ["list"]),
        ("path", "order..id", NO_VALUE, ["order"]),
        ("full", None, CONTEXT, None),
        ("static", {"a": "${zero}"}, {"a": "${zero}"}, []),
        ("static", None, None, []),
        ("template", {"a": "${zero}", "b": ["${pi}"]}, {"a": 0, "b": [3.5]}, ["zero", "pi"]),
        ("template", "${nothing}", NO_VALUE, ["nothing"]),
    ],
)
def test_a_selector_finds(kind, argument, value, keys):
    check_selector(kind, argument, value, keys)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        # exactly one placeholder keeps the type
        ("${zero}", 0),
        ("${null}", None),
        ("${order.lines}", [{"sku": "a"}, {"sku": "b"}]),
        ("${nothing}", NO_VALUE),
        ({"a": "${nothing}", "b": "${null}"}, {"b": None}),
        (["${nothing}", "${null}", 1], [None, None, 1]),
        # anything else is text
        ("${zero}${zero}", "00"),
        (" ${zero}", " 0"),
        ("${zero}\n", "0\n"),
        ("<${nothing}>", "<>"),
        ("<${null}>", "<null>"),
        ("<${no}>", "<false>"),
        ("<${pi} ${big}>", "<3.5 100000000000000000000>"),
        ("<${empty}>", "<>"),
        ("<${list}>", "<[1,[2,3]]>"),
        ("<${order.lines.0}>", '<{"sku":"a"}>'),
        # the path is taken as it stands, and what is inserted is not read again
        ("${ spaced }", "s"),
        ("${ zero }", NO_VALUE),
        ("<${ zero }>", "<>"),
        ("${text}", "${zero}"),
        ("<${text}>", "<${zero}>"),
        ("${}", "${}"),
        ("a${}b${zero}", "a${}b0"),
        ("${zero", "${zero"),
        ("$zero {zero} $${zero}", "$zero {zero} $0"),
        # all of JSON but object keys
        ({"${zero}": "${zero}"}, {"${zero}": 0}),
        ([1, 2.5, True, None, {"a": ["${zero}"]}], [1, 2.5, True, None, {"a": [0]}]),
    ],
)
def test_a_template_renders(template, value):
    before = copy.deepcopy(template)
    found = render(template, CONTEXT)
    assert found == value
    assert type(found) is type(value)
    assert template == before


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab${}.0", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab0"), inner, max_size=3),
    max_leaves=8,
)


def _spoil(value):
    """Change everything in a value that can be changed."""
    if isinstance(value, dict):
        for member in value.values():
            _spoil(member)
        value["spoiled"] = True
    elif isinstance(value, list):
        for item in value:
            _spoil(item)
        value.append("spoiled")


@given(
    st.dictionaries(st.sampled_from(["a", "b", "0"]), _JSON),
    st.sampled_from(["a", "a.b", "a.0", "b", "0"]),
    _JSON,
)
def test_editing_an_input_changes_neither_the_context_nor_the_flow(context, path, template):
    for selector in (
        Selector("key", path),
        Selector("keys", [path, "a"]),
        Selector("path", path),
        Selector("full"),
        Selector("static", template),
        Selector("template", {"whole": f"${{{path}}}", "part": template}),
    ):
        before = jsontext.dumps([context, selector.argument])
        _spoil(resolve(selector, context))
        assert jsontext.dumps([context, selector.argument]) == before


@given(st.dictionaries(st.sampled_from(["a", "b", "0", "c"]), _JSON), _JSON, st.text("ab.0"))
def test_the_keys_needed_are_enough(context, template, path):
    for selector in (Selector("template", template), Selector("path", path), Selector("key", "a")):
        needed = keys_needed(selector)
        part = {key: value for key, value in context.items() if key in needed}
        assert resolve(selector, part) == resolve(selector, context)


@pytest.mark.parametrize(
    ("before", "segments", "after"),
    [
        (NO_VALUE, [], 1),
        ({"x": 2}, [], 1),
        (NO_VALUE, ["a", "b"], {"a": {"b": 1}}),
        ({"x": 2}, ["a"], {"x": 2, "a": 1}),
        ({"a": {"x": 2}, "y": 3}, ["a", "b"], {"a": {"x": 2, "b": 1}, "y": 3}),
        ({"a": {"b": {"c": 5}}}, ["a", "b"], {"a": {"b": 1}}),
        ({"a": None}, ["a"], {"a": 1}),
        ({}, ["0"], {"0": 1}),
    ],
)
def test_putting_makes_and_extends_objects_and_changes_none(before, segments, after):
    kept = copy.deepcopy(before)
    assert put_path(before, segments, 1) == after
    if before is not NO_VALUE:
        assert before == kept


@pytest.mark.parametrize(
    ("before", "segments", "through"),
    [
        (None, ["a"], "null"),
        (5, ["a"], "int"),
        ("text", ["a"], "str"),
        ([1], ["0"], "list"),
        ({"a": None}, ["a", "b"], "null"),
        ({"a": {"b": True}}, ["a", "b", "c"], "bool"),
    ],
)
def test_putting_through_what_is_no_object_is_refused(before, segments, through):
    with pytest.raises(ValueError, match=f"inside a {through}"):
        put_path(before, segments, 1)


def test_a_path_walks_what_it_is_given():
    assert get_path({"a": [{"b": 1}]}, "a.0.b") == 1
    assert get_path({"": {"": 2}}, ".") == 2
