"""What a Node handler gives back and how it fails: the real Node and shim, no sandbox."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("() => undefined", {"outcome": "success"}),
        ("async () => {}", {"outcome": "success"}),
        ("() => null", {"outcome": "success", "output": None}),
        (
            "async () => ({a: [1, 'ä\\u2028', 2.5, true]})",
            {"outcome": "success", "output": {"a": [1, "ä\u2028", 2.5, True]}},
        ),
        ("() => 0", {"outcome": "success", "output": 0}),
        ("() => new Date(0)", {"outcome": "success", "output": "1970-01-01T00:00:00.000Z"}),
        ("() => ({a: undefined, b: 1})", {"outcome": "success", "output": {"b": 1}}),
        ("(i, ctx) => ctx.success()", {"outcome": "success"}),
        ("(i, ctx) => ctx.success(null)", {"outcome": "success", "output": None}),
        (
            "(i, ctx) => ctx.success(1, {next: 'b'})",
            {"outcome": "success", "output": 1, "next": "b"},
        ),
        (
            "(i, ctx) => ctx.success(1, {next: null})",
            {"outcome": "success", "output": 1, "next": None},
        ),
        (
            "() => ({then: (resolve) => setTimeout(resolve, 1, 'later')})",
            {"outcome": "success", "output": "later"},
        ),
        (
            "(i, ctx) => ctx.failure('NO', 'not today')",
            {
                "outcome": "failure",
                "error": {"code": "NO", "message": "not today", "retryable": True, "details": None},
            },
        ),
        (
            "(i, ctx) => ctx.failure('NO', 'x', {retryable: false, details: {a: 1}})",
            {
                "outcome": "failure",
                "error": {"code": "NO", "message": "x", "retryable": False, "details": {"a": 1}},
            },
        ),
        (
            "(i, ctx) => ctx.failure('NO', 'x', false, [1])",
            {
                "outcome": "failure",
                "error": {"code": "NO", "message": "x", "retryable": False, "details": [1]},
            },
        ),
        ("(i, ctx) => ctx.wait({durationMs: 5})", {"outcome": "wait", "wait": {"durationMs": 5}}),
        (
            "(i, ctx) => ctx.wait({event: 'paid', filter: {id: 1}, reason: 'money', "
            "until: new Date(5)})",
            {
                "outcome": "wait",
                "wait": {
                    "event": "paid",
                    "filter": {"id": 1},
                    "reason": "money",
                    "until": "1970-01-01T00:00:00.005Z",
                },
            },
        ),
    ],
)
def test_results(run, code, result):
    assert run(code).result == {**result, "updates": {}, "emitted": []}


def test_ctx_has_everything_that_was_sent(run):
    asked = {
        "input": {"n": 1}, "config": {"c": [2]}, "secrets": {"apiKey": "k"}, "execution_id": "E",
        "flow_id": "F", "step_id": "S", "attempt": 3, "tenant_id": "T", "task_id": "K",
    }  # fmt: skip
    code = """(input, ctx) => ({
        input, has: ctx.hasInput, config: ctx.config, key: ctx.secrets.apiKey,
        ids: [ctx.executionId, ctx.flowId, ctx.stepId, ctx.attempt, ctx.tenantId, ctx.taskId]})"""
    assert run(code, **asked).output == {
        "input": {"n": 1}, "has": True, "config": {"c": [2]}, "key": "k",
        "ids": ["E", "F", "S", 3, "T", "K"],
    }  # fmt: skip


def test_no_input_is_undefined_and_null_is_null(run):
    code = "(input, ctx) => [ctx.hasInput, input === undefined, input === null]"
    assert run(code, has_input=False, reuse=True).output == [False, True, False]
    assert run(code, has_input=True, reuse=True).output == [True, False, True]


def test_context_is_fetched_when_it_is_read_and_read_only(run):
    code = """(input, ctx) => { const first = ctx.context; let caught = '';
        try { (() => { 'use strict'; first.a = 2; })() } catch (error) { caught = error.name }
        return [first.a, ctx.context === first, caught] }"""
    assert run(code, context={"a": 1}).output == [1, True, "TypeError"]


def test_updates_and_events_come_with_every_outcome(run):
    code = (
        "(i, ctx) => { ctx.update('a', {b: 1}); ctx.update('n'); ctx.emit('e', 2); ctx.emit('f'); "
    )
    for end in ("return 1 }", "throw new Error('x') }"):
        result = run(code + end, reuse=True).result
        assert result["updates"] == {"a": {"b": 1}, "n": None}
        assert result["emitted"] == [["e", 2], ["f", None]]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ctx.emit('')", "cannot use '' as event"),
        ("ctx.update(3, 1)", "cannot use 3 as key"),
        ("ctx.failure()", "cannot use undefined as code"),
        ("ctx.success(1, {next: ''})", "cannot use '' as next"),
        ("ctx.wait({durationMs: -1})", "cannot wait -1 ms"),
        ("ctx.wait({durationMs: 1.5})", "cannot wait 1.5 ms"),
        ("ctx.secrets.missing", "no secret 'missing': not in handler.json, or not set"),
    ],
)
def test_misuse_of_ctx_is_an_error_that_says_so(run, code, says):
    assert says in run(f"(i, ctx) => {code}").error["message"]


def test_secrets_show_names_and_never_values(run):
    code = """(i, ctx) => { const { inspect } = require('util'); console.log(ctx.secrets);
        return [inspect(ctx), JSON.stringify(ctx.secrets), String(ctx.secrets), 'a' in ctx.secrets,
                'b' in ctx.secrets, Object.keys(ctx.secrets)] }"""
    answer = run(code, secrets={"a": "TOP-SECRET"})
    assert "TOP-SECRET" not in json.dumps(answer.output) + json.dumps(answer.logs)
    assert answer.output[3:] == [True, False, ["a"]]
    assert answer.lines == [("stdout", "<secrets a>")]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("() => { throw new TypeError('bad') }", "TypeError: bad"),
        ("async () => { throw new Error('bad') }", "Error: bad"),
        ("() => { throw 'text' }", "text"),
        ("() => { throw {a: 1} }", "{ a: 1 }"),
        ("() => { throw undefined }", "undefined"),
        ("async () => { throw null }", "null"),
        (
            "() => { setTimeout(() => { throw new Error('late') }); return new Promise(() => {}) }",
            "Error: late",
        ),
        (
            "() => { Promise.reject(Error('lost')); return new Promise((r) => setTimeout(r, 99)) }",
            "Error: lost",
        ),
        (
            "() => { process.nextTick(() => { throw Error('t') }); return new Promise(() => {}) }",
            "Error: t",
        ),
        (
            "() => new Promise(() => {})",
            "Error: the handler's promise will never settle: nothing is left that could do so",
        ),
        (
            "() => new Promise((r) => setTimeout(r, 9e6).unref())",
            "Error: the handler's promise will never settle: nothing is left that could do so",
        ),
        ("() => { const f = () => f(); f() }", "RangeError: Maximum call stack size exceeded"),
        (
            "() => { throw Object.defineProperty(new Error('x'), 'name', {get() { throw 1 }}) }",
            "an error that cannot be shown",
        ),
        ("() => { throw new Error('\\ud800') }", "Error: \ufffd"),
    ],
)
def test_errors(run, code, message):
    error = run(code).error
    assert (error["code"], error["message"], error["retryable"]) == ("HANDLER_ERROR", message, True)


def test_traceback_shows_the_handlers_code_and_the_cause_and_none_of_ours(run):
    code = "() => {\n try { JSON.parse('{') }\n catch (cause) { throw new Error('bad', {cause}) } }"
    trace = run(code).error["details"]["traceback"]
    assert "handler.js:3" in trace
    assert "caused by: SyntaxError" in trace
    assert "runner.cjs" not in trace
    assert "node:internal" not in trace


def test_traceback_and_message_are_bounded(run):
    error = run("() => { throw new Error('ä'.repeat(100000)) }").error
    assert len(error["message"].encode()) <= 2000
    assert len(error["details"]["traceback"].encode()) <= 16 * 1024


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("() => 10n", "a BigInt is not a JSON value; use Number() or String()"),
        ("() => ({a: [10n]})", "a BigInt is not a JSON value"),
        ("() => NaN", "NaN is not a JSON value"),
        ("() => [-Infinity]", "-Infinity is not a JSON value"),
        ("() => () => 1", "a function is not a JSON value"),
        ("() => ({a: Symbol()})", "a symbol is not a JSON value"),
        (
            "() => { const a = {}; a.a = a; return a }",
            "it is nested deeper than 200 or contains itself",
        ),
        (
            "() => { let a = []; for (let n = 0; n < 300; n++) a = [a]; return a }",
            "nested deeper than 200",
        ),
        ("() => new Map([[1, 2]])", "a Map is not a JSON value; use Object.fromEntries()"),
        ("() => [Promise.resolve(1)]", "a promise is not a JSON value; await it"),
        ("() => '\\ud800'", "a text with a lone surrogate has no UTF-8 form"),
        ("() => ({'\\udfff': 1})", "a text with a lone surrogate has no UTF-8 form"),
        ("() => ({toJSON() { throw new Error('mine') }})", "mine"),
        ("(i, ctx) => { ctx.update('a', NaN) }", "NaN is not a JSON value"),
        ("(i, ctx) => ctx.failure('A', 'b', {details: 1n})", "a BigInt is not a JSON value"),
    ],
)
def test_what_is_not_json_is_a_breach_of_the_protocol(run, code, says):
    answer = run(code)
    assert answer.problem["ending"] == "protocol"
    assert answer.problem["message"].startswith("the handler's result is not JSON: ")
    assert says in answer.problem["message"]


def test_large_results_pass_up_to_the_limit(run):
    code = "(input) => 'ä'.repeat(input)"
    overhead = len('{"outcome":"success","output":"","updates":{},"emitted":[]}')
    assert len(run(code, input=5000, output_bytes=overhead + 10_000, reuse=True).output) == 5000
    assert run(code, input=5001, output_bytes=overhead + 10_000).problem == {
        "ending": "output",
        "message": f"the result has {overhead + 10_002} bytes, {overhead + 10_000} are allowed",
    }


def test_large_inputs_arrive_whole(run):
    value = {"rows": [{"n": n, "text": "ä" * 50} for n in range(20_000)]}
    assert run("(input) => input", input=value, output_bytes=8 << 20).output == value


def test_memory_that_cannot_be_had_is_said(run):
    answer = run("() => { new ArrayBuffer(2 ** 47) }")
    assert answer.problem == {"ending": "memory", "message": "the handler ran out of memory"}


def test_a_full_heap_ends_the_process(run, node):
    answer = run("() => { const a = []; for (;;) a.push(Array(100).fill(a.length)) }")
    assert answer.result is answer.problem is None
    assert node.wait() == -6  # SIGABRT
    assert "JavaScript heap out of memory" in node.printed()
