"""What reaches stdout: bytes for programs, harmless text for terminals, YAML that reads back."""

from __future__ import annotations

import json

import pytest
import yaml
from flowctl_server import Reply, flowctl, serving
from hypothesis import given
from hypothesis import strategies as st

from flowctl import yamltext
from flowctl.output import cell, duration, neutral


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["yes", "No", "~", "1e5", "0x1", "2026-01-01", "a: b", "- x", "#", "=", "<<"]
    ),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_yaml_reads_back_as_the_same_value(value):
    assert yaml.safe_load(yamltext.dump(value)) == value


def test_yaml_is_readable():
    value = {
        "id": "order",
        "size": 1,
        "none": None,
        "steps": [{"id": "a b", "in": []}, "yes", 1e16],
    }
    assert yamltext.dump(value) == (
        'id: order\nsize: 1\nnone: null\nsteps:\n  - id: a b\n    in: []\n  - "yes"\n  - 1.0e+16\n'
    )
    assert yaml.safe_load(yamltext.dump({"k" * 3000: [1]})) == {"k" * 3000: [1]}


@given(st.text())
def test_neutral_text_has_nothing_that_steers_a_terminal(text):
    shown = neutral(text)
    assert all(
        char.isprintable() or char == "\t" or ord(char) >= 0x300 or char in "\xa0\xad"
        for char in shown
    )
    assert "\x1b" not in shown


NEUTRAL = [
    ("plain é €\t1", "plain é €\t1"),
    ("\x1b]0;title\a", "\\e]0;title\\x07"),
    ("a\r\nb", "a\\r\\nb"),
    ("\x9b2J", "\\x9b2J"),
    ("user\u202etxt.exe", "user\\u202etxt.exe"),
]


@pytest.mark.parametrize(("text", "shown"), NEUTRAL)
def test_control_characters_are_shown(text, shown):
    assert neutral(text) == shown


CELLS = [
    (None, "-"),
    ("", "-"),
    (True, "yes"),
    (0, "0"),
    ({"a": [1]}, '{"a": [1]}'),
    ("a\nb", "a\\nb"),
]


@pytest.mark.parametrize(("value", "text"), CELLS)
def test_cell_is_one_line(value, text):
    assert cell(value) == text


DURATIONS = [(None, None), (0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (125_000, "2 m 5 s")]


@pytest.mark.parametrize(("ms", "text"), [*DURATIONS, (93_784_000, "26 h 3 m")])
def test_duration_is_for_people(ms, text):
    assert duration(ms) == text


RAW = b'{ "items":[{"id":"\xc2\x9b2J\x7f"}],\n "nextCursor":null }\n'


@pytest.mark.parametrize("args", [("-o", "json", "flow", "list"), ("flow", "list", "-o", "json")])
def test_output_option_goes_before_and_after_the_command(daemon, args):
    daemon.put("GET", "/v1/flows?limit=100", Reply(body=RAW))
    assert flowctl(*args).out.encode() == RAW


def test_json_on_a_terminal_says_the_same_without_raw_controls(daemon):
    daemon.put("GET", "/v1/flows?limit=100", Reply(body=RAW))
    out = flowctl("flow", "list", "-o", "json", tty=True).out
    assert "\x9b" not in out
    assert "\x7f" not in out
    assert json.loads(out) == json.loads(RAW)


ROW = {"id": "x", "flowId": "f", "flowVersion": "1", "status": "failed", "stepCount": 1}


@pytest.mark.parametrize(
    ("env", "tty", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_only_on_a_terminal_that_wants_it(daemon, monkeypatch, env, tty, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    daemon.on("GET", "/v1/executions?limit=100", {"items": [ROW], "nextCursor": None})
    assert ("\x1b[31mfailed\x1b[0m" in flowctl("execution", "list", tty=tty).out) is coloured


def test_unpaired_surrogates_and_strange_values_do_not_stop_a_table(daemon):
    body = b'{"items": [{"id": "\\ud800", "version": 7, "name": ["a"]}, {}], "nextCursor": null}'
    daemon.put("GET", "/v1/flows?limit=100", Reply(body=body))
    result = flowctl("flow", "list", "--no-headers")
    assert result.code == 0
    assert result.out.startswith("\\ud800")
