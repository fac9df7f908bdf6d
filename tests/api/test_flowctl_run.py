"""`flowctl run` and `execution watch`: waiting, telling, ending with the right exit code."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import threading

import pytest
from flowctl_server import Reply, flowctl, problem, script, serving

EXECUTION = {
    "id": "01abc",
    "flowId": "order",
    "flowVersion": "1.0.0",
    "status": "running",
    "currentStepId": "a",
    "context": {},
    "stepCount": 0,
    "error": None,
    "wakeAt": None,
    "waitReason": None,
    "resumeToken": None,
}
ONE = "/v1/executions/01abc"
EVENTS = f"{ONE}/events?follow=true&after=0"
AGAIN = "execution 01abc goes on; watch it with: flowctl execution watch 01abc\n"


def now(status, **more):
    return {**EXECUTION, "status": status, **more}


def event(seq, type_, step=None, **data):
    return {"seq": seq, "type": type_, "at": "T", "executionId": "01abc", "stepId": step} | {
        "data": data
    }


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        found.on("POST", "/v1/executions", EXECUTION, status=201)
        yield found


ENDINGS = [
    ("completed", None, 0, ""),
    ("cancelled", None, 1, "flowctl: execution 01abc cancelled\n"),
    (
        "failed",
        {"code": "NO", "message": "bad\x1b[0m", "stepId": "a"},
        1,
        "flowctl: execution 01abc failed: NO: bad\\e[0m\n",
    ),
]


@pytest.mark.parametrize(("status", "error", "code", "err"), ENDINGS)
def test_run_waits_prints_the_end_and_exits_by_it(daemon, status, error, code, err):
    daemon.stream(EVENTS, [event(1, "execution.created"), event(2, f"execution.{status}")])
    raw = daemon.on("GET", ONE, now(status, error=error))
    result = flowctl("run", "order", "-o", "json")
    assert (result.code, result.out, result.err) == (code, raw.decode() + "\n", err)
    assert daemon.asked() == ["POST /v1/executions", f"GET {EVENTS}", f"GET {ONE}"]
    assert json.loads(daemon.requests[0].body) == {"flow": "order"}


@pytest.mark.parametrize(("status", "error", "code", "err"), ENDINGS)
def test_watch_ends_as_run_does(daemon, status, error, code, err):
    raw = daemon.on("GET", ONE, now(status, error=error))
    result = flowctl("execution", "watch", "01abc", "-o", "json")
    assert (result.code, result.out, result.err) == (code, raw.decode() + "\n", err)


def test_context_comes_from_stdin_file_or_argument(daemon, tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"n": "é"}', encoding="utf-8")
    for given in ("-", f"@{file}", '{"n": "é"}'):
        flowctl("run", "order", "--no-wait", "--context", given, stdin='{"n": "é"}'.encode())
    assert [json.loads(request.body)["context"] for request in daemon.requests] == [{"n": "é"}] * 3


BAD_CONTEXTS = [
    ('{"a": 1,\n "b" 2}', b"", "the value is not JSON: Expecting ':' delimiter (line 2, column 6)"),
    ("-", b"{", "stdin is not JSON: Expecting property name enclosed in double quotes (line 1"),
    ("-", b"\xff", "stdin is not JSON: it is not UTF-8 (byte 0)"),
    ("@/no/such", b"", "cannot read /no/such: no such file or directory"),
    ("[1]", b"", 'the value must be a JSON object, like {"n": 1}'),
    ('{"n": NaN}', b"", "the value is not JSON: NaN is no JSON number"),
    ("[" * 100_000, b"", "the value is not JSON: "),
]


@pytest.mark.parametrize(("given", "stdin", "err"), BAD_CONTEXTS)
def test_bad_context_is_a_usage_error_and_nothing_is_sent(daemon, given, stdin, err):
    result = flowctl("run", "order", "--context", given, stdin=stdin)
    assert (result.code, result.out, daemon.requests) == (2, "", [])
    assert f"Invalid value for '--context': {err}" in result.err


def test_timeout_exits_6_with_the_execution_as_it_is(daemon):
    gate = threading.Event()

    def lines():
        yield json.dumps(event(1, "execution.started")).encode() + b"\n"
        gate.wait(10)

    daemon.put("GET", EVENTS, Reply(lines=lines()))
    raw = daemon.on("GET", ONE, now("running"))
    result = flowctl("run", "order", "--timeout", "0.05", "-o", "json")
    gate.set()
    assert (result.code, result.out) == (6, raw.decode() + "\n")
    assert result.err == f"flowctl: cannot wait any longer: --timeout has passed; {AGAIN}"


def test_wait_is_told_once_with_the_command_that_ends_it(daemon):
    waiting = now(
        "waiting", currentStepId="approve", waitReason="the boss\a", resumeToken="t0k", wakeAt=None
    )
    daemon.on("GET", ONE, waiting)
    daemon.on("GET", ONE, waiting)
    daemon.on("GET", ONE, now("completed"))
    daemon.stream(
        EVENTS,
        [
            event(1, "execution.waiting", "approve", kind="signal"),
            event(2, "execution.waiting", "approve", kind="signal"),
            event(3, "execution.completed"),
        ],
    )
    result = flowctl("run", "order")
    assert result.code == 0
    assert result.err == (
        "waiting at step approve for the boss\\x07\n"
        "resume it with: flowctl execution resume 01abc --token t0k\n"
    )


WAITS = [
    ("time", "2026-11-24T00:00:00.000Z", ", until 2026-11-24T00:00:00.000Z\n"),
    ("child", None, "\n"),
    ("signal", None, "\nresume it with: flowctl execution resume 01abc\n"),
    ("event", None, "\nresume it with: flowctl execution resume 01abc\n"),
]


@pytest.mark.parametrize(("kind", "wake_at", "told"), WAITS)
def test_only_a_wait_that_a_person_can_end_is_told_with_a_command(daemon, kind, wake_at, told):
    daemon.on("GET", ONE, now("waiting", wakeAt=wake_at))
    daemon.on("GET", ONE, now("completed"))
    waiting = event(1, "execution.waiting", "a", kind=kind)
    daemon.stream(EVENTS, [waiting, event(2, "execution.completed")])
    assert flowctl("run", "order").err == f"waiting at step a{told}"


def test_wait_that_is_over_is_not_told(daemon):
    daemon.on("GET", ONE, now("running"))
    daemon.on("GET", ONE, now("completed"))
    daemon.stream(EVENTS, [event(1, "execution.waiting", "a"), event(2, "execution.completed")])
    assert flowctl("run", "order").err == ""


def test_stream_that_ends_early_is_taken_up_after_the_last_event(daemon):
    daemon.stream(EVENTS, [event(7, "execution.started")])
    daemon.stream(f"{ONE}/events?follow=true&after=7", [event(9, "execution.completed")])
    daemon.on("GET", ONE, now("running"))
    daemon.on("GET", ONE, now("completed"))
    assert flowctl("run", "order").code == 0


@pytest.mark.parametrize("cut", [True, False])
def test_lost_daemon_exits_3_and_says_how_to_watch_again(daemon, cut):
    daemon.stream(EVENTS, [event(1, "execution.started")] if cut else [], cut=cut)
    daemon.on("GET", ONE, now("running"))
    result = flowctl("run", "order")
    assert (result.code, result.out) == (3, "")
    assert result.err.endswith("\n" + AGAIN)


def test_unknown_execution_exits_4(daemon):
    daemon.on("GET", "/v1/executions/x", problem(404, "NOT_FOUND", "no such execution"), 404)
    result = flowctl("execution", "watch", "x")
    assert (result.code, result.err) == (4, "flowctl: no such execution (NOT_FOUND)\n")


STEPS = [
    event(1, "execution.started"),
    event(2, "step.started", "a", attempt=0),
    event(3, "step.completed", "a", attempt=0, outcome="success", durationMs=12),
    event(4, "step.started", "b\x1b]0;x\a", attempt=1),
    event(5, "step.retry", "b\x1b]0;x\a", attempt=1, backoffMs=2000),
    event(6, "step.completed", "b", attempt=2, outcome="failure", code="NO", durationMs=3400),
    event(7, "execution.completed"),
]


def test_steps_are_shown_on_a_terminal_without_handing_it_over(daemon, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    daemon.stream(EVENTS, STEPS)
    daemon.on("GET", ONE, now("completed"))
    assert flowctl("run", "order", tty=True).err == (
        "✓ a  success  12 ms\n"
        "✗ b\\e]0;x\\x07  will be tried again in 2.0 s\n"
        "✗ b (try 3)  failure  NO  3.4 s\n"
    )


def test_the_end_of_a_wait_is_shown_and_that_of_a_backoff_is_not(daemon, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    steps = [
        event(1, "step.retry", "a", attempt=1, backoffMs=100),
        event(2, "execution.resumed", "a"),
        event(3, "step.completed", "a", attempt=1, outcome="wait", durationMs=1),
        event(4, "execution.resumed", "a"),
        event(5, "execution.completed"),
    ]
    daemon.stream(EVENTS, steps)
    daemon.on("GET", ONE, now("completed"))
    assert flowctl("run", "order", tty=True).err == (
        "✗ a  will be tried again in 100 ms\n✓ a (try 2)  wait  1 ms\n✓ resumed\n"
    )


def test_live_line_is_replaced_on_a_terminal_that_can(daemon, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    daemon.stream(EVENTS, STEPS[:3] + STEPS[-1:])
    daemon.on("GET", ONE, now("completed"))
    assert flowctl("run", "order", tty=True).err == (
        "\x1b[36m…\x1b[0m a\r\x1b[2K\x1b[32m✓\x1b[0m a  success  12 ms\n"
    )


def test_real_terminal_sees_the_steps_on_stderr_only(daemon):
    daemon.stream(EVENTS, STEPS)
    raw = daemon.on("GET", ONE, now("completed"))
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm"}
    env.pop("NO_COLOR", None)
    args = [script(), "run", "order", "-o", "json"]
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=theirs, env=env, timeout=20)
    os.close(theirs)
    seen = b"".join(itertools.takewhile(bool, iter(lambda: _read(ours), None)))
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, raw + b"\n")
    assert "✓".encode() in seen


def _read(fd):
    try:
        return os.read(fd, 4096)
    except OSError:  # EIO: the other side has gone
        return b""


def test_interrupt_exits_130_and_the_execution_goes_on(daemon):
    gate = threading.Event()

    def lines():
        yield json.dumps(event(1, "execution.started")).encode() + b"\n"
        gate.wait(10)

    daemon.put("GET", EVENTS, Reply(lines=lines()))
    process = subprocess.Popen(
        [script(), "run", "order"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    daemon.wait_for("GET", EVENTS)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    gate.set()
    assert (process.returncode, out) == (130, "")
    assert err == f"flowctl: stopped watching: {AGAIN}"
    assert not any(request.path.endswith("/cancel") for request in daemon.requests)
