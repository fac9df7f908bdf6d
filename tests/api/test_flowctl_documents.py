"""What users write: apply, validate and graph read flows, say what is wrong, and send them."""

from __future__ import annotations

import json

import pytest
from flowctl_server import flowctl, problem, serving

FLOW = {
    "id": "order",
    "version": "1.0.0",
    "name": "Order",
    "initialStepId": "a",
    "steps": {
        "a": {
            "id": "a",
            "type": "x",
            "input": {"type": "full"},
            "transitions": {"onSuccess": "b", "onFailure": "b"},
        },
        "b": {"id": "b", "type": "y", "input": {"type": "full"}, "transitions": {}},
    },
}
YAML = """\
id: order
version: 1.0.0
name: Order
initialStepId: a
steps:
  a:
    id: a
    type: x
    input: {type: full}
    transitions: {onSuccess: b, onFailure: b}
  b: {id: b, type: y, input: {type: full}, transitions: {}}
"""
BROKEN = {**FLOW, "version": "one", "initialStepId": "nowhere"}
APPLIED = {"id": "order", "version": "1.0.0", "created": True, "warnings": []}


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


@pytest.mark.parametrize("text", [json.dumps(FLOW), YAML], ids=["json", "yaml"])
def test_apply_sends_the_document_as_json(daemon, tmp_path, text):
    (tmp_path / "f").write_text(text)
    raw = daemon.on("PUT", "/v1/flows", APPLIED, status=201)
    result = flowctl("flow", "apply", "f")
    assert (result.code, result.out, result.err) == (0, "order@1.0.0: applied\n", "")
    [request] = daemon.requests
    assert (request.content_type, json.loads(request.body)) == ("application/json", FLOW)
    assert flowctl("flow", "apply", "f", "-o", "json").out == raw.decode() + "\n"


def test_apply_takes_stdin_with_several_documents(daemon):
    daemon.on("PUT", "/v1/flows", APPLIED, status=201)
    daemon.on("PUT", "/v1/flows", {**APPLIED, "version": "1.1.0", "created": False})
    text = f"{YAML}---\n{YAML.replace('1.0.0', '1.1.0')}"
    result = flowctl("flow", "apply", "-", stdin=text.encode())
    assert (result.code, result.err) == (0, "")
    assert result.out == "order@1.0.0: applied\norder@1.1.0: unchanged\n"
    assert [json.loads(r.body)["version"] for r in daemon.requests] == ["1.0.0", "1.1.0"]


def test_apply_shows_warnings_on_stderr(daemon):
    warning = {"path": "$.steps.a.type", "message": "no such handler yet"}
    daemon.on("PUT", "/v1/flows", {**APPLIED, "warnings": [warning]}, status=201)
    result = flowctl("flow", "apply", "-", stdin=YAML.encode())
    assert result.err == "warning: $.steps.a.type: no such handler yet\n"


