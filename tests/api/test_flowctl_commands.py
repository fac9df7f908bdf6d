"""Each command: the request it sends, and exactly what it prints."""

from __future__ import annotations

import json

import pytest
from flowctl_server import Reply, flowctl, problem, serving


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


EXECUTION = {
    "id": "01abc",
    "flowId": "order",
    "flowVersion": "1.0.0",
    "status": "completed",
    "currentStepId": "charge",
    "context": {"n": 1, "name": "Zoë"},
    "stepCount": 2,
    "tenantId": "default",
    "priority": "normal",
    "error": None,
    "wakeAt": None,
    "waitReason": None,
    "resumeToken": None,
    "parentExecutionId": None,
    "idempotencyKey": None,
    "metadata": {},
    "createdAt": "2026-11-23T01:00:00.000Z",
    "startedAt": "2026-11-23T01:00:00.001Z",
    "updatedAt": "2026-11-23T01:00:00.009Z",
    "finishedAt": "2026-11-23T01:00:00.009Z",
}

FAILED = {
    **EXECUTION,
    "status": "failed",
    "error": {
        "code": "HTTP_ERROR",
        "message": "status 500",
        "stepId": "charge",
        "details": {"status": 500},
    },
}

FLOW = {
    "id": "order",
    "version": "1.0.0",
    "name": "Order",
    "digest": "sha256:aa",
    "appliedAt": "2026-11-23T01:00:00.000Z",
    "stepCount": 2,
    "created": True,
    "warnings": [],
    "document": {
        "steps": {
            "a": {
                "type": "x",
                "retry": {"maxAttempts": 2},
                "transitions": {"onSuccess": "b", "onFailure": None},
            },
            "b": {"type": "acme/y@^1", "transitions": {}},
        }
    },
}

HEALTH = {
    "status": "ok",
    "version": "0.1.0",
    "uptimeS": 3725,
    "checks": {"store": {"status": "ok", "detail": "writable"}, "sandbox": {"status": "degraded"}},
}

HISTORY = {
    "items": [
        {
            "seq": 1,
            "stepId": "a",
            "handler": {"type": "x", "version": "1.0.0"},
            "attempt": 0,
            "outcome": "success",
            "error": None,
            "durationMs": 12,
            "queuedMs": 1,
        },
        {
            "seq": 2,
            "stepId": "b",
            "handler": {"type": "delay", "version": None},
            "attempt": 1,
            "outcome": "failure",
            "error": {"code": "NO", "message": "said\nno"},
            "durationMs": 61_000,
            "queuedMs": 0,
        },
    ],
    "nextCursor": None,
}

LOGS = {
    "items": [
        {
            "seq": 3,
            "at": "T",
            "stepId": "a",
            "attempt": 0,
            "stream": "log",
            "level": "info",
            "message": "working",
            "fields": {"size": 3},
        },
        {
            "seq": 4,
            "at": "T",
            "stepId": "a",
            "attempt": 0,
            "stream": "stdout",
            "level": None,
            "message": "\x1b[2Jgone\a",
            "fields": {},
        },
    ],
    "nextCursor": None,
}

QUEUE = {
    "items": [
        {
            "handlerType": "acme/resize",
            "priority": "high",
            "queued": 12,
            "leased": 1,
            "oldestQueuedMs": 1500,
        }
    ],
    "totals": {"queued": 12, "leased": 1},
}

SUMMARY = """\
execution  01abc
flow       order@1.0.0
status     {status}
step       charge
steps      2
tenant     default
priority   normal
created    2026-11-23T01:00:00.000Z
started    2026-11-23T01:00:00.001Z
finished   2026-11-23T01:00:00.009Z
{error}context
{{
  "n": 1,
  "name": "Zoë"
}}
"""

COMPLETED_TEXT = SUMMARY.format(status="completed", error="")
FAILED_TEXT = SUMMARY.format(
    status="failed",
    error='error at charge: HTTP_ERROR: status 500\n{\n  "status": 500\n}\n',
)
RAISED = {**FAILED, "error": {**FAILED["error"], "details": {"traceback": "Trace\n  a\x1b[2J\n"}}}
RAISED_TEXT = SUMMARY.format(
    status="failed",
    error="error at charge: HTTP_ERROR: status 500\nTrace\n  a\\e[2J\n",
)


