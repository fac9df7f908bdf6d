"""handler.json: defaults, limits, and every problem with its place."""

from __future__ import annotations

import json

import pytest

from flowmonkeyd.documents.manifest import json_schema, parse_manifest
from flowmonkeyd.errors import Invalid

CONTRACT = {
    "$schema": "https://agenticflow.com/schemas/handler-manifest-v1.json",
    "handler": {
        "type": "acme/resize",
        "version": "1.2.0",
        "name": "Resize",
        "description": "Makes pictures smaller",
        "category": "media",
        "runtime": "python",
        "entrypoint": "handler.py:handle",
        "stateful": False,
        "timeout": 30000,
    },
    "inputs": [
        {
            "property": "apiKey",
            "type": "string",
            "source": "vault",
            "secret": True,
            "required": True,
        }
    ],
    "execution": {
        "ttl": 30000,
        "memory": 256,
        "cpu": 1,
        "sandbox": {"network": False, "filesystem": "none", "env": "isolated"},
    },
    "dependencies": {"pillow": "==11.*"},
}


def _document(handler=None, **sections):
    return {"handler": {"type": "a", "version": "1.0.0", **(handler or {})}, **sections}


def test_the_manifest_of_the_contract_is_read():
    manifest = parse_manifest(json.dumps(CONTRACT))
    assert (manifest.type, manifest.version, manifest.name) == ("acme/resize", "1.2.0", "Resize")
    assert (manifest.runtime, manifest.entrypoint) == ("python", "handler.py:handle")
    assert (manifest.timeout_ms, manifest.memory_mib, manifest.cpu) == (30000, 256, 1)
    assert (manifest.network, manifest.filesystem, manifest.stateful) == (False, "none", False)
    assert manifest.dependencies == {"pillow": "==11.*"}
    (one,) = manifest.inputs
    assert (one.property, one.type, one.source) == ("apiKey", "string", "vault")
    assert (one.secret, one.required) == (True, True)
    assert manifest.stateful_execution is None


def test_the_shortest_manifest_gets_the_defaults():
    manifest = parse_manifest(_document())
    assert (manifest.runtime, manifest.entrypoint) == ("python", "handler.py:handle")
    assert (manifest.timeout_ms, manifest.memory_mib, manifest.cpu) == (30_000, 512, 1)
    assert (manifest.network, manifest.filesystem, manifest.stateful) == (False, "none", False)
    assert (manifest.inputs, manifest.dependencies) == ((), {})


def test_rules_of_an_input_are_kept():
    rules = {"min": 1, "max": 5, "validation": {"pattern": "a+"}}
    manifest = parse_manifest(_document(inputs=[{"property": "n", "type": "number", **rules}]))
    assert manifest.inputs[0].rules == rules
    assert manifest.inputs[0].source == "input"


@pytest.mark.parametrize(
    ("handler", "execution", "timeout_ms"),
    [
        ({}, {}, 30_000),
        ({"timeout": 60_000}, {}, 60_000),
        ({"timeout": 500}, {}, 500),
        ({}, {"ttl": 60_000}, 60_000),
        ({"timeout": 2000}, {"ttl": 1000}, 1000),
        ({"timeout": 1000}, {"ttl": 2000}, 1000),
        ({"stateful": True}, {"ttl": {"default": 120_000}}, 120_000),
    ],
)
def test_the_lower_of_timeout_and_ttl_holds(handler, execution, timeout_ms):
    assert parse_manifest(_document(handler, execution=execution)).timeout_ms == timeout_ms


def test_a_stateful_manifest_keeps_its_own_sections():
    execution = {
        "ttl": {"soft": 60_000, "hard": 120_000, "default": 60_000},
        "checkpoint": {"required": True, "intervalMs": 30_000, "maxSize": 1024},
        "pause": {"enabled": True, "maxPauseDuration": 1000},
        "resources": "gpu",
    }
    manifest = parse_manifest(_document({"stateful": True}, execution=execution))
    assert manifest.stateful
    assert manifest.stateful_execution == execution


def check_problems(document, *expected):
    with pytest.raises(Invalid) as caught:
        parse_manifest(document)
    found = [(problem.path, problem.message) for problem in caught.value.problems]
    assert [path for path, _ in found] == [path for path, _ in expected], found
    for (_, message), (_, words) in zip(found, expected, strict=True):
        assert words in message
    assert caught.value.code == "INVALID"


def _of_handler(field, value, words="", **rest):
    return _document({field: value, **rest}), (f"$.handler.{field}", words)


