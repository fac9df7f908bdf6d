"""What is for development only is cut out of Python, and nothing else moves."""

from __future__ import annotations

import ast
import tokenize
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowctl.build.python_source import imports_library, strip

HANDLER = b'''\
"""Resizes."""
import json  # kept
import pytest
from flowmonkey import (
    Handler,
    Input,  # declares
    env,
)
from flowmonkey.testing import handler_test

SAMPLE = {
    "a": "sample-value",
}  # of a customer


class Resize(Handler):
    # kept too
    key: str = Input("vault", test_value="sk_test_1",  # for tests
                     description="d")
    other: str = Input(test_value=env("NOT_SET_ANYWHERE", "fallback-value"))
    third: dict = Input(required=True, test_value=SAMPLE)
    fourth: list = Input(
        "input",
        test_value=[
            -1234567,
            None,
        ],
    )

    def execute(self, ctx):
        return json.dumps(self.third)
'''


def test_test_values_go_and_every_line_keeps_its_number_and_comments():
    done = strip(HANDLER, True)
    assert done.problems == []
    assert sorted(value.text for value in done.values) == [
        "1234567", "fallback-value", "sample-value", "sk_test_1",
    ]  # fmt: skip
    assert sorted(value.line for value in done.values) == [12, 18, 20, 25]
    for value in done.values:
        assert value.text.encode() not in done.source
    for gone in (b"test_value", b"pytest", b"env", b"SAMPLE", b"handler_test"):
        assert gone not in done.source
    assert _comments(done.source) == _comments(HANDLER)
    before, after = _definitions(HANDLER), _definitions(done.source)
    assert {name: before[name] for name in after} == after
    assert set(after) == {"json", "Handler", "Input", "Resize", "execute", "key", "other", "third",
                          "fourth"}  # fmt: skip


def _comments(source):
    tokens = tokenize.tokenize(BytesIO(source).readline)
    return [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]


