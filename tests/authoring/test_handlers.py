"""The same handler in Python, JavaScript and TypeScript, in the real sandbox: the same answers."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from flowctl import trial
from flowctl.build import build

PYTHON = """
from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flowmonkey import Handler, Input, env

if TYPE_CHECKING:
    from flowmonkey import Context


class Order(Handler):
    amount: int = Input(min=1, max=10, test_value=3)
    note: str | None = Input(default="none", maxLength=5)
    tags: list[str] = Input(default=["a"])
    mail: str = Input(email=True, required=False)
    region: Literal["eu", "us"] = Input("config", default="eu")
    total: float = Input("context", property="cartTotal", required=False)
    api_key: str = Input("vault", property="apiKey", minLength=4, test_value=env("KEY", "none"))
    unit: str = Input("static", value="kg")

    async def execute(self, ctx: Context) -> dict:
        if self.amount == 7:
            return ctx.failure("SOLD_OUT", "none left", retryable=False)
        self.tags.append("seen")
        return {
            "amount": self.amount, "note": self.note, "tags": self.tags, "mail": self.mail,
            "region": self.region, "total": self.total, "unit": self.unit,
            "keyLength": len(self.api_key),
        }
"""
BODY = """
    if (this.amount === 7) return ctx.failure('SOLD_OUT', 'none left', { retryable: false });
    this.tags.push('seen');
    const { amount, note, tags, mail = null, region, total = null, unit } = this;
    return { amount, note, tags, mail, region, total, unit, keyLength: this.apiKey.length };
"""
NODE = f"""
const {{ Handler, env }} = require('flowmonkey');
exports.Order = Handler({{
  inputs: {{
    amount: {{ type: 'integer', min: 1, max: 10, testValue: 3 }},
    note: {{ type: 'string', nullable: true, default: 'none', maxLength: 5 }},
    tags: {{ type: 'array', items: 'string', default: ['a'] }},
    mail: {{ type: 'string', email: true, required: false }},
    region: {{ type: 'string', source: 'config', enum: ['eu', 'us'], default: 'eu' }},
    total: {{ type: 'number', source: 'context', property: 'cartTotal', required: false }},
    apiKey: {{ source: 'vault', minLength: 4, testValue: env('KEY', 'none') }},
    unit: {{ type: 'string', source: 'static', value: 'kg' }},
  }},
}})(class Order {{
  async execute(ctx) {{{BODY}  }}
}});
"""
TYPESCRIPT = f"""
import {{ Email, Enum, Handler, Input, Max, MaxLength, Min, MinLength, TestValue, env }}
  from 'flowmonkey';
import type {{ Context }} from 'flowmonkey';