def page(*items, cursor=None):
    return {"items": list(items), "nextCursor": cursor}


GET_CASES = [
    (
        "status",
        "/v1/health",
        HEALTH,
        "status   ok\nversion  0.1.0\nup       1 h 2 m\n"
        "CHECK    STATUS    DETAIL\nstore    ok        writable\nsandbox  degraded  -\n",
    ),
    (
        "queue",
        "/v1/queue",
        QUEUE,
        "HANDLER      PRIORITY  QUEUED  LEASED  OLDEST\n"
        "acme/resize  high      12      1       1.5 s\n"
        "(all)        -         12      1       -\n",
    ),
    (
        "flow list",
        "/v1/flows?limit=100",
        page(FLOW),
        "ID     VERSION  NAME   STEPS  APPLIED\n"
        "order  1.0.0    Order  2      2026-11-23T01:00:00.000Z\n",
    ),
    ("flow list --limit 7 --no-headers", "/v1/flows?limit=7", page(), ""),
    (
        "flow show order@1.0.0",
        "/v1/flows/order/1.0.0",
        FLOW,
        "id         order\nversion    1.0.0\nname       Order\ndigest     sha256:aa\n"
        "appliedAt  2026-11-23T01:00:00.000Z\n"
        "STEP  TYPE       ON SUCCESS  ON FAILURE  RETRIES\n"
        "a     x          b           -           2\n"
        "b     acme/y@^1  -           -           -\n",
    ),
    (
        "execution list",
        "/v1/executions?limit=100",
        page(EXECUTION, FAILED),
        "ID     FLOW         STATUS     STEP    STEPS  TENANT   CREATED\n"
        "01abc  order@1.0.0  completed  charge  2      default  2026-11-23T01:00:00.000Z\n"
        "01abc  order@1.0.0  failed     charge  2      default  2026-11-23T01:00:00.000Z\n",
    ),
    (
        "execution list --status failed --flow order --tenant t/1 --since 2026-01-01T00:00:00Z",
        "/v1/executions?status=failed&flow=order&tenant=t%2F1&since=2026-01-01T00%3A00%3A00Z"
        "&limit=100",
        page(),
        "ID  FLOW  STATUS  STEP  STEPS  TENANT  CREATED\n",
    ),
    ("execution show 01abc", "/v1/executions/01abc", EXECUTION, COMPLETED_TEXT),
    ("execution show 01abc", "/v1/executions/01abc", FAILED, FAILED_TEXT),
    ("execution show 01abc", "/v1/executions/01abc", RAISED, RAISED_TEXT),
    (
        "execution history 01abc",
        "/v1/executions/01abc/history?limit=500",
        HISTORY,
        "SEQ  STEP  HANDLER  TRY  OUTCOME  TOOK     QUEUED  ERROR\n"
        "1    a     x@1.0.0  1    success  12 ms    1 ms    -\n"
        "2    b     delay    2    failure  1 m 1 s  0 ms    NO: said\\nno\n",
    ),
    (
        "execution logs 01abc",
        "/v1/executions/01abc/logs?limit=500",
        LOGS,
        "T a[1] info: working size=3\nT a[1] stdout: \\e[2Jgone\\x07\n",
    ),
    (
        "execution logs 01abc --after 2",
        "/v1/executions/01abc/logs?after=2&limit=500",
        page(),
        "",
    ),
]


@pytest.mark.parametrize(("line", "path", "body", "text"), GET_CASES)
def test_read_command_asks_once_and_prints_the_table(daemon, line, path, body, text):
    daemon.on("GET", path, body)
    result = flowctl(*line.split())
    assert (result.code, result.err, result.out) == (0, "", text)
    assert daemon.asked() == [f"GET {path}"]


@pytest.mark.parametrize(("line", "path", "body", "_text"), GET_CASES)
def test_json_is_the_bytes_of_the_api(daemon, line, path, body, _text):
    raw = daemon.on("GET", path, body)
    result = flowctl(*line.split(), "-o", "json")
    assert (result.code, result.err, result.out) == (0, "", raw.decode() + "\n")


