"""The types of `ctx` name what a handler is given, no more and no less, in both languages."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess

import pytest

from flowctl.vendor import library
from flowmonkey import context as declared
from sandbox import ctx
from tests.authoring.given import context

OURS = {"finished", "collected"}  # for the runner


def public(of) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")} - OURS


@pytest.fixture
def stateful(monkeypatch):
    """What the agent gives a stateful handler."""
    monkeypatch.syspath_prepend(str(AGENT))
    from agentctx import Context
    from agentline import Line
    from agentlogs import Logs

    line = Line("", "", "")
    return Context(json.loads(TASK), line, Logs(line))


AGENT = library().parent / "images/agent"
NAMES = ["executionId", "flowId", "stepId", "stepAttempt", "tenantId", "taskId", "config"]
TASK = json.dumps(
    {
        **dict.fromkeys(["hasInput", *NAMES, "pauseMaxMs", "resume"]),
        "secrets": {},
        "checkpoint": {"maxSize": 1, "names": {}},
        "ttl": {"ttlMs": 1, "activeMs": 0},
    }
)
STATEFUL = [("StatefulContext", None), ("Checkpoints", "checkpoint"), ("Pauses", "pause")]


@pytest.mark.parametrize(("name", "part"), STATEFUL)
def test_the_stateful_protocol_has_the_members_of_what_is_given(stateful, name, part):
    given = stateful if part is None else getattr(stateful, part)
    internal = {"fitting", "saved", "checkpoints", "before", "is_settled"}
    assert public(getattr(declared, name)) == public(given) - internal
    for one in public(getattr(declared, name)) - {"progress"}:
        shown, is_ours = getattr(getattr(declared, name), one), getattr(type(given), one, None)
        if inspect.isfunction(shown) and is_ours is not None:
            assert takes(shown) == takes(is_ours)


def takes(method):
    return [(one.name, one.kind) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("name", ["Context", "Log"])
def test_the_protocol_has_the_members_of_what_is_given(name):
    given = context() if name == "Context" else context().log
    assert public(getattr(declared, name)) == public(given)


@pytest.mark.parametrize("name", ["emit", "update", "success", "failure", "wait"])
def test_methods_take_the_same(name):
    assert takes(getattr(declared.Context, name)) == takes(getattr(ctx.Context, name))


def test_the_types_for_javascript_have_the_members_of_what_is_given():
    if shutil.which("node") is None:
        pytest.skip("NO node here: the types for JavaScript are not tested")
    script = library().parent / "sandbox/node/context.cjs"
    code = f"""
const {{ Context }} = require({json.dumps(str(script))});
const ctx = new Context({{ secrets: {{}} }}, () => {{}}, () => ({{}}));
const names = (o) => [...Object.getOwnPropertyNames(Object.getPrototypeOf(o)), ...Object.keys(o)];
console.log(JSON.stringify([names(ctx), names(ctx.log)]));
"""
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    for name, given in zip(("Context", "Log"), json.loads(done.stdout), strict=True):
        assert members(name) == set(given) - {"constructor"}


def test_the_types_for_javascript_have_the_members_of_the_stateful_ctx():
    if shutil.which("node") is None:
        pytest.skip("NO node here: the types for JavaScript are not tested")
    code = f"""
const {{ Context }} = require({json.dumps(str(AGENT / "agentctx.cjs"))});
const ctx = new Context({TASK}, {{}}, {{}});
const names = (o) => [...Object.getOwnPropertyNames(Object.getPrototypeOf(o)), ...Object.keys(o)];
console.log(JSON.stringify([names(ctx), names(ctx.checkpoint), names(ctx.pause)]));
"""
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    internal = {"constructor", "tellProgress", "isSettled"}
    for (name, _), given in zip(STATEFUL, json.loads(done.stdout), strict=True):
        more = members("Context") if name == "StatefulContext" else set()
        assert members(name) | more == set(given) - internal


def members(name: str) -> set[str]:
    types = (library() / "node/index.d.ts").read_text()
    body = re.search(rf"export interface {name}(?: extends \w+)? {{\n(.*?)\n}}", types, re.DOTALL)[
        1
    ]
    return set(re.findall(r"^  (?:readonly )?(\w+)[(:?<]", body, re.MULTILINE))