@Handler()
export class Order {{
  @Input({{ type: 'integer' }}) @Min(1) @Max(10) @TestValue(3) amount!: number;
  @Input({{ type: 'string', nullable: true, default: 'none' }}) @MaxLength(5) note!: string | null;
  @Input({{ type: 'array', items: 'string', default: ['a'] }}) tags!: string[];
  @Email() @Input({{ type: 'string', required: false }}) mail?: string;
  @Enum('eu', 'us') @Input({{ type: 'string', source: 'config', default: 'eu' }})
  region!: string;
  @Input({{ type: 'number', source: 'context', property: 'cartTotal', required: false }})
  total?: number;
  @Input({{ source: 'vault' }}) @MinLength(4) @TestValue(env('KEY', 'none')) apiKey!: string;
  @Input({{ type: 'string', source: 'static', value: 'kg' }}) unit!: string;
  async execute(ctx: Context) {{{BODY}  }}
}}
"""
LEGACY = '{"compilerOptions": {"experimentalDecorators": true}}'
LANGUAGES = {
    "python": ("handler.py:Order", {"handler.py": PYTHON}),
    "node": ("handler.js:Order", {"handler.js": NODE}),
    "typescript": ("handler.js:Order", {"handler.ts": TYPESCRIPT}),
    "typescript, legacy": ("handler.js:Order", {"handler.ts": TYPESCRIPT, "tsconfig.json": LEGACY}),
}
KEY = {"apiKey": "s3cr3t-k3y"}


@pytest.fixture(params=LANGUAGES)
def order(request, folder):
    if "typescript" in request.param:
        request.getfixturevalue("tools")
    return str(folder(*LANGUAGES[request.param]))


def run(order, **given):
    has_input = "input" in given
    gift = trial.Given(
        given.get("input"),
        has_input,
        given.get("config", {}),
        given.get("context", {}),
        given.get("secrets", KEY),
    )
    lines = []
    ran = trial.run(order, gift, lambda *line: lines.append(line))
    return ran.result, lines


def violations(result):
    assert result["outcome"] == "failure"
    error = result["error"]
    assert (error["code"], error["retryable"]) == ("INPUT_VALIDATION_FAILED", False)
    return [(one["property"], one["rule"], one["message"]) for one in error["details"]]


WHOLE = {
    "amount": 2,
    "note": "none",
    "tags": ["a", "seen"],
    "mail": None,
    "region": "eu",
    "total": None,
    "unit": "kg",
    "keyLength": 10,
}


@pytest.mark.slow
def test_inputs_come_from_where_they_are_declared(order):
    result, _ = run(
        order,
        input={"amount": 2, "mail": "a@b.c", "unit": "lb", "region": "us"},
        config={"region": "us", "amount": 9},
        context={"cartTotal": 1.5, "amount": 8},
    )
    more = {"mail": "a@b.c", "region": "us", "total": 1.5}
    assert result == {"outcome": "success", "output": {**WHOLE, **more}}


@pytest.mark.slow
def test_a_default_is_for_missing_values_and_never_for_null(order):
    result, _ = run(order, input={"amount": 2})
    assert result["output"] == WHOLE
    result, _ = run(order, input={"amount": 2, "note": None})
    assert result["output"] == {**WHOLE, "note": None}
    result, _ = run(order, input={"amount": 2, "tags": None, "mail": None})
    assert violations(result) == [
        ("tags", "type", "must be an array, not null"),
        ("mail", "type", "must be a string, not null"),
    ]


@pytest.mark.slow
def test_all_violations_are_told_at_once_and_no_secret(order):
    result, lines = run(
        order,
        input={"amount": 11, "note": "too long", "tags": ["x", 5], "mail": "me"},
        config={"region": "mars"},
        context={"cartTotal": "1"},
        secrets={"apiKey": "k3y"},
    )
    assert violations(result) == [
        ("amount", "max", "must be at most 10"),
        ("note", "maxLength", "must have at most 5 characters"),
        ("tags[1]", "type", "must be a string, not a number"),
        ("mail", "email", "must be an e-mail address"),
        ("region", "enum", 'must be one of "eu", "us"'),
        ("cartTotal", "type", "must be a number, not a string"),
        ("apiKey", "minLength", "must have at least 4 characters"),
    ]
    assert result["error"]["message"].startswith("cannot accept the input: amount must be at most")
    assert "k3y" not in json.dumps([result, lines])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, ("amount", "required", "is required")),
        ({"input": None}, ("$", "type", "must be an object, not null")),
        ({"input": [1]}, ("$", "type", "must be an object, not an array")),
        ({"input": "text"}, ("$", "type", "must be an object, not a string")),
    ],
)
def test_an_input_that_is_no_object_is_told_once(order, given, told):
    result, _ = run(order, **given, secrets={})
    assert violations(result) == [told, ("apiKey", "required", "is required")]


@pytest.mark.slow
def test_what_execute_answers_is_the_answer(order):
    result, _ = run(order, input={"amount": 7})
    assert result["error"]["code"] == "SOLD_OUT"
    assert result["error"]["retryable"] is False


@pytest.mark.slow
def test_what_is_declared_is_described(order, monkeypatch):
    monkeypatch.setenv("KEY", "from the environment")
    said = trial.describe(order)
    assert said.is_class
    own = [{k: v for k, v in one.items() if k != "items"} for one in said.inputs]
    assert own[0] == {
        "property": "amount",
        "type": "integer",
        "source": "input",
        "min": 1,
        "max": 10,
        "required": True,
    }
    names = ["amount", "note", "tags", "mail", "region", "cartTotal", "apiKey", "unit"]
    assert [one["property"] for one in said.inputs] == names
    assert said.inputs[6] == {
        "property": "apiKey",
        "type": "string",
        "source": "vault",
        "minLength": 4,
        "secret": True,
        "required": True,
    }
    assert said.schemas["input"] == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "amount": {"type": "integer", "minimum": 1, "maximum": 10},
            "note": {"type": ["string", "null"], "maxLength": 5, "default": "none"},
            "tags": {"type": "array", "items": {"type": "string"}, "default": ["a"]},
            "mail": {"type": "string", "format": "email"},
        },
        "required": ["amount"],
    }
    given = trial.with_test_values(order, trial.Given(input={"note": "x"}, has_input=True))
    assert given.input == {"amount": 3, "note": "x"}
    assert given.secrets == {"apiKey": "from the environment"}
    monkeypatch.delenv("KEY")
    assert trial.with_test_values(order, trial.Given()).secrets == {"apiKey": "none"}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["python", "node", "typescript"])
def test_a_built_package_does_the_same_without_its_test_values(language, folder, tools, tmp_path):
    made = build(folder(*LANGUAGES[language]))
    place = tmp_path / "built"
    with zipfile.ZipFile(io.BytesIO(made.data)) as package:
        package.extractall(place)
    assert trial.with_test_values(str(place), trial.Given()) == trial.Given()
    result, _ = run(str(place), input={"amount": 2})
    assert result["output"] == WHOLE
    result, _ = run(str(place), secrets={})
    assert violations(result) == [
        ("amount", "required", "is required"),
        ("apiKey", "required", "is required"),
    ]
    assert made.manifest.inputs[0].property == "amount"
