"""JSON and YAML text: what becomes of it, and what is said of text that cannot be read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmonkeyd.documents.flow import parse_documents, parse_text
from flowmonkeyd.errors import Invalid


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ('{"a": 1}', [{"a": 1}]),
        (b'\xef\xbb\xbf{"a": 1}', [{"a": 1}]),
        ("{a: 1}", [{"a": 1}]),
        ("a: 1\n---\nb: 2\n---\n", [{"a": 1}, {"b": 2}]),
        ("", []),
        ("# only a comment\n", []),
        ("a: 2024-01-01", [{"a": "2024-01-01"}]),
        ("a: 2024-01-01T10:00:00Z", [{"a": "2024-01-01T10:00:00Z"}]),
        ("a: yes\nb: No\nc: ~\nd:\ne: 'yes'", [{"a": True, "b": False, "c": None, "d": None,
                                                "e": "yes"}]),
        ("a: 1_000\nb: 0x1F\nc: -1.5\nd: .5\ne: +3", [{"a": 1000, "b": 31, "c": -1.5, "d": 0.5,
                                                      "e": 3}]),
        ("1: a\ntrue: b", [{"1": "a", "true": "b"}]),
        ("<<: {a: 1}", [{"<<": {"a": 1}}]),
        ("a: |\n  x\n  y\n", [{"a": "x\ny\n"}]),
        ("- a: 1".replace("- ", ""), [{"a": 1}]),
    ],
)  # fmt: skip
def test_text_becomes_json_values(text, documents):
    found = parse_documents(text)
    assert found == documents
    assert json.dumps(found) == json.dumps(documents), "types count: 1 is not true"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n "b": }', "not JSON: expected value at line 2 column 7"),
        ('{"a": 1} x', "not JSON: trailing characters at line 1 column 10"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ('{"a": "\\ud800"}', "not JSON"),
        ("[1]", "expected an object and found a list"),
        ("7", "expected an object and found a number"),
        ("just text", "expected an object and found text"),
        ("a: [", "not YAML: did not find expected node content at line"),
        ("a: b: c", "at line 1 column 5"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice at line 3 column 1"),
        ("a: &x 1\nb: *x", "anchors and aliases are not supported; write the value out at line 1"),
        ("&x a: 1", "a key must be text"),
        ("? [a]\n: b", "a key must be text at line 1 column 3"),
        ("a: !!python/object/apply:os.system [x]", "is not supported at line 1 column 4"),
        ("a: !!binary aGk=", "is not supported"),
        ("a: 010", "'010' is not a plain number; put it in quotes if it is text"),
        ("a: 12:30:00", "not a plain number"),
        ("a: .inf", "not a plain number"),
        ("a: 0x" + "f" * 5000, "not a plain number"),
        ("a: \x00", "not YAML"),
        (b"a: \xff", "byte 3 is not UTF-8"),
        (" " * 5_000_000, "longer than 4194304 bytes"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper than 64 levels"),
        ("a: " + "[" * 100_000, "nested deeper than 64 levels at line 1 column 68"),
        ("- " * 100_000, "nested deeper than 64 levels"),
        ("{a: " * 100_000, "nested deeper than 64 levels"),
        ("a: 1\n---\n" * 1001, "more than 1000 documents"),
    ],
)
def test_text_that_cannot_be_read_says_why_and_where(text, words):
    with pytest.raises(Invalid) as caught:
        parse_documents(text)
    assert words in caught.value.message
    assert caught.value.message.startswith("cannot read the document: ")
    assert len(caught.value.problems) == 1


def test_an_alias_bomb_is_refused_at_its_first_anchor():
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    with pytest.raises(Invalid, match="anchors and aliases"):
        parse_text("\n".join(lines))


def test_one_document_is_asked_for_and_one_is_taken():
    for text, count in (("", 0), ("a: 1\n---\nb: 2", 2)):
        with pytest.raises(Invalid, match=f"expected one document and found {count}"):
            parse_text(text)


@settings(max_examples=200, deadline=None)
@given(st.text("a:{}[]-&*!?|>#\n \"'1,", max_size=30) | st.binary(max_size=20))
def test_any_text_is_read_or_refused_and_never_anything_else(text):
    try:
        documents = parse_documents(text)
    except Invalid:
        return
    json.dumps(documents, allow_nan=False)