def _of_execution(path, value, words="", **handler):
    document = value
    for name in reversed(path.split(".")):
        document = {name: document}
    return _document(handler, execution=document), (f"$.execution.{path}", words)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], ("$", "should be an object, not a list")),
        ({}, ("$.handler", "is required")),
        ({"handler": 1}, ("$.handler", "should be an object, not a number")),
        (_document(handlers={}), ("$.handlers", "unknown field")),
        (_document(inputs={}), ("$.inputs", "should be a list, not an object")),
        (_document(dependencies={"x": 1}), ("$.dependencies.x", "should be text, not a number")),
        (_document(dependencies={"x": "a" * 300_000}), ("$", "more than 262144 bytes")),
        (_document(inputs=[{"property": float("nan")}]), ("$.inputs[0].property", "not a JSON")),
        _of_handler("colour", "red", "unknown field"),
        _of_handler("type", "a b", "form"),
        _of_handler("type", "a/b/c", "form"),
        _of_handler("type", "a@1", "form"),
        _of_handler("version", "1.0", "not SemVer"),
        _of_handler("version", 1, "should be text, not a number"),
        _of_handler("version", "1.0.0\n", "not SemVer"),
        _of_handler("runtime", "ruby", "should be python or node"),
        _of_handler("timeout", 60_001, "at most 60000"),
        _of_handler("timeout", 0, "at least 1"),
        _of_handler("timeout", "30s", "a whole number, not text"),
        _of_handler("timeout", True, "a whole number, not true"),
        _of_handler("stateful", "yes", "true or false, not text"),
        *(
            _of_handler("entrypoint", text, "file.py:name")
            for text in ("handler.py", "handler:handle", "handler.js:handle", ":handle", "a.py:",
                         "a.py:1x", "a.py:class", "/a.py:h", "../a.py:h", "a/./b.py:h", "a//b.py:h",
                         "a.py:h\n", "a\\b.py:h", "a:b.py:h", "a.py:h.g")
        ),
        _of_handler("entrypoint", "a.py:h", "file.js:name or file.mjs:name", runtime="node"),
        (_document({"runtime": "node"}), ("$.handler.entrypoint", "is required for node")),
        _of_execution("ttl", 60_001, "at most 60000"),
        _of_execution("ttl", 0, "at least 1"),
        _of_execution("ttl", "1m", "a whole number"),
        _of_execution("ttl", {}, "unless the handler is stateful"),
        _of_execution("ttl", 1000, "soft, hard, default", stateful=True),
        _of_execution("ttl.soft", 10**9, "must not be longer than hard", stateful=True),
        _of_execution("ttl.hard", "x", "a whole number, not text", stateful=True),
        _of_execution("memory", 1025, "at most 1024"),
        _of_execution("memory", 1, "at least 16"),
        _of_execution("cpu", 2, "at most 1"),
        _of_execution("cpu", 0, "more than 0"),
        _of_execution("cpu", True, "a number, not true"),
        _of_execution("sandbox.network", "no", "true or false, not text"),
        _of_execution("sandbox.filesystem", "all", "should be none, readonly or temp"),
        _of_execution("sandbox.env", "host", "should be isolated"),
        _of_execution("sandbox.root", "/", "unknown field"),
        _of_execution("checkpoint", {}, "is for stateful handlers"),
        _of_execution("pause", {}, "is for stateful handlers"),
        _of_execution("resources", "light", "is for stateful handlers"),
        _of_execution("resources", "huge", "light, medium, heavy or gpu", stateful=True),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused_with_the_place_and_the_reason(document, problem):
    check_problems(document, problem)


def test_wrong_inputs_are_refused_one_by_one():
    inputs = [
        {"type": "string"},
        {"property": "a", "type": "date", "source": "moon"},
        {"property": "b", "source": "static"},
        {"property": "b", "source": "vault", "default": "hunter2"},
        7,
    ]
    check_problems(
        _document(inputs=inputs),
        ("$.inputs[0].property", "is required"),
        ("$.inputs[1].type", "should be string"),
        ("$.inputs[1].source", "should be input, config, context, vault or static"),
        ("$.inputs[4]", "should be an object, not a number"),
        ("$.inputs[2].value", "is required for the source static"),
        ("$.inputs[3].property", "is declared twice"),
        ("$.inputs[3]", "out of the manifest"),
    )


def test_wrong_shapes_and_wrong_meanings_are_told_together():
    document = {
        "handler": {"type": "a b", "version": "one", "stateful": False, "speed": 9},
        "execution": {"pause": {}, "memory": 4096},
    }
    check_problems(
        document,
        ("$.handler.type", "form"),
        ("$.handler.speed", "unknown field"),
        ("$.execution.memory", "at most 1024"),
        ("$.handler.version", "not SemVer"),
        ("$.execution.pause", "stateful"),
    )


@pytest.mark.parametrize("text", ["{", b"\xff", "[1, 2]", "a: &x 1"])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(Invalid, match="cannot read the document"):
        parse_manifest(text)


def test_the_schema_names_every_field_as_it_is_written():
    schema = json_schema()
    assert set(schema["properties"]) == {
        "$schema", "handler", "inputs", "execution", "dependencies",
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    json.dumps(schema)