def test_apply_goes_on_after_a_refusal_and_exits_5(daemon, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(YAML)
    refused = problem(422, "INVALID", "cannot apply the flow", ("$.steps", "are wrong"))
    daemon.on("PUT", "/v1/flows", refused, status=422)
    daemon.on("PUT", "/v1/flows", APPLIED, status=201)
    result = flowctl("flow", "apply", "a", "b")
    assert (result.code, result.out) == (5, "order@1.0.0: applied\n")
    assert result.err == "a: cannot apply the flow (INVALID)\na: $.steps: are wrong\n"


UNREADABLE = [
    (b"id: [", "stdin"),
    (b"\xff\xfe", "cannot read stdin: it is not UTF-8 (byte 0)"),
    (b"", "stdin"),
    (b"- 1\n- 2\n", "stdin"),
    (b"just words", "stdin"),
    (b"id: !!python/object/apply:os.system [ls]", "stdin"),
]


@pytest.mark.parametrize(("text", "said"), UNREADABLE)
@pytest.mark.parametrize("verb", ["apply", "validate"])
def test_unreadable_document_exits_5_and_sends_nothing(daemon, verb, text, said):
    result = flowctl("flow", verb, "-", stdin=text)
    assert (result.code, result.out, daemon.requests) == (5, "", [])
    assert said in result.err
    assert "Traceback" not in result.err


def test_apply_reads_every_file_before_it_sends_one(daemon, tmp_path):
    (tmp_path / "good").write_text(YAML)
    result = flowctl("flow", "apply", "good", "missing")
    assert (result.code, daemon.requests) == (2, [])
    assert "File 'missing' does not exist" in result.err
    result = flowctl("flow", "apply", "good", "-", stdin=b"id: [")
    assert (result.code, daemon.requests) == (5, [])


def test_validate_needs_no_daemon_and_names_every_problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(YAML)
    (tmp_path / "bad.json").write_text(json.dumps(BROKEN))
    result = flowctl("flow", "validate", "bad.json", "good.yaml")
    assert result.code == 5
    assert result.out == "good.yaml: order@1.0.0 is valid\n"
    lines = result.err.splitlines()
    assert any(line.startswith("bad.json: $.version: ") for line in lines)
    assert any(line.startswith("bad.json: $.initialStepId: ") for line in lines)


def test_validate_of_one_document_says_path_and_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text(json.dumps(BROKEN))
    result = flowctl("flow", "validate", "bad.json")
    lines = result.err.splitlines()
    assert (result.code, result.out, len(lines)) == (5, "", 2)
    assert all(line.startswith("$.") for line in lines)


def test_validate_shows_warnings_and_exits_0():
    text = YAML.replace("onSuccess: b, onFailure: b", "onSuccess: null")
    result = flowctl("flow", "validate", "-", stdin=text.encode())
    assert (result.code, result.out) == (0, "stdin: order@1.0.0 is valid\n")
    assert result.err.startswith("warning: $.steps.b")
    found = json.loads(flowctl("flow", "validate", "-", "-o", "json", stdin=text.encode()).out)
    assert (found["file"], found["flow"], found["errors"]) == ("stdin", "order@1.0.0", [])
    assert len(found["warnings"]) == 1


GRAPHS = [
    ("text", "a --success--> b\na --failure--> b\nb --success--> (end)\n"),
    (
        "dot",
        'digraph {\n  "a" -> "b" [label="success"];\n  "a" -> "b" [label="failure"];\n'
        '  "b" -> "(end)" [label="success"];\n}\n',
    ),
    (
        "mermaid",
        'flowchart TD\n  n0["a"]\n  n1["b"]\n  n2["(end)"]\n  n0 -->|success| n1\n'
        "  n0 -->|failure| n1\n  n1 -->|success| n2\n",
    ),
]


@pytest.mark.parametrize(("notation", "text"), GRAPHS)
def test_graph_draws_the_flow_of_the_daemon(daemon, notation, text):
    daemon.on("GET", "/v1/flows/order/1.0.0", {**APPLIED, "document": FLOW})
    result = flowctl("flow", "graph", "order@1.0.0", "--format", notation)
    assert (result.code, result.out, result.err) == (0, text, "")


BRANCHING = {
    "id": "order",
    "version": "1.0.0",
    "initialStepId": "a",
    "steps": {
        "a": {
            "id": "a",
            "type": "conditional",
            "config": {
                "conditions": [
                    {"path": "n", "op": "gte", "value": "x", "target": "b"},
                    {"path": "m", "op": "exists", "target": None},
                ],
                "default": "b",
            },
        },
        "b": {
            "id": "b",
            "type": "switch",
            "config": {"path": "p", "cases": {"red": None}, "default": None},
        },
    },
}


@pytest.mark.parametrize(
    ("notation", "has"),
    [
        ("text", 'a --n gte "x"--> b\na --m exists--> (end)\na --default--> b\nb --red--> (end)\n'),
        ("dot", '"a" -> "b" [label="n gte \\"x\\""];'),
        ("mermaid", 'n0 -->|"n gte #quot;x#quot;"| n1'),
    ],
)
def test_graph_shows_conditions_as_they_read(daemon, notation, has):
    daemon.on("GET", "/v1/flows/order/1.0.0", {**APPLIED, "document": BRANCHING})
    result = flowctl("flow", "graph", "order@1.0.0", "--format", notation)
    assert (result.code, result.err) == (0, "")
    assert has in result.out
