"""Declaring in Python and JavaScript: what is refused, what is inherited, what is kept apart."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from flowctl import trial
from flowctl.problems import Rejected
from flowctl.vendor import library, vendored
from flowmonkey import Answer, Handler, Input, env
from flowmonkey.declared import manifest_inputs, schemas
from flowmonkey.declared import test_values as declared_test_values
from tests.authoring.given import context


def declare(annotation: Any, **options: Any) -> dict[str, Any]:
    body = {"__annotations__": {"it": annotation}, "it": Input(**options), "__module__": __name__}
    return manifest_inputs(type("Made", (Handler,), body))[0]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Any, {"type": "any"}),
        (dict, {"type": "object"}),
        (dict[str, Any], {"type": "object"}),
        (list, {"type": "array"}),
        (list[Any], {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (
            list[list[str | None]],
            {
                "type": "array",
                "items": {"type": "array", "items": {"type": "string", "nullable": True}},
            },
        ),
        (str | None, {"type": "string", "nullable": True}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a", 1], {"type": "any", "enum": ["a", 1]}),
        ("int | None", {"type": "integer", "nullable": True}),
    ],
    ids=str,
)
def test_an_annotation_says_the_type(annotation, said):
    found = declare(annotation)
    assert {"property": "it", "source": "input", "required": True, **said} == found


@pytest.mark.parametrize("annotation", [bytes, set[str], str | int, complex, "Nowhere", object()])
def test_what_json_has_not_is_no_type(annotation):
    with pytest.raises(TypeError, match=r"^cannot declare Made\.it: "):
        declare(annotation)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"type": "string", "min": 1}, "min is for number, integer, not for string"),
        ({"source": "static"}, "value is required"),
        ({"source": "vault", "default": "x"}, "default is not for the source vault"),
        ({"source": "nowhere"}, "source must be one of"),
        ({"type": "integer", "default": "x"}, "default must be a whole number, not a string"),
    ],
)
def test_what_contradicts_itself_is_told_when_the_class_is_made(options, why):
    with pytest.raises(TypeError, match=why):
        type("Made", (Handler,), {"it": Input(**options)})


def test_handle_is_not_to_be_replaced_nor_a_property_declared_twice():
    with pytest.raises(TypeError, match="call your method execute"):
        type("Made", (Handler,), {"handle": lambda self, input, ctx: 1})
    with pytest.raises(TypeError, match="x is declared twice"):
        type("Made", (Handler,), {"x": Input(), "y": Input(property="x")})


class Plain(Handler):
    kept: int = Input(default=1)
    changed: str = Input(default="a")

    def execute(self, ctx: Any) -> Any:
        return {name: getattr(self, name) for name in ("kept", "changed")}


class Derived(Plain):
    changed: int = Input(max=5, required=False)
    added: list = Input(default=[], test_value=[1])

    def __init__(self) -> None:
        self.made = True


def test_inputs_are_inherited_and_can_be_replaced():
    assert [one["property"] for one in manifest_inputs(Derived)] == ["kept", "changed", "added"]
    assert manifest_inputs(Derived)[1]["type"] == "integer"
    assert manifest_inputs(Plain)[1]["type"] == "string"
    assert Derived().handle({"kept": 4}, context()) == {"kept": 4, "changed": None}


def test_no_execution_sees_what_another_one_did():
    class Keeps(Handler):
        seen: list = Input(default=[])
        fixed: dict = Input("static", value={"a": [1]})

        def execute(self, ctx: Any) -> Any:
            assert not hasattr(self, "mine")
            self.mine = True
            self.seen.append(1)
            self.fixed["a"].append(2)
            return [self.seen, self.fixed]

    one = Keeps()
    assert one.handle({}, context()) == [[1], {"a": [1, 2]}]
    assert one.handle({}, context()) == [[1], {"a": [1, 2]}]
    with pytest.raises(AttributeError, match="seen has no value before"):
        _ = one.seen


def test_a_test_value_is_never_bound():
    class Tried(Handler):
        key: str = Input("vault", test_value=env("KEY", "no"))
        size: int = Input(required=False, test_value=5)

        def execute(self, ctx: Any) -> Any:
            return self.size

    assert Tried().handle({}, context(secrets={"key": "k"})) is None
    assert "test" not in json.dumps([manifest_inputs(Tried), schemas(Tried)])
    assert declared_test_values(Tried) == [
        {"property": "key", "source": "vault", "env": "KEY", "fallback": "no"},
        {"property": "size", "source": "input", "value": 5},
    ]


def test_a_long_message_is_cut_and_the_details_are_whole():
    wide = type("Wide", (Handler,), {f"a{n}": Input(type="string") for n in range(200)})
    answer = wide().handle({}, context()).value["error"]
    assert len(answer["message"]) == 1000
    assert answer["message"].endswith("…")
    assert len(answer["details"]) == 200


class Part(TypedDict):
    name: str
    inner: NotRequired[list[Part]]


class Whole(TypedDict, total=False):
    size: int
    kind: Literal["a", 1]
    by_name: dict[str, float | None]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("int", {"type": "integer"}),
        ("Any", {}),
        ("Answer", {}),
        ("Nowhere", {}),
        ("int | Answer", {"type": "integer"}),
        ("str | None", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("list[Any]", {"type": "array"}),
        (
            "Whole",
            {
                "type": "object",
                "properties": {
                    "size": {"type": "integer"},
                    "kind": {"enum": ["a", 1]},
                    "by_name": {
                        "type": "object",
                        "additionalProperties": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                    },
                },
            },
        ),
    ],
)
def test_what_execute_returns_is_the_schema_of_the_output(annotation, schema):
    assert Answer is not None

    def execute(self: Any, ctx: Any) -> Any: ...

    execute.__annotations__["return"] = annotation
    made = type("Made", (Handler,), {"execute": execute})
    found = schemas(made)["output"]
    assert found.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    assert found == schema


def test_a_type_that_contains_itself_has_a_schema():
    def execute(self: Any, ctx: Any) -> Part: ...

    found = schemas(type("Made", (Handler,), {"execute": execute}))["output"]
    assert found["required"] == ["name"]
    assert found["properties"]["inner"]["items"]["properties"]["name"] == {"type": "string"}


NODE_REFUSALS = [
    ("Handler()(class A {})", "cannot use A as a handler: it has no method execute(ctx)"),
    ("Handler()(class A { execute() {} handle() {} })", "call your method execute"),
    ("Handler({ input: {} })", "cannot declare the handler: unknown option input"),
    ("Handler({ inputs: { a: { minimum: 1 } } })(A)", "cannot declare A.a: unknown option minimum"),
    ("Handler({ inputs: { a: { type: 'x' } } })(A)", "cannot declare A.a: type must be one of"),
    ("Handler({ inputs: { a: {}, b: { property: 'a' } } })(A)", "A: a is declared twice"),
    ("Min(1)(A.prototype, 'a'); Handler()(A)", "cannot declare A.a: @Min needs an @Input"),
    ("Input()(A.prototype, Symbol())", "cannot use @Input there: it is for public fields"),
    ("Input()(A, 'a')", "cannot use @Input there: it is for public fields"),
    ("Input()(undefined, { kind: 'method', name: 'a' })", "it is for public fields"),
    ("Input()(undefined, { kind: 'field', name: 'a' })", "the compiler gives no metadata"),
    ("Pattern(/a/i)", "cannot use /a/i as pattern: JSON Schema has no flags"),
]


@pytest.mark.parametrize(("code", "why"), NODE_REFUSALS, ids=[code for code, _ in NODE_REFUSALS])
def test_javascript_refuses_what_contradicts_itself(code, why):
    if shutil.which("node") is None:
        pytest.skip("NO node here: the library in JavaScript is not tested")
    script = f"""