@pytest.mark.parametrize(("line", "path", "body", "_text"), GET_CASES)
def test_yaml_says_the_same_as_json(daemon, line, path, body, _text):
    import yaml

    daemon.on("GET", path, body)
    result = flowctl("-o", "yaml", *line.split())
    assert (result.code, result.err) == (0, "")
    expected = body if "items" not in body or "totals" in body else {**body, "nextCursor": None}
    assert yaml.safe_load(result.out) == expected


POST_CASES = [
    (
        ["execution", "cancel", "01abc", "--reason", "wrong order"],
        "/v1/executions/01abc/cancel",
        {"reason": "wrong order"},
        {**EXECUTION, "status": "cancelled"},
        "01abc: cancelled\n",
    ),
    (
        ["execution", "cancel", "a/b"],
        "/v1/executions/a%2Fb/cancel",
        {},
        {**EXECUTION, "status": "cancelling"},
        "01abc: cancelling\n",
    ),
    (
        ["execution", "resume", "01abc", "--token", "t0", "--data", '{"ok": true}'],
        "/v1/executions/01abc/resume",
        {"token": "t0", "data": {"ok": True}},
        {**EXECUTION, "status": "running"},
        "01abc: running\n",
    ),
    (
        ["execution", "resume", "01abc", "--data", "null"],
        "/v1/executions/01abc/resume",
        {"data": None},
        {**EXECUTION, "status": "running"},
        "01abc: running\n",
    ),
    (
        ["execution", "resume", "01abc"],
        "/v1/executions/01abc/resume",
        {},
        {**EXECUTION, "status": "running"},
        "01abc: running\n",
    ),
    (
        ["execution", "retry", "01abc", "--from", "charge"],
        "/v1/executions/01abc/retry",
        {"fromStepId": "charge"},
        {**EXECUTION, "status": "pending"},
        "01abc: pending\n",
    ),
    (
        ["event", "send", "paid", "--data", "[1]", "--tenant", "t"],
        "/v1/events",
        {"name": "paid", "data": [1], "tenantId": "t"},
        {"name": "paid", "woken": 1, "executionIds": ["01abc"], "seq": 9},
        "paid: woke 1\n  01abc\n",
    ),
    (
        [
            *("run", "order@1.0.0", "--no-wait", "--context", '{"n": 1}', "--tenant", "t"),
            *("--priority", "high", "--key", "k"),
        ],
        "/v1/executions",
        {
            "flow": "order@1.0.0",
            "context": {"n": 1},
            "tenantId": "t",
            "priority": "high",
            "idempotencyKey": "k",
        },
        EXECUTION,
        COMPLETED_TEXT,
    ),
]


@pytest.mark.parametrize(("args", "path", "sent", "body", "text"), POST_CASES)
def test_change_command_sends_what_was_given_and_no_more(daemon, args, path, sent, body, text):
    raw = daemon.on("POST", path, body, status=201)
    result = flowctl(*args)
    assert (result.code, result.err, result.out) == (0, "", text)
    [request] = daemon.requests
    assert (request.method, request.path, request.content_type) == (
        "POST",
        path,
        "application/json",
    )
    assert json.loads(request.body) == sent
    assert flowctl(*args, "-o", "json").out == raw.decode() + "\n"


def test_status_of_an_unready_daemon_is_printed_and_exits_3(daemon):
    raw = daemon.on("GET", "/v1/health", {**HEALTH, "status": "starting"}, status=503)
    result = flowctl("status", "-o", "json")
    assert (result.code, result.out) == (3, raw.decode() + "\n")
    assert result.err == ("flowctl: the daemon is not ready: it answers, but does not take work\n")


def test_version_names_both(daemon):
    daemon.on("GET", "/v1/health", HEALTH)
    found = json.loads(flowctl("version", "-o", "json").out)
    assert found["flowmonkeyd"] == "0.1.0"
    assert found["flowctl"]


