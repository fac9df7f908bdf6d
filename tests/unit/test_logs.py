"""What a log line looks like to a person and to a machine, and that nobody can forge one."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from flowmonkeyd import logs

LOG = logging.getLogger("flowmonkeyd.trial")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)


def written(format: logs.Format, *args: object, **kwargs: object) -> str:
    stream = io.StringIO()
    logs.configure(format, "debug", stream)
    LOG.warning(*args, **kwargs)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("format", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("human", io.StringIO, False),
    ],
)
def test_auto_asks_whether_a_person_reads(format, stream, is_json):
    target = stream()
    logs.configure(format, "info", target)
    LOG.info("ready")
    assert target.getvalue().startswith("{") is is_json


@pytest.mark.parametrize(
    ("value", "human", "machine"),
    [
        ("exec-1", "exec-1", "exec-1"),
        (7, "7", 7),
        (0.5, "0.5", 0.5),
        (True, "true", True),
        (None, "null", None),
        ("two words", '"two words"', "two words"),
        ("", '""', ""),
        ('a"b', '"a\\"b"', 'a"b'),
        ("a\nb", "a\\nb", "a\nb"),
        ("a\x1b[2Jb", "a\\x1b[2Jb", "a\x1b[2Jb"),
        (float("inf"), "inf", "inf"),
        (["x"], "['x']", "['x']"),
        ("x" * 2000, "x" * 1000 + "…", "x" * 1000 + "…"),
    ],
)
def test_fields_are_shown_in_both_forms(value, human, machine):
    assert written("human", "said", extra={"task": value}).endswith(f" task={human}\n")
    assert json.loads(written("json", "said", extra={"task": value}))["task"] == machine


def test_a_json_line_says_when_how_bad_who_and_what():
    entry = json.loads(written("json", "step %s failed", "a", extra={"execution": "e1"}))
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "warning",
        "logger": "flowmonkeyd.trial",
        "message": "step a failed",
        "execution": "e1",
    }


def test_a_field_cannot_hide_what_the_line_says():
    entry = json.loads(written("json", "said", extra={"level": "debug", "time": 0}))
    assert (entry["level"], entry["level_"], entry["time_"]) == ("warning", "debug", 0)


@pytest.mark.parametrize("format", ["json", "human"])
def test_tracebacks_are_kept(format):
    try:
        raise ValueError("the reason")
    except ValueError:
        text = written(format, "a request failed", exc_info=True)
    if format == "json":
        assert text.count("\n") == 1
        text = json.loads(text)["traceback"]
    assert "Traceback (most recent call last)" in text
    assert "ValueError: the reason" in text


@pytest.mark.parametrize("format", ["json", "human"])
@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\u2028b", "a\x85b", "\ud800"])
def test_a_message_is_always_one_line(format, text):
    line = written(format, "handler said %s", text)
    assert len(line.splitlines()) == 1
    line.encode()


def test_configuring_again_replaces():
    first, second = io.StringIO(), io.StringIO()
    logs.configure("json", "INFO", first)
    logs.configure("human", "error", second)
    LOG.warning("too quiet")
    LOG.error("loud")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize("is_plain", [False, True])
def test_colour_only_when_wanted(monkeypatch, is_plain):
    monkeypatch.setenv("NO_COLOR", "1" if is_plain else "")
    target = Terminal()
    logs.configure("human", "info", target)
    LOG.error("bad")
    assert ("\x1b[" in target.getvalue()) is not is_plain


def test_the_stream_is_stderr_when_none_is_given(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure("json", "info")
    LOG.info("ready")
    assert json.loads(stderr.getvalue())["message"] == "ready"