const {{ Handler, Input, Min, Pattern }} = require({json.dumps(str(library() / "node"))});
class A {{ execute() {{}} }}
try {{ {code}; }} catch (error) {{ console.log(error.name, error.message); }}
"""
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("TypeError ")
    assert why in done.stdout


def test_a_package_carries_the_library_only_if_it_imports_it():
    plain = {"handler.py": b"def handle(input, ctx): ...\n", "handler.json": b"{}"}
    assert vendored(plain) == plain
    python = {**plain, "inner/a.py": b"  from flowmonkey import Handler\n"}
    assert {name for name in vendored(python) if name not in python} == {
        f"flowmonkey/{name}.py"
        for name in ("__init__", "context", "declared", "describe", "rules", "schemas")
    }
    own = {**python, "flowmonkey/__init__.py": b"mine = 1\n"}
    assert vendored(own) == own
    node = {"handler.js": b"require('flowmonkey')", "node_modules/flowmonkey/index.js": b"old"}
    node["node_modules/flowmonkey/index.d.ts"] = b"types"
    made = vendored(node)
    assert made["node_modules/flowmonkey/index.js"] == (library() / "node/index.js").read_bytes()
    assert not [name for name in made if name.endswith(".d.ts") or "testing" in name]
    unused = {"handler.js": b"exports.handle = () => 1", "node_modules/flowmonkey/index.js": b"old"}
    assert list(vendored(unused)) == ["handler.js"]


def test_the_library_needs_the_standard_library_only(tmp_path):
    """As in a package: its files alone, isolated from what is installed here."""
    python = {"a.py": b"import flowmonkey"}
    for name, data in vendored(python).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    code = "import sys; sys.path.insert(0, '.'); import flowmonkey, flowmonkey.describe"
    code += "; print(sorted(m for m in sys.modules if 'flow' in m))"
    done = subprocess.run(
        ["/usr/bin/python3" if Path("/usr/bin/python3").exists() else "python3", "-ISc", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "flowmonkey.declared" in done.stdout
    assert "flowmonkeyd" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import flowmonkey\nraise LookupError('at import')\n", "LookupError: at import"),
        ("import flowmonkey\nimport os\nos._exit(1)\n", "cannot load handler.py:Made"),
        (
            "import flowmonkey\nfrom flowmonkey import Handler, Input\n"
            "class Made(Handler):\n    a: int = Input(pattern='x')\n",
            "pattern is for string, not for integer",
        ),
        (
            "import flowmonkey.describe as d\nd.manifest_inputs = lambda c: 1/0\n"
            "class Made(flowmonkey.Handler): ...\n",
            "cannot load handler.py:Made",
        ),
    ],
)
def test_what_cannot_be_described_is_refused_in_words(folder, code, why):
    place = str(folder("handler.py:Made", {"handler.py": code}))
    with pytest.raises(Rejected) as refused:
        trial.describe(place)
    assert why in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "forged",
    [
        "schemas = lambda c: []",
        "test_values = lambda c: {}",
        "test_values = lambda c: [1]",
        "test_values = lambda c: [{'property': 1, 'value': 2}]",
        "test_values = lambda c: [{'property': 'a', 'source': 'input', 'env': 5}]",
        "test_values = lambda c: [{'property': 'a', 'source': [], 'value': 5}]",
    ],
)
def test_a_forged_description_is_not_believed(folder, forged):
    code = f"import flowmonkey, flowmonkey.describe as describe\ndescribe.{forged}\n"
    code += "class Made(flowmonkey.Handler):\n    a = flowmonkey.Input(test_value=1)\n"
    place = str(folder("handler.py:Made", {"handler.py": code}))
    with pytest.raises(Rejected, match="cannot read "):
        trial.with_test_values(place, trial.Given())


def test_the_fixture_finds_its_folder_or_says_so(handler_test):
    with pytest.raises(FileNotFoundError, match=r"give handler_test\(folder=…\)"):
        handler_test({})


def test_functions_declare_nothing(folder):
    place = str(folder("handler.py:handle", {"handler.py": "def handle(input, ctx): ...\n"}))
    assert trial.describe(place) == trial.Described()