def test_version_needs_no_daemon(tmp_path):
    result = flowctl("--socket", str(tmp_path / "none"), "version")
    assert result.code == 0
    assert result.out.endswith("flowmonkeyd  no answer\n")
    assert "no such file" in result.err


def test_run_with_a_used_key_says_so(daemon):
    daemon.on("POST", "/v1/executions", EXECUTION, status=200)
    result = flowctl("run", "order", "--key", "k7")
    assert (result.code, result.out) == (0, COMPLETED_TEXT)
    assert result.err == "the key k7 was used before: this is the execution it started\n"


def test_list_follows_cursors_up_to_its_limit(daemon):
    row = {"id": "f", "version": "1.0.0"}
    daemon.on("GET", "/v1/flows?limit=500", page(*[row] * 500, cursor="c1"))
    daemon.on("GET", "/v1/flows?limit=100&cursor=c1", page(*[row] * 100, cursor="c2"))
    result = flowctl("flow", "list", "--limit", "600", "-o", "json")
    assert json.loads(result.out) == page(*[row] * 600, cursor="c2")
    assert len(daemon.requests) == 2


def test_execution_list_says_when_there_are_more(daemon):
    daemon.on("GET", "/v1/executions?limit=1", page(EXECUTION, cursor="c"))
    result = flowctl("execution", "list", "--limit", "1")
    assert result.err == "there are more than 1: see them with --limit\n"
    assert flowctl("execution", "list", "--limit", "1", "-o", "json").err == ""


def test_since_takes_a_span(daemon):
    flowctl("execution", "list", "--since", "2h")
    [request] = daemon.requests
    assert "since=20" in request.path
    assert request.path.endswith("Z&limit=100")


def test_a_date_is_its_first_moment(daemon):
    flowctl("execution", "list", "--since", "2026-01-31")
    flowctl("billing", "--since", "2026-01-31", "--until", "20260201T08:00:00Z")
    listed, billed = daemon.requests
    assert "since=2026-01-31T00%3A00%3A00Z" in listed.path
    assert "since=2026-01-31T00%3A00%3A00Z" in billed.path
    assert "until=20260201T08%3A00%3A00Z" in billed.path  # as it is


def test_logs_follow_prints_lines_as_they_come(daemon):
    path = "/v1/executions/01abc/logs?follow=true"
    lines = [json.dumps(item).encode() + b"\n" for item in LOGS["items"]]
    daemon.put("GET", path, Reply(lines=lines))
    assert flowctl("execution", "logs", "01abc", "-f").out == (
        "T a[1] info: working size=3\nT a[1] stdout: \\e[2Jgone\\x07\n"
    )
    assert flowctl("execution", "logs", "01abc", "-f", "-o", "json").out.encode() == b"".join(lines)


def test_event_tail_resumes_after(daemon):
    item = {"seq": 8, "at": "T", "type": "flow.applied", "executionId": None, "data": {"id": "f"}}
    daemon.stream("/v1/events?follow=true&after=7", [item])
    result = flowctl("event", "tail", "--after", "7")
    assert (result.code, result.out) == (0, '8 T flow.applied - - {"id": "f"}\n')


REFUSALS = [
    (404, "FLOW_NOT_FOUND", 4),
    (409, "CONFLICT", 5),
    (422, "INVALID", 5),
    (400, "INVALID", 5),
    (413, "TOO_LARGE", 5),
    (405, "METHOD_NOT_ALLOWED", 5),
    (503, "UNAVAILABLE", 3),
    (500, "INTERNAL", 3),
]


@pytest.mark.parametrize(("status", "code", "exit_code"), REFUSALS)
def test_refusal_becomes_words_and_an_exit_code(daemon, status, code, exit_code):
    body = problem(status, code, "cannot do it", ("$.a", "is \x1b[31mwrong"), ("$.b", "missing"))
    daemon.on("GET", "/v1/flows/f", body, status=status)
    result = flowctl("flow", "show", "f", "-o", "json")
    assert (result.code, result.out) == (exit_code, "")
    assert result.err == (f"flowctl: cannot do it ({code})\n$.a: is \\e[31mwrong\n$.b: missing\n")
