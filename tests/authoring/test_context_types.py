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


@pytest.mark.parametrize("name", ["Context", "Log"])
def test_the_protocol_has_the_members_of_what_is_given(name):
    given = context() if name == "Context" else context().log
    assert public(getattr(declared, name)) == public(given)


@pytest.mark.parametrize("name", ["emit", "update", "success", "failure", "wait"])
def test_methods_take_the_same(name):
    def shape(method):
        return [(one.name, one.kind) for one in inspect.signature(method).parameters.values()]

    assert shape(getattr(declared.Context, name)) == shape(getattr(ctx.Context, name))


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
    types = (library() / "node/index.d.ts").read_text()
    for name, given in zip(("Context", "Log"), json.loads(done.stdout), strict=True):
        body = re.search(rf"export interface {name} {{\n(.*?)\n}}", types, re.DOTALL)[1]
        members = set(re.findall(r"^  (?:readonly )?(\w+)[(:?]", body, re.MULTILINE))
        assert members == set(given) - {"constructor"}
