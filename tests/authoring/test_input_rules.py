"""Both languages give the same verdicts in the same words: one table, and what Hypothesis finds."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmonkey.rules import MISSING, faults, violations
from flowmonkey.schemas import input_schema

HERE = Path(__file__).parent
TABLE = json.loads((HERE / "cases.json").read_text())


class Node:
    """node/rules.js in one process, asked line by line."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [program, str(HERE / "verdicts.cjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def violations(self, declaration, value):
        more = {} if value is MISSING else {"value": value}
        return self.ask(ask="violations", declaration=declaration, **more)

    def faults(self, declaration):
        return self.ask(ask="faults", declaration=declaration)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Python:
    def violations(self, declaration, value):
        return [list(one) for one in violations(declaration, value)]

    def faults(self, declaration):
        return faults(declaration)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module", params=["python", "node"])
def language(request):
    program = shutil.which("node")
    if request.param == "node" and program is None:
        pytest.skip("NO node here: the rules in JavaScript are not tested")
    one = Python() if request.param == "python" else Node(program)
    yield one
    one.close()


@pytest.fixture(scope="module")
def node():
    program = shutil.which("node")
    if program is None:
        pytest.skip("NO node here: the rules in JavaScript are not tested")
    one = Node(program)
    yield one
    one.close()


@pytest.mark.parametrize("group", TABLE["values"], ids=lambda one: json.dumps(one["declaration"]))
def test_a_value_is_judged_as_the_table_says(language, group):
    declaration = group["declaration"]
    assert language.faults(declaration) == []
    for value in group["passes"]:
        assert language.violations(declaration, value) == [], value
    for value, *broken in group["fails"]:
        assert language.violations(declaration, value) == broken, value
    if "missing" in group:
        broken = [["", *group["missing"]]] if group["missing"] else []
        assert language.violations(declaration, MISSING) == broken


@pytest.mark.parametrize("case", TABLE["faults"], ids=json.dumps)
def test_a_declaration_is_judged_as_the_table_says(language, case):
    declaration, *words = case
    assert language.faults(declaration) == words


BOUND = st.integers(-5, 5) | st.floats(-1e22, 1e22, allow_subnormal=False)
COUNT = st.integers(0, 4)
TEXT = st.text(st.sampled_from("ab1 .@:/-\n\u00e4\u2028\U0001f600"), max_size=6)
SCALAR = TEXT | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, 2.0])
VALUE = st.recursive(
    st.none() | SCALAR | st.floats(-1e22, 1e22, allow_subnormal=False) | st.emails(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=6,
)
PATTERN = st.sampled_from(["^a", "b$", "^[ab1]*$", ".", r"\s", r"^\d|@", "^.{2}$", r"[^\w]"])
RULES = {
    "number": {"min": BOUND, "max": BOUND, "enum": st.lists(BOUND, min_size=1, max_size=3)},
    "string": {
        "minLength": COUNT,
        "maxLength": COUNT,
        "pattern": PATTERN,
        "email": st.booleans(),
        "url": st.booleans(),
        "enum": st.lists(TEXT, min_size=1, max_size=3),
    },
    "array": {"minLength": COUNT, "maxLength": COUNT},
    "any": {"enum": st.lists(SCALAR, min_size=1, max_size=3)},
}
RULES["integer"] = RULES["number"]
SHARED = {"nullable": st.booleans()}


def plain(types: str):
    return st.sampled_from(types.split()).flatmap(
        lambda type_: st.fixed_dictionaries(
            {"type": st.just(type_)}, optional={**SHARED, **RULES.get(type_, {})}
        )
    )


ITEMS = plain("string number integer boolean null any object")
LISTS = st.fixed_dictionaries(
    {"type": st.just("array")}, optional={**SHARED, **RULES["array"], "items": ITEMS}
)
DECLARATION = st.builds(
    lambda one, more: {**one, **more},
    plain("string number integer boolean object null any") | LISTS,
    st.fixed_dictionaries({}, optional={"required": st.booleans(), "secret": st.booleans()}),
)


@given(declaration=DECLARATION, values=st.lists(VALUE, min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_both_languages_say_the_same_of_anything(node, declaration, values):
    wrong = faults(declaration)
    assert node.faults(declaration) == wrong
    if wrong:
        return
    for value in [MISSING, *values]:
        mine = [list(one) for one in violations(declaration, value)]
        assert node.violations(declaration, value) == mine
        if isinstance(value, str) and len(value) > 3 and "enum" not in declaration:
            assert all(value not in message for _, _, message in mine)


@given(declaration=DECLARATION, values=st.lists(VALUE, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_schema_lets_through_what_the_rules_do(declaration, values):
    import jsonschema

    declaration = {k: v for k, v in declaration.items() if k not in ("email", "url")}
    if "items" in declaration:
        left_out = ("email", "url", "pattern")
        items = {k: v for k, v in declaration["items"].items() if k not in left_out}
        declaration["items"] = items
    if "\\" in declaration.get("pattern", "") or "$" in declaration.get("pattern", ""):
        del declaration["pattern"]  # the validator takes it for Python's
    if faults(declaration):
        return
    schema = input_schema([{"property": "it", "source": "input", **declaration}])
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    for value in values:
        passes = not list(violations(declaration, value))
        assert check.is_valid({"it": value}) == passes, (schema, value)
    assert check.is_valid({}) == (not list(violations(declaration, MISSING)))
