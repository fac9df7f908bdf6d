"""Values are found in whatever form a handler gives them, and nothing else is touched."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmonkeyd.masking import LogMask, Masks, mark
from flowmonkeyd.vault import Value

TOKEN = 's3cr3t/"päss"+word&=%~'
PEM = "-----BEGIN KEY-----\nMIIBVQIBADANBgkqhki\nG9w0BAQEFAASCAT8\n}\n-----END KEY-----\n"
BYTES = bytes(range(0xF0, 0x100)) + b"\0raw\n"
MASKS = Masks(
    {
        "token": Value(TOKEN),
        "pem": Value(PEM),
        "seed": Value(base64.b64encode(BYTES).decode(), is_binary=True),
        "pin": Value("48151623"),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.mark.parametrize(
    ("said", "masked"),
    [
        (f"<{TOKEN}>", "<[secret token]>"),
        (f"{TOKEN}{TOKEN}", "[secret token][secret token]"),
        (json.dumps({"t": TOKEN}), '{"t": "[secret token]"}'),
        (json.dumps({"t": TOKEN}, ensure_ascii=False), '{"t": "[secret token]"}'),
        (json.dumps(json.dumps({"t": TOKEN}, ensure_ascii=False), ensure_ascii=False), None),
        (repr({"t": TOKEN}), "{'t': '[secret token]'}"),
        (f"https://x/?t={quote(TOKEN)}&u=1", "https://x/?t=[secret token]&u=1"),
        (f"https://x/{quote(TOKEN, safe='')}/1", "https://x/[secret token]/1"),
        (quote(TOKEN, safe="").lower(), "[secret token]"),
        (urlencode({"t": TOKEN}), "t=[secret token]"),
        (quote_plus(TOKEN), "[secret token]"),
        (quote(TOKEN, safe="!'()*"), "[secret token]"),
        (TOKEN.encode().hex(), "[secret token]"),
        (TOKEN.encode().hex().upper(), "[secret token]"),
        (f"basic {b64(TOKEN)}", "basic [secret token]"),
        (base64.urlsafe_b64encode(TOKEN.encode()).decode(), "[secret token]"),
        (b64(TOKEN).rstrip("="), "[secret token]"),
        (f"key:\n{PEM}", "key:\n[secret pem]"),
        (PEM.strip(), "[secret pem]"),
        ("  MIIBVQIBADANBgkqhki", "  [secret pem]"),
        (repr(PEM), "'[secret pem]'"),
        (b64(BYTES), "[secret seed]"),
        (BYTES.hex(), "[secret seed]"),
        (repr(BYTES), "b'[secret seed]'"),
        ("pin 48151623!", "pin [secret pin]!"),
    ],
)
def test_a_value_is_found_in_the_forms_that_programs_write(said, masked):
    found = MASKS.text(said)
    assert found == masked if masked is not None else "[secret token]" in found
    assert "päss" not in found


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user:", "üser:1"])
@pytest.mark.parametrize("end", ["", "\n", "!!", "123"])
def test_a_value_within_a_longer_text_is_found_in_its_base64(user, end):
    said = b64(user + TOKEN + end)
    found = MASKS.text(said)
    assert mark("token") in found
    left = found.replace(mark("token"), "")
    assert len(left) <= len(b64(user)) + len(b64(end)) + 4


def test_what_overlaps_leaves_nothing_between():
    masks = Masks({"a": Value("abcdef"), "b": Value("efghij"), "c": Value("secret")})
    assert masks.text("xabcdefghijx") == "x[secret a]x"
    assert masks.text("a secret abcdef") == "a [secret c] [secret a]"


@given(JSON)
def test_a_tree_without_a_value_is_itself(tree):
    assert MASKS.tree(tree) == tree


@given(JSON, st.sampled_from([TOKEN, b64(TOKEN), TOKEN.encode().hex(), "48151623"]), st.text())
def test_a_value_is_found_wherever_it_is_in_a_tree(tree, form, around):
    said = [tree, {"k": [around + form, {form: 1}], around + form: tree}]
    text = json.dumps(MASKS.tree(said), ensure_ascii=False)
    assert form not in text
    assert "[secret " in text


def test_a_number_that_is_a_value_is_masked_and_no_other_is():
    assert MASKS.tree([48151623, 4815162, True, None, 1.5]) == [
        "[secret pin]",
        *[4815162, True, None, 1.5],
    ]


def test_what_is_no_json_is_masked_all_the_same():
    assert MASKS.tree(["\ud800", TOKEN]) == ["\ud800", "[secret token]"]


@pytest.mark.parametrize("size", [16 * 1024 - 3, 16 * 1024])
def test_what_is_left_of_a_value_where_a_text_was_cut_is_masked(size):
    said = ("x" * 16 * 1024)[: size - 10] + TOKEN[:10]
    assert MASKS.text(said).endswith("x[secret token]")
    said = TOKEN[-10:] + "x" * (size - 10)
    assert MASKS.text(said).startswith("[secret token]x")


def lines(*said: str, stream: str = "stdout", other: tuple[str, ...] = ()) -> list[str]:
    kept: list[str] = []
    mask = LogMask(MASKS)
    for text in said:
        mask.add((1, stream, None, text, None), lambda line: kept.append(line[3]))
        for one in other:
            mask.add((1, "stderr", None, one, None), lambda line: None)
    mask.end(lambda line: kept.append(line[3]))
    return kept


@pytest.mark.parametrize("at", range(1, len(TOKEN)))
def test_a_value_that_is_cut_over_two_lines_is_in_neither(at):
    kept = lines("a", f"b {TOKEN[:at]}", f"{TOKEN[at:]} c", "d", other=("between",))
    assert kept == ["a", "b [secret token]", " c", "d"]


def test_the_beginning_of_a_value_before_the_end_is_masked_and_a_letter_of_it_is_not():
    assert lines("ab", f"so far {TOKEN[:8]}") == ["ab", "so far [secret token]"]
    assert lines("s", "so s") == ["s", "so s"]


def test_lines_of_a_value_of_several_lines_are_masked_one_by_one():
    kept = lines(*PEM.split("\n"))
    assert kept == [mark("pem")] * 3 + ["}", mark("pem"), ""]


def test_fields_and_messages_of_the_log_are_masked():
    kept = []
    fields = {"t": TOKEN, "n": {"48151623": [TOKEN]}}
    LogMask(MASKS).add((1, "log", "info", f"is {TOKEN}", fields), kept.append)
    assert kept == [
        (
            *(1, "log", "info", "is [secret token]"),
            {"t": "[secret token]", "n": {"[secret pin]": ["[secret token]"]}},
        )
    ]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_lines_without_a_value_are_kept_as_they_are_and_in_order(said):
    assert lines(*said) == said


def test_a_hostile_text_takes_no_longer_than_its_length_says():
    masks = Masks({"a": Value("a" * 60_000 + "b")})
    text = "a" * 59_000 + "c"
    for _ in range(2):
        assert masks.ends_within(text) is None or masks.text(text)