def _definitions(source):
    """Every bound name and its line."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.alias):
            found[node.name] = node.lineno
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node.lineno
        elif isinstance(node, ast.AnnAssign) or (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        ):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[target.id] = node.lineno
    return found


FROM = "from flowmonkey import Input\n"
AS_I = "from flowmonkey import Input as I\n"


@pytest.mark.parametrize(
    ("source", "stripped"),
    [
        (FROM + "x = Input(test_value='a')", FROM + "x = Input()"),
        (FROM + "x = Input(test_value='a',)", FROM + "x = Input()"),
        (FROM + "x = Input(test_value='a', min=1)", FROM + "x = Input( min=1)"),
        (FROM + "x = Input('vault', test_value='a')", FROM + "x = Input('vault', )"),
        ("import flowmonkey as f\nf.Input(test_value=1)", "import flowmonkey as f\nf.Input()"),
        (AS_I + "x = I(test_value=1)", AS_I + "x = I()"),
        (FROM + "from os import sep, environ\nx = Input(test_value=environ['NO'])\nsep",
         FROM + "from os import sep \nx = Input()\nsep"),
        (FROM + "import os, sys\nx = Input(test_value=os.environ['NO'])\nsys",
         FROM + "import  sys\nx = Input()\nsys"),
        (FROM + "def f():\n    import pytest\nx = 1", FROM + "def f():\n    pass\nx = 1"),
        (FROM + "import pytest; x = 1", FROM + "pass; x = 1"),
        (FROM + "A = 'a'; x = Input(test_value=A)", FROM + "pass; x = Input()"),
    ],
)  # fmt: skip
def test_a_cut_leaves_valid_python(source, stripped):
    done = strip(source.encode(), True)
    assert done.problems == []
    assert done.source.decode() == stripped
    ast.parse(done.source)


@pytest.mark.parametrize(
    ("source", "line", "why"),
    [
        (FROM + "k = {'test_value': 1}\nx = Input(**k)", 3, "cannot look into **"),
        (FROM + "I = Input\nx = I(test_value='abc')", 3, "cannot resolve test_value"),
        (FROM + "import functools as f\nf.partial(Input, test_value=1)()", 3, "cannot resolve"),
        (FROM + "x = Input()\nx.test_value = 'abc'", 3, "cannot resolve test_value"),
        (FROM + "x = Input()\nsetattr(x, 'test_value', 'abc')", 3, "cannot resolve test_value"),
        (FROM + "def f(): return 'abc'\nx = Input(test_value=f())", 3, "cannot tell what"),
        (FROM + "from samples import S\nx = Input(test_value=S)", 3, "cannot tell what"),
        (FROM + "S = 'a'\nS = 'b'\nx = Input(test_value=S)", 4, "cannot tell what"),
        (FROM + "x = Input(test_value=f'{1}')", 2, "cannot tell what"),
        (FROM + "x = Input(test_value='a' + 'b')", 2, "cannot tell what"),
        (FROM + "S = 'abc'\nx = Input(test_value=S)\nprint(S)", 2, "used in line 4 too"),
        (FROM + "S = S\nx = Input(test_value=S)", 2, "cannot tell what"),
        (FROM + "import pytest\nx = pytest.approx(1)", 2, "line 3 uses it"),
        (FROM + "from flowmonkey.testing import handler_test as h\nh()", 2, "line 3 uses it"),
        (FROM + "from unittest.mock import *", 2, "import the names you use"),
        ("from flowmonkey import *\nx = Input(test_value='abc')", 2, "cannot resolve test_value"),
        (FROM + "x = Input(test_value='abc'", 2, "is not Python"),
        (FROM + "# \xff test_value", 1, "is not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved_is_refused_with_its_line(source, line, why):
    encoding = "latin-1" if "\xff" in source else "utf-8"
    done = strip(source.encode(encoding), True)
    assert done.problems
    assert done.problems[0][0] == line
    assert why in done.problems[0][1]


def test_the_environment_s_value_is_searched_for(monkeypatch):
    monkeypatch.setenv("RESIZE_KEY", "from-the-environment")
    source = b"from flowmonkey import Input, env\nx = Input(test_value=env('RESIZE_KEY'))\n"
    assert [value.text for value in strip(source, True).values] == ["from-the-environment"]


def test_another_s_test_value_is_left_alone_where_nothing_uses_the_library():
    source = b"def f(test_value=1):\n    return test_value\n"
    assert strip(source, False).source == source
    assert strip(source, False).problems == []


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        (b"import flowmonkey", True),
        (b"from flowmonkey.rules import kind", True),
        (b"if 1:\n  from flowmonkey import Handler as H", True),
        (b"import flowmonkeyd", False),
        (b"from . import flowmonkey", False),
        (b"'import flowmonkey'", False),
        (b"import flowmonkey (", False),
    ],
)
def test_the_library_is_found_in_the_tree_and_not_in_the_text(source, uses):
    assert imports_library(source) is uses


NAMES = st.sampled_from(["a", "SAMPLE", "Input", "x", "env", "f"])
VALUES = st.one_of(
    NAMES, st.integers(0, 9).map(str), st.text("ab'\n\\é", max_size=4).map(repr),
)  # fmt: skip
STATEMENTS = st.one_of(
    st.builds("{} = {}".format, NAMES, VALUES),
    st.builds("{} = Input(test_value={}, min=1)".format, NAMES, VALUES),
    st.builds("{} = Input(\n  test_value=[{},\n  {}])".format, NAMES, VALUES, VALUES),
    st.just("from flowmonkey import env as e, Input"),
    st.just("import pytest, os"),
    st.builds("print({})".format, NAMES),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STATEMENTS, max_size=8))
def test_whatever_is_stripped_is_still_python_with_as_many_lines_or_is_refused(statements):
    source = (FROM + "\n".join(statements)).encode()
    done = strip(source, True)
    if not done.problems:
        ast.parse(done.source)
        assert done.source.count(b"\n") == source.count(b"\n")
        assert b"test_value" not in done.source
